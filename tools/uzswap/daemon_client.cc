#include "tools/uzswap/daemon_client.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <span>
#include <thread>
#include <vector>

#include "daemon/sys/packet_socket.h"
#include "daemon/wire/message.h"
#include "libzpool/base/fd.h"
#include "tools/uzswap/json_field.h"

namespace uzswap::cli {
namespace {

using std::chrono::milliseconds;

constexpr int kTries = 3;
constexpr milliseconds kTryAgain{100};

// A thousand clients are about a megabyte of JSON; more than this is not an answer.
constexpr off_t kMaxAnswerBytes = 256 << 20;

Answer Broken(std::string message) { return {AskResult::kBroken, 0, {}, std::move(message)}; }

Answer NoDaemon(const std::string& path, int error) {
  const std::string start = path == wire::kDefaultSocketPath
                                ? "start it as root with `systemctl start uzswapd` or `uzswapd &`"
                                : fmt::format("start it as root with `uzswapd --socket {} &`", path);
  std::string text;
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      text = fmt::format("no daemon at {} (no such socket); {}", path, start);
      break;
    case ECONNREFUSED:
      text = fmt::format("no daemon at {} (a socket is there, but nobody listens: its daemon ended); {}",
                         path, start);
      break;
    case EACCES:
    case EPERM:
      text = fmt::format(
          "not permitted to connect to {}; run uzswap as the user or in the group that owns it", path);
      break;
    case ENAMETOOLONG:
      text = fmt::format("the socket path {} is too long: a Unix socket's may have {} bytes", path,
                         sizeof(sockaddr_un::sun_path) - 1);
      break;
    case EPROTOTYPE:
      text = path + " is a socket, but of another kind: not uzswapd's";
      break;
    default:
      text = fmt::format("cannot reach a daemon at {}: {}", path, std::strerror(error));
  }
  return {AskResult::kNoDaemon, error, {}, std::move(text)};
}

// A connected socket, or the errno of what failed. The time-out matters where the daemon's backlog is full.
int Connect(const std::string& path, milliseconds timeout, zp::UniqueFd* out) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) return ENAMETOOLONG;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);

  zp::UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return errno;
  const timeval wait = {.tv_sec = timeout.count() / 1000, .tv_usec = timeout.count() % 1000 * 1000};
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) return errno;
  *out = std::move(fd);
  return 0;
}

// False: time is up.
bool WaitReadable(int fd, milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return false;
    pollfd one = {fd, POLLIN, 0};
    if (poll(&one, 1, static_cast<int>(left.count())) > 0) return true;
  }
}

// The whole content of the answer's memfd.
bool ReadAll(int fd, std::string* text) {
  struct stat st;
  if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size > kMaxAnswerBytes) return false;
  text->resize(static_cast<size_t>(st.st_size));
  size_t done = 0;
  while (done < text->size()) {
    const ssize_t n = pread(fd, text->data() + done, text->size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

Answer Interpret(const std::string& path, std::span<const std::byte> packet, const zp::UniqueFd& attached) {
  wire::Header header = {};
  if (packet.size() < sizeof(header)) return Broken(path + ": not uzswapd (a packet without a header)");
  std::memcpy(&header, packet.data(), sizeof(header));
  if (header.magic != wire::kMagic) return Broken(path + ": not uzswapd (wrong magic number)");
  if (header.version != wire::kVersion) {
    return Broken(
        fmt::format("{}: the daemon speaks protocol {}, this uzswap {}: install both from one release, then "
                    "restart the daemon",
                    path, header.version, wire::kVersion));
  }
  if (header.type == static_cast<uint16_t>(wire::MessageType::kRefused) &&
      packet.size() >= sizeof(wire::Refused)) {
    wire::Refused refused;
    std::memcpy(&refused, packet.data(), sizeof(refused));
    return {AskResult::kRefused,
            EPROTO,
            {},
            std::string(refused.reason, strnlen(refused.reason, sizeof(refused.reason)))};
  }
  if (header.type != static_cast<uint16_t>(wire::MessageType::kControlReply) ||
      packet.size() < sizeof(wire::ControlReply)) {
    return Broken(fmt::format("{}: unexpected answer (type {}, {} bytes)", path, header.type, packet.size()));
  }
  wire::ControlReply reply;
  std::memcpy(&reply, packet.data(), sizeof(reply));
  std::string text;
  if (!attached.valid() || !ReadAll(attached.get(), &text)) {
    if (reply.status != 0) return {AskResult::kRefused, reply.status, {}, std::strerror(reply.status)};
    return Broken(path + ": the daemon's answer came without its text");
  }
  nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object())
    return Broken(path + ": the daemon's answer is no JSON object");
  if (reply.status == 0) return {AskResult::kAnswered, 0, std::move(json), ""};
  std::string message = TextField(json, "error");
  if (message.empty()) message = std::strerror(reply.status);
  return {AskResult::kRefused, reply.status, std::move(json), std::move(message)};
}

// `*lost`: the connection ended without an answer, as it does where the daemon dies; its successor listens at
// the same socket, and no verb does harm if it is said twice.
Answer AskOnce(const std::string& socket_path, const nlohmann::json& request, milliseconds timeout,
               bool* lost) {
  const std::string body = request.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::vector<std::byte> buffer(sizeof(wire::Header) + body.size());
  if (buffer.size() > wire::kMaxPacketBytes) return Broken("the request is too long");
  const wire::Header header = MakeHeader(wire::MessageType::kControlRequest, buffer.size());
  std::memcpy(buffer.data(), &header, sizeof(header));
  std::memcpy(buffer.data() + sizeof(header), body.data(), body.size());

  zp::UniqueFd fd;
  if (int error = Connect(socket_path, timeout, &fd); error != 0) return NoDaemon(socket_path, error);
  // A daemon that turns us away may have closed before this; its reason is then still to be read.
  (void)SendPacket(fd.get(), buffer);
  if (!WaitReadable(fd.get(), timeout)) {
    return Broken(
        fmt::format("the daemon at {} does not answer (waited {:.1f} s); is it stopped or busy? see its log",
                    socket_path, static_cast<double>(timeout.count()) / 1000));
  }
  buffer.resize(wire::kMaxPacketBytes);
  const zp::Result<Packet> packet = ReceivePacket(fd.get(), buffer, Descriptors::kAccept);
  if (!packet.ok() || packet.value().bytes == 0) {
    *lost = true;
    return Broken(socket_path +
                  ": the connection was closed without an answer; the daemon's log may say why");
  }
  return Interpret(socket_path, std::span(buffer).first(packet.value().bytes), packet.value().fd);
}

}  // namespace

Answer AskDaemon(const std::string& socket_path, const nlohmann::json& request, milliseconds timeout) {
  for (int tries = 1;; ++tries) {
    bool lost = false;
    Answer answer = AskOnce(socket_path, request, timeout, &lost);
    if (!lost || tries == kTries) return answer;
    std::this_thread::sleep_for(kTryAgain);
  }
}

std::string SocketPath(const std::string& option) {
  if (!option.empty()) return option;
  const char* environment = std::getenv("UZSWAP_SOCKET");
  return environment != nullptr && *environment != '\0' ? environment : wire::kDefaultSocketPath;
}

}  // namespace uzswap::cli
