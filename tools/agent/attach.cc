#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "daemon/sys/uapi.h"
#include "daemon/wire/notes.h"
#include "tools/agent/agent_state.h"
#include "tools/agent/syscalls.h"

namespace uzswap::agent {
namespace {

constexpr long kHandshakeTimeoutSeconds = 5;
// A daemon that dies in the middle has a successor at the same socket.
constexpr int kHandshakeTries = 5;

void CopyText(char* to, const char* from, size_t capacity) {
  size_t i = 0;
  for (; from[i] != 0 && i + 1 < capacity; ++i) to[i] = from[i];
  to[i] = 0;
}

void Fill(wire::Header& header, wire::MessageType type, uint32_t length) {
  header.magic = wire::kMagic;
  header.version = wire::kVersion;
  header.type = static_cast<uint16_t>(type);
  header.length = length;
  header.reserved = 0;
}

// Sends one packet, with a descriptor if fd >= 0. Returns 0 or -errno.
long Send(int socket, const void* data, size_t bytes, int fd) {
  iovec io{const_cast<void*>(data), bytes};
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
    __builtin_memcpy(CMSG_DATA(head), &fd, sizeof(fd));
  }
  const long ret = Sys(SYS_sendmsg, socket, &message, MSG_NOSIGNAL);
  return ret < 0 ? ret : 0;
}

// Receives one packet into state.packet; *fd is the attached descriptor or -1. Returns its type or -errno.
long Receive(AgentState& state, int* fd) {
  iovec io{state.packet, sizeof(state.packet)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  *fd = -1;
  const long ret = Sys(SYS_recvmsg, state.socket, &message, MSG_CMSG_CLOEXEC);
  if (ret < 0) return ret;
  cmsghdr* head = CMSG_FIRSTHDR(&message);
  if (head != nullptr && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
    __builtin_memcpy(fd, CMSG_DATA(head), sizeof(*fd));
  }
  if (ret == 0) return -ECONNRESET;
  if (ret < static_cast<long>(sizeof(wire::Header))) return -EPROTO;
  const auto* header = reinterpret_cast<const wire::Header*>(state.packet);
  if (header->magic != wire::kMagic || header->version != wire::kVersion) return -EPROTONOSUPPORT;
  return header->type;
}

// Waits for a packet of `type`; a refusal's reason becomes the failure. Returns false on anything else.
bool Expect(AgentState& state, wire::MessageType type, const char* otherwise, int* fd = nullptr) {
  int received = -1;
  const long got = Receive(state, &received);
  if (got == static_cast<long>(type) && (fd == nullptr || received >= 0)) {
    if (fd != nullptr) {
      *fd = received;
    } else if (received >= 0) {
      Sys(SYS_close, received);
    }
    return true;
  }
  if (received >= 0) Sys(SYS_close, received);
  if (got == static_cast<long>(wire::MessageType::kRefused)) {
    auto* refused = reinterpret_cast<wire::Refused*>(state.packet);
    refused->reason[sizeof(refused->reason) - 1] = 0;
    CopyText(state.failure, refused->reason, sizeof(state.failure));
  } else if (got == -EPROTONOSUPPORT) {
    CopyText(
        state.failure,
        "the daemon speaks another version of the protocol; install agent and daemon of the same release",
        sizeof(state.failure));
  } else {
    CopyText(state.failure, otherwise, sizeof(state.failure));
    state.lost = got == -ECONNRESET;
  }
  return false;
}

bool Fail(AgentState& state, const char* why) {
  CopyText(state.failure, why, sizeof(state.failure));
  return false;
}

bool Connect(AgentState& state) {
  const long fd = Sys(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (IsError(fd)) return Fail(state, "cannot create a socket");
  state.socket = static_cast<int>(fd);
  const long timeout[2] = {kHandshakeTimeoutSeconds, 0};
  Sys(SYS_setsockopt, state.socket, SOL_SOCKET, SO_RCVTIMEO, timeout, sizeof(timeout));
  Sys(SYS_setsockopt, state.socket, SOL_SOCKET, SO_SNDTIMEO, timeout, sizeof(timeout));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  CopyText(address.sun_path, state.socket_path, sizeof(address.sun_path));
  if (IsError(Sys(SYS_connect, state.socket, &address, sizeof(address)))) {
    return Fail(state, "no daemon is reachable; start uzswapd, or use `uzswap run`");
  }
  return true;
}

bool MapStaging(AgentState& state) {
  // 2 MiB aligned, so that a whole huge page can move as one (fact 8.1): map twice the size and trim.
  const uint64_t size = wire::kStagingBytes;
  const long base = Sys(SYS_mmap, 0, 2 * size + kBarrierBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (IsError(base)) return Fail(state, "cannot map staging memory (an address space limit?)");
  const uint64_t start = static_cast<uint64_t>(base);
  const uint64_t aligned = (start + size - 1) & ~(size - 1);
  if (aligned > start) Sys(SYS_munmap, start, aligned - start);
  if (start + size > aligned) Sys(SYS_munmap, aligned + size + kBarrierBytes, start + size - aligned);
  state.staging = aligned;
  // A forked child has no agent; its copy of staging would only pin pages (hazard H8).
  Sys(SYS_madvise, aligned, size + kBarrierBytes, MADV_DONTFORK);
  Sys(SYS_madvise, aligned, size + kBarrierBytes, MADV_DONTDUMP);
  Sys(SYS_munlock, aligned, size + kBarrierBytes);  // fact 5.13: mlockall(MCL_FUTURE) would populate it
  Sys(SYS_madvise, aligned, size, MADV_DONTNEED);
  return true;
}

bool RegisterStaging(AgentState& state) {
  // Write-protect mode only: a stray touch must not raise a fault that nobody expects (fact 2.4).
  uffdio_register registration{};
  registration.range.start = state.staging;
  registration.range.len = wire::kStagingBytes + kBarrierBytes;
  registration.mode = UFFDIO_REGISTER_MODE_WP;
  return !IsError(Sys(SYS_ioctl, state.uffd, UFFDIO_REGISTER, &registration));
}

bool Handshake(AgentState& state) {
  wire::Hello hello{};
  Fill(hello.header, wire::MessageType::kHello, sizeof(hello));
  hello.limit_bytes = state.limit_bytes;
  hello.arena_start = state.arena_start;
  hello.arena_bytes = state.arena_bytes;
  hello.staging_start = state.staging;
  hello.staging_bytes = wire::kStagingBytes;
  hello.notes_start = state.notes;
  CopyText(hello.codec, state.codec, sizeof(hello.codec));
  CopyText(hello.pool, state.pool, sizeof(hello.pool));
  if (Send(state.socket, &hello, sizeof(hello), -1) != 0)
    return Fail(state, "the daemon closed the connection");

  int device = -1;
  if (!Expect(state, wire::MessageType::kDevice, "the daemon did not answer the attach", &device))
    return false;
  const long uffd = Sys(SYS_ioctl, device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
  Sys(SYS_close, device);
  if (IsError(uffd)) return Fail(state, "cannot create a userfaultfd (a seccomp filter?)");
  state.uffd = static_cast<int>(uffd);

  wire::Bare message{};
  Fill(message.header, wire::MessageType::kContext, sizeof(message));
  if (Send(state.socket, &message, sizeof(message), state.uffd) != 0)
    return Fail(state, "the daemon closed the connection");

  int ring_fd = -1;
  if (!Expect(state, wire::MessageType::kRing, "the daemon did not offer a ring", &ring_fd)) return false;
  const auto* offer = reinterpret_cast<const wire::RingOffer*>(state.packet);
  const bool fits = offer->ring_bytes == wire::kRingBytes && offer->slots == wire::kRingSlots;
  const long mapped =
      fits ? Sys(SYS_mmap, 0, wire::kRingBytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring_fd, 0) : -EPROTO;
  Sys(SYS_close, ring_fd);
  if (IsError(mapped))
    return Fail(state, "cannot map the ring (an address space limit, or another release's daemon)");
  state.ring = reinterpret_cast<wire::Ring*>(mapped);
  Sys(SYS_madvise, mapped, wire::kRingBytes, MADV_DONTFORK);
  Sys(SYS_madvise, mapped, wire::kRingBytes, MADV_DONTDUMP);
  if (state.ring->header.magic != wire::kRingMagic || state.ring->header.version != wire::kRingVersion) {
    return Fail(state, "the ring has another layout; install agent and daemon of the same release");
  }
  if (!RegisterStaging(state)) return Fail(state, "cannot register staging memory with userfaultfd");

  Fill(message.header, wire::MessageType::kReady, sizeof(message));
  if (Send(state.socket, &message, sizeof(message), -1) != 0)
    return Fail(state, "the daemon closed the connection");
  if (!Expect(state, wire::MessageType::kChallenge, "the daemon did not send its challenge")) return false;

  wire::Proof proof{};
  Fill(proof.header, wire::MessageType::kProof, sizeof(proof));
  proof.nonce = *reinterpret_cast<volatile uint64_t*>(state.staging);
  if (Send(state.socket, &proof, sizeof(proof), -1) != 0)
    return Fail(state, "the daemon closed the connection");
  if (!Expect(state, wire::MessageType::kWelcome, "the daemon did not confirm the attach")) return false;
  EmptyStaging(state);
  return true;
}

void CloseAll(AgentState& state) {
  if (state.uffd >= 0) Sys(SYS_close, state.uffd);
  if (state.socket >= 0) Sys(SYS_close, state.socket);
  if (state.ring != nullptr) Sys(SYS_munmap, state.ring, wire::kRingBytes);
  if (state.staging != 0) Sys(SYS_munmap, state.staging, wire::kStagingBytes + kBarrierBytes);
  state.uffd = state.socket = -1;
  state.ring = nullptr;
  state.staging = 0;
}

}  // namespace

void EmptyStaging(AgentState& state) {
  uffdio_range range{state.staging, wire::kStagingBytes};
  Sys(SYS_ioctl, state.uffd, UFFDIO_UNREGISTER, &range);
  if (state.staging_populated) {
    Sys(SYS_munlock, state.staging, wire::kStagingBytes + kBarrierBytes);
    state.staging_populated = false;
  }
  Sys(SYS_madvise, state.staging, wire::kStagingBytes, MADV_DONTNEED);
  RegisterStaging(state);
}

bool Attach(AgentState& state) {
  state.socket = state.uffd = -1;
  state.tasks =
      static_cast<int>(Sys(SYS_openat, AT_FDCWD, "/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  bool ok = false;
  for (int tries = 0; tries < kHandshakeTries && !ok; ++tries) {
    state.lost = false;
    ok = Connect(state) && MapStaging(state) && Handshake(state);
    if (ok) break;
    CloseAll(state);
    if (!state.lost) break;
  }
  if (ok) {
    const long forever[2] = {0, 0};
    Sys(SYS_setsockopt, state.socket, SOL_SOCKET, SO_RCVTIMEO, forever, sizeof(forever));
    Sys(SYS_setsockopt, state.socket, SOL_SOCKET, SO_SNDTIMEO, forever, sizeof(forever));
  }
  uint32_t expected = kAttaching;
  const bool told = state.attach.compare_exchange_strong(expected, ok ? kAttached : kFailed);
  Sys(SYS_futex, &state.attach, FUTEX_WAKE_PRIVATE, 1);
  if (ok && !told) CloseAll(state);  // the constructor gave up waiting; nothing was evicted yet
  if ((!ok || !told) && state.tasks >= 0) Sys(SYS_close, state.tasks);
  return ok && told;
}

}  // namespace uzswap::agent
