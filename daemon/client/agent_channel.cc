#include "daemon/client/agent_channel.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>

#include "daemon/sys/packet_socket.h"

namespace uzswap {

using std::chrono::steady_clock;

namespace {
// There is one report for each command; a client that sends many shall not hold us up.
constexpr int kReportsPerLook = 8;
}  // namespace

zp::Result<std::unique_ptr<AgentChannel>> AgentChannel::Create() {
  // Sealed in size before a client has it: one that is cut short would be a SIGBUS for us.
  zp::UniqueFd fd(memfd_create("uzswap-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid() || ftruncate(fd.get(), static_cast<off_t>(wire::kRingBytes)) != 0 ||
      fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return zp::ErrnoError("creating the ring");
  }
  zp::Mapping mapping = ZP_TRY(zp::Mapping::Shared(fd.get(), 0, wire::kRingBytes));
  auto channel = std::unique_ptr<AgentChannel>(new AgentChannel(std::move(fd), std::move(mapping)));
  wire::RingHeader& header = channel->ring()->header;
  header.magic = wire::kRingMagic;
  header.version = wire::kRingVersion;
  header.slots = wire::kRingSlots;
  return channel;
}

zp::Result<std::unique_ptr<AgentChannel>> AgentChannel::Adopt(zp::UniqueFd ring) {
  struct stat status {};
  constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;
  if (fstat(ring.get(), &status) != 0 || status.st_size != static_cast<off_t>(wire::kRingBytes) ||
      (fcntl(ring.get(), F_GET_SEALS) & kSizeSeals) != kSizeSeals) {
    return zp::Error{zp::Errc::kInvalid, 0, "the ring of a client"};
  }
  zp::Mapping mapping = ZP_TRY(zp::Mapping::Shared(ring.get(), 0, wire::kRingBytes));
  return std::unique_ptr<AgentChannel>(new AgentChannel(std::move(ring), std::move(mapping)));
}

bool AgentChannel::Settled() const {
  const uint32_t command = ring()->header.command.load(std::memory_order_acquire);
  return command == wire::kIdle || command == wire::kDone;
}

// A client that sends anything but reports here is not our agent any more.
void AgentChannel::TakeReports() {
  for (int taken = 0; taken < kReportsPerLook && !gone_; ++taken) {
    std::byte buffer[256];
    auto packet = ReceivePacket(socket_->get(), buffer, Descriptors::kRefuse);
    if (!packet.ok() && packet.error().code == zp::Errc::kAgain) return;
    wire::Header header{};
    if (packet.ok() && packet->bytes >= sizeof(header)) memcpy(&header, buffer, sizeof(header));
    gone_ = header.type != static_cast<uint16_t>(wire::MessageType::kReport);
  }
}

bool AgentChannel::Ready() {
  if (gone_ || socket_ == nullptr) return false;
  TakeReports();
  return Settled() && !gone_;
}

void AgentChannel::ResetResults() {
  for (auto& result : ring()->result) result.store(wire::kPending_, std::memory_order_relaxed);
}

zp::Status AgentChannel::Post(wire::Opcode opcode, std::span<const uint64_t> pages, uint64_t seq) {
  if (!Ready())
    return zp::Error{gone_ ? zp::Errc::kGone : zp::Errc::kBusy, 0, "posting a command to the agent"};
  wire::Ring& shared = *ring();
  const size_t count = std::min<size_t>(pages.size(), wire::kRingSlots);
  ResetResults();
  for (size_t i = 0; i < count; ++i) shared.page[i] = pages[i];
  shared.header.opcode = opcode;
  shared.header.count = static_cast<uint32_t>(count);
  shared.header.seq = seq;
  shared.header.command.store(wire::kPending, std::memory_order_release);
  wire::Bare doorbell{MakeHeader(wire::MessageType::kDoorbell, sizeof(wire::Bare))};
  auto sent = SendPacket(socket_->get(), AsBytes(doorbell));
  if (!sent.ok()) {
    if (sent.error().code == zp::Errc::kGone) gone_ = true;
    // Unless the doorbell of an earlier, revoked command has made the agent begin already.
    uint32_t expected = wire::kPending;
    if (shared.header.command.compare_exchange_strong(expected, wire::kIdle, std::memory_order_acq_rel))
      return sent;
  }
  return zp::OkStatus();
}

AgentChannel::AwaitOutcome AgentChannel::Await(std::chrono::milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  while (!Settled()) {
    TakeReports();
    if (Settled()) break;
    if (gone_) return AwaitOutcome::kGone;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - steady_clock::now());
    if (left.count() <= 0) return AwaitOutcome::kTimeout;
    pollfd waiting{socket_->get(), POLLIN, 0};
    (void)poll(&waiting, 1, static_cast<int>(left.count()));
  }
  return AwaitOutcome::kDone;
}

bool AgentChannel::RevokePending() {
  uint32_t expected = wire::kPending;
  // The agent will find nothing to run behind this doorbell.
  return ring()->header.command.compare_exchange_strong(expected, wire::kIdle, std::memory_order_acq_rel);
}

void AgentChannel::MarkRevoked() {
  uint32_t expected = wire::kRunning;  // else it is over already
  ring()->header.command.compare_exchange_strong(expected, wire::kRevoked, std::memory_order_acq_rel);
}

bool AgentChannel::TryTakeGate(std::chrono::microseconds patience) {
  auto& gate = ring()->header.gate;
  const auto take = [&] {
    uint32_t expected = wire::kGateFree;
    return gate.compare_exchange_weak(expected, wire::kGateReader, std::memory_order_acq_rel);
  };
  for (int i = 0; i < 100; ++i) {
    if (take()) return true;
    __builtin_ia32_pause();
  }
  const auto deadline = steady_clock::now() + patience;
  do {
    std::this_thread::sleep_for(std::chrono::microseconds(20));
    if (take()) return true;
  } while (steady_clock::now() < deadline);
  return false;
}

void AgentChannel::ReleaseGate() {
  auto& gate = ring()->header.gate;
  uint32_t expected = wire::kGateReader;
  gate.compare_exchange_strong(expected, wire::kGateFree, std::memory_order_acq_rel);
}

void AgentChannel::SeizeGate() { ring()->header.gate.store(wire::kGateReader, std::memory_order_release); }

namespace {

// Shared memory is copied by words, each of which is read and written whole: it has no owner that a lock
// could name.
void CopyOut(const uint8_t* shared, void* to, size_t bytes) {
  static_assert(std::atomic_ref<uint64_t>::is_always_lock_free);
  auto* from = reinterpret_cast<uint64_t*>(const_cast<uint8_t*>(shared));
  for (size_t i = 0; i < bytes / sizeof(uint64_t); ++i) {
    const uint64_t word = std::atomic_ref(from[i]).load(std::memory_order_relaxed);
    memcpy(static_cast<std::byte*>(to) + i * sizeof(word), &word, sizeof(word));
  }
}

}  // namespace

void AgentChannel::CopyPage(uint32_t slot, std::byte* to) const {
  CopyOut(ring()->data[slot], to, wire::kRingPageBytes);
}

void AgentChannel::SetPage(uint32_t slot, const std::byte* from) {
  auto* to = reinterpret_cast<uint64_t*>(ring()->data[slot]);
  for (size_t i = 0; i < wire::kRingPageBytes / sizeof(uint64_t); ++i) {
    uint64_t word = 0;
    memcpy(&word, from + i * sizeof(word), sizeof(word));
    std::atomic_ref(to[i]).store(word, std::memory_order_relaxed);
  }
}

std::optional<std::vector<wire::ThreadRecord>> AgentChannel::Threads() const {
  const uint32_t count = ring()->header.thread_count;
  if (count == 0 || count > wire::kMaxThreadRecords) return std::nullopt;
  std::vector<wire::ThreadRecord> threads(count);
  static_assert(sizeof(wire::ThreadRecord) % sizeof(uint64_t) == 0);
  CopyOut(ring()->data[0], threads.data(), count * sizeof(wire::ThreadRecord));
  return threads;
}

}  // namespace uzswap
