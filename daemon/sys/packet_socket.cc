#include "daemon/sys/packet_socket.h"

#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace uzswap {

zp::Status SendPacket(int socket, std::span<const std::byte> packet, int fd) {
  iovec io{const_cast<std::byte*>(packet.data()), packet.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &fd, sizeof(fd));
  }
  ssize_t sent = 0;
  do {
    sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent == static_cast<ssize_t>(packet.size())) return zp::OkStatus();
  if (errno == EAGAIN) return zp::Error{zp::Errc::kAgain, errno, "sending a packet"};
  return zp::Error{zp::Errc::kGone, errno, "sending a packet"};
}

zp::Result<Packet> ReceivePacket(int socket, std::span<std::byte> buffer, Descriptors descriptors) {
  iovec io{buffer.data(), buffer.size()};
  constexpr size_t kMaxDescriptors = 1;  // the kernel drops what does not fit
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  if (descriptors == Descriptors::kAccept) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
  }
  ssize_t got = 0;
  do {
    got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    if (errno == EAGAIN) return zp::Error{zp::Errc::kAgain, errno, "receiving a packet"};
    return zp::Error{zp::Errc::kGone, errno, "receiving a packet"};
  }
  Packet packet;
  packet.bytes = static_cast<size_t>(got);
  packet.truncated = (message.msg_flags & MSG_TRUNC) != 0;
  for (cmsghdr* head = CMSG_FIRSTHDR(&message); head != nullptr; head = CMSG_NXTHDR(&message, head)) {
    if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      memcpy(&fd, CMSG_DATA(head) + i * sizeof(int), sizeof(fd));
      zp::UniqueFd owned(fd);
      if (!packet.fd.valid()) packet.fd = std::move(owned);
    }
  }
  return packet;
}

zp::Result<zp::UniqueFd> ListenAt(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return zp::Error{zp::Errc::kInvalid, 0, "the socket's path is empty or longer than 107 characters"};
  }
  memcpy(address.sun_path, path.c_str(), path.size() + 1);
  std::error_code ignored;
  const auto parent = std::filesystem::path(path).parent_path();
  if (!parent.empty()) std::filesystem::create_directories(parent, ignored);

  const zp::UniqueFd probe(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!probe.valid()) return zp::ErrnoError("socket");
  struct stat status {};
  if (lstat(path.c_str(), &status) == 0) {
    if (!S_ISSOCK(status.st_mode))
      return zp::Error{zp::Errc::kExists, 0, "a file that is no socket stands at the socket's path"};
    if (connect(probe.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 ||
        errno == EAGAIN) {
      return zp::Error{zp::Errc::kExists, EADDRINUSE, "another daemon listens there"};
    }
    if (errno == ECONNREFUSED) (void)unlink(path.c_str());
  }
  zp::UniqueFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.valid()) return zp::ErrnoError("socket");
  if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
    return zp::ErrnoError("bind");
  // Anybody may attach own programs (design §7): what a peer may do follows from its credentials.
  if (chmod(path.c_str(), 0666) != 0) return zp::ErrnoError("chmod of the socket");
  if (listen(listener.get(), 128) != 0) return zp::ErrnoError("listen");
  return listener;
}

}  // namespace uzswap
