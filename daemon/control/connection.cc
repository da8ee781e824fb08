#include "daemon/control/connection.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "daemon/wire/notes.h"
#include "libzpool/base/pause_point.h"

namespace uzswap {
namespace {

constexpr uint64_t kAddressLimit = uint64_t{1} << 56;

bool Sane(uint64_t start, uint64_t bytes) {
  return start % zp::kPageBytes == 0 && bytes % zp::kPageBytes == 0 && start > 0 && start < kAddressLimit &&
         bytes < kAddressLimit;
}

std::string TextOf(const char* field, size_t capacity) { return {field, strnlen(field, capacity)}; }

bool IsUserfaultfd(int fd) {
  char target[64] = {};
  const std::string link = fmt::format("/proc/self/fd/{}", fd);
  return readlink(link.c_str(), target, sizeof(target) - 1) > 0 &&
         strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

const char* Explain(const zp::Error& error) {
  switch (error.code) {
    case zp::Errc::kPermission:
      return "the daemon lacks CAP_SYS_PTRACE; run it as root or give it that capability";
    case zp::Errc::kUnsupported:
      return "the kernel is too old; Linux 6.8 with CONFIG_USERFAULTFD is needed";
    case zp::Errc::kNoMemory:
      return "the daemon is out of memory, descriptors or client numbers";
    default:
      return "the daemon could not set the client up; see its log";
  }
}

}  // namespace

bool Connection::Reply(wire::MessageType type, int fd) {
  const wire::Bare message{MakeHeader(type, sizeof(wire::Bare))};
  return SendPacket(socket_->get(), AsBytes(message), fd).ok();
}

Connection::Next Connection::Refuse(const std::string& reason) {
  reason_ = reason;
  wire::Refused refused{};
  refused.header = MakeHeader(wire::MessageType::kRefused, sizeof(refused));
  (void)reason.copy(refused.reason, sizeof(refused.reason) - 1);
  (void)SendPacket(socket_->get(), AsBytes(refused));
  return Next::kClose;
}

Connection::Next Connection::OnReadable() {
  alignas(8) std::byte buffer[wire::kMaxPacketBytes];
  const auto descriptors = state_ == State::kWantContext ? Descriptors::kAccept : Descriptors::kRefuse;
  auto received = ReceivePacket(socket_->get(), buffer, descriptors);
  if (!received.ok()) {
    if (received.error().code == zp::Errc::kAgain) return Next::kWait;
    reason_ = "the peer reset the connection";
    return Next::kClose;
  }
  if (received->bytes == 0) {
    reason_ = "the peer closed the connection";
    return Next::kClose;
  }
  const std::span<const std::byte> packet(buffer, received->bytes);
  wire::Header header{};
  if (packet.size() < sizeof(header)) return Refuse("malformed packet: shorter than its header");
  memcpy(&header, packet.data(), sizeof(header));
  if (header.magic != wire::kMagic) return Refuse("malformed packet: this is no uzswap client");
  if (header.version != wire::kVersion) {
    return Refuse(
        fmt::format("protocol version {} is not {}; install agent, uzswap and uzswapd of the same release",
                    header.version, wire::kVersion));
  }
  if (received->truncated || header.length != packet.size())
    return Refuse("malformed packet: its length is wrong");
  const auto type = static_cast<wire::MessageType>(header.type);
  if (type == wire::MessageType::kControlRequest && state_ == State::kFresh) {
    request_.assign(reinterpret_cast<const char*>(packet.data()) + sizeof(header),
                    packet.size() - sizeof(header));
    return Next::kRequest;
  }
  switch (state_) {
    case State::kFresh:
      if (type == wire::MessageType::kHello) return OnHello(packet);
      break;
    case State::kWantContext:
      if (type == wire::MessageType::kContext) return OnContext(std::move(received->fd));
      break;
    case State::kWantReady:
      if (type == wire::MessageType::kReady) return OnReady();
      break;
    case State::kWantProof:
      if (type == wire::MessageType::kProof) return OnProof(packet);
      break;
    case State::kAttached:
      break;
  }
  return Refuse(fmt::format("message of type {} is not expected here", header.type));
}

Connection::Next Connection::OnHello(std::span<const std::byte> packet) {
  if (packet.size() != sizeof(hello_)) return Refuse("malformed Hello: its size is wrong");
  memcpy(&hello_, packet.data(), sizeof(hello_));
  if (!Sane(hello_.arena_start, hello_.arena_bytes) || !Sane(hello_.staging_start, hello_.staging_bytes) ||
      hello_.staging_bytes != wire::kStagingBytes ||
      (hello_.notes_start != 0 && !Sane(hello_.notes_start, wire::kNotesBytes))) {
    return Refuse("malformed Hello: the agent's ranges are not page-aligned user memory");
  }
  if (hello_.limit_bytes != 0 && hello_.limit_bytes < wire::kMinLimitBytes) {
    return Refuse("the limit is below 4 MiB, less than a process needs to live; set a larger UZSWAP_LIMIT");
  }
  const std::string codec = TextOf(hello_.codec, sizeof(hello_.codec));
  const std::string pool = TextOf(hello_.pool, sizeof(hello_.pool));
  const zp::StoreAs by_default = services_.store.store_as();
  const auto wanted_codec = codec.empty() ? by_default.codec : zp::FindCodec(codec);
  if (!wanted_codec.has_value()) {
    return Refuse(fmt::format("there is no codec '{}' here, but {}; see --codec", codec,
                              fmt::join(zp::kCodecNames, ", ")));
  }
  const auto wanted_pool = pool.empty() ? by_default.pool : zp::FindPool(pool);
  if (!wanted_pool.has_value()) {
    return Refuse(
        fmt::format("there is no pool '{}' here, but {}; see --pool", pool, fmt::join(zp::kPoolNames, ", ")));
  }
  store_as_ = {*wanted_codec, *wanted_pool};
  if (peer_.pid == 0)
    return Refuse(
        "the client is in a pid namespace that the daemon cannot see; run uzswapd there or on the host");
  auto memory = ProcessMemory::Open(peer_.pid);
  if (!memory.ok())
    return Refuse(fmt::format("{} ({}: {})", Explain(memory.error()), memory.error().op,
                              strerror(memory.error().sys_errno)));
  memory_ = std::move(*memory);

  const auto device = Userfaultfd::OpenDevice();
  if (!device.ok()) {
    return Refuse(fmt::format(
        "the daemon cannot use /dev/userfaultfd ({}: {}); `uzswap doctor`, run as the daemon's user, "
        "tells the fix",
        device.error().op, strerror(device.error().sys_errno)));
  }
  if (!Reply(wire::MessageType::kDevice, device->get())) return Next::kClose;
  state_ = State::kWantContext;
  return Next::kWait;
}

Connection::Next Connection::OnContext(zp::UniqueFd fd) {
  if (!fd.valid()) return Refuse("the Context message brought no userfaultfd");
  if (!IsUserfaultfd(fd.get())) {
    // Closed elsewhere: a file system of the peer's could keep the closing thread for ever.
    std::thread([stranger = std::make_shared<zp::UniqueFd>(std::move(fd))] { stranger->reset(); }).detach();
    return Refuse("the Context message's descriptor is not a fresh userfaultfd");
  }
  auto uffd = Userfaultfd::Adopt(std::move(fd));
  if (!uffd.ok()) return Refuse("the Context message's descriptor is unusable");
  const auto handshake = uffd->Handshake();
  if (!handshake.ok()) {
    if (handshake.error().code == zp::Errc::kInvalid)
      return Refuse("the Context message's descriptor is not a fresh userfaultfd");
    return Refuse(Explain(handshake.error()));
  }
  uffd_ = std::move(*uffd);
  auto channel = AgentChannel::Create();
  if (!channel.ok()) return Refuse(Explain(channel.error()));
  channel_ = std::move(*channel);
  wire::RingOffer offer{};
  offer.header = MakeHeader(wire::MessageType::kRing, sizeof(offer));
  offer.ring_bytes = wire::kRingBytes;
  offer.slots = wire::kRingSlots;
  if (!SendPacket(socket_->get(), AsBytes(offer), channel_->ring_fd()).ok()) return Next::kClose;
  state_ = State::kWantReady;
  return Next::kWait;
}

// The same-mm proof: a nonce goes in through the userfaultfd and must come out at the same address of the
// process that the socket's credentials name, and be known to the peer.
Connection::Next Connection::OnReady() {
  if (getrandom(&nonce_, sizeof(nonce_), 0) != sizeof(nonce_))
    return Refuse("the daemon has no random numbers");
  alignas(4096) std::byte page[zp::kPageBytes] = {};
  memcpy(page, &nonce_, sizeof(nonce_));
  if (uffd_.Copy(hello_.staging_start, page, 1).outcome != CopyOutcome::kCopied) {
    return Refuse("the agent's staging memory is not registered with its userfaultfd");
  }
  uint64_t seen = 0;
  if (!memory_.IsPlainMemory(hello_.staging_start, hello_.staging_bytes))
    return Refuse("the agent's staging memory is no plain memory");
  if (!memory_.Read(hello_.staging_start, &seen, sizeof(seen)) || seen != nonce_) {
    return Refuse("the userfaultfd does not belong to the process that connected");
  }
  if (!Reply(wire::MessageType::kChallenge, -1)) return Next::kClose;
  state_ = State::kWantProof;
  return Next::kWait;
}

Connection::Next Connection::OnProof(std::span<const std::byte> packet) {
  wire::Proof proof{};
  if (packet.size() != sizeof(proof)) return Refuse("malformed Proof: its size is wrong");
  memcpy(&proof, packet.data(), sizeof(proof));
  if (proof.nonce != nonce_) return Refuse("the proof does not match: another process's userfaultfd?");
  channel_->SetSocket(socket_);
  const Client::AgentRanges ranges{
      {hello_.arena_start, hello_.arena_start + hello_.arena_bytes},
      {hello_.staging_start, hello_.staging_start + hello_.staging_bytes},
      {hello_.notes_start, hello_.notes_start == 0 ? 0 : hello_.notes_start + wire::kNotesBytes}};
  auto client =
      Client::Create(services_, {peer_.pid, peer_.uid, ReadComm(peer_.pid)}, std::move(uffd_),
                     std::move(memory_), std::move(channel_), ranges, hello_.limit_bytes, store_as_);
  if (!client.ok()) return Refuse(Explain(client.error()));
  client_ = std::move(*client);
  // Before the agent is told: one that was, and of whom no successor knows, would have a program wait at its
  // barrier for ever. One that is not told gives up, with nothing taken from it.
  client_->Publish();
  ZP_PAUSE_POINT("attach.published");
  wire::Welcome welcome{};
  welcome.header = MakeHeader(wire::MessageType::kWelcome, sizeof(welcome));
  welcome.client_id = client_->id();
  if (!SendPacket(socket_->get(), AsBytes(welcome)).ok()) return Next::kClose;
  ZP_PAUSE_POINT("attach.welcomed");
  state_ = State::kAttached;
  return Next::kAttached;
}

}  // namespace uzswap
