// Functions of libc that the program calls here first. Calls that bypass libc are not seen; daemon/DESIGN.md
// says what that means.
#include "tools/agent/interpose.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "daemon/sys/uapi.h"
#include "tools/agent/agent_state.h"
#include "tools/agent/syscalls.h"

namespace uzswap::agent {

constinit Attachment attachment{};

namespace {

int WithErrno(long ret) {
  if (!IsError(ret)) return static_cast<int>(ret);
  errno = static_cast<int>(-ret);
  return -1;
}

// MADV_WIPEONFORK and MADV_KEEPONFORK change what the daemon looks up when it applies a fork: it must have
// applied the forks before this call first (hazards H11, H26). Two barriers, since the first may be read
// together with the fork, and its reader lets us go on before it applies either; the second is read after
// that.
void AwaitForks() {
  for (int barrier = 0; barrier < 2; ++barrier)
    Sys(SYS_madvise, attachment.barrier_page, kBarrierBytes, MADV_DONTNEED);
}

bool IsForkAdvice(int advice) { return advice == MADV_KEEPONFORK || advice == MADV_WIPEONFORK; }

bool IsAttached() { return attachment.barrier_page != 0 && Sys(SYS_getpid) == attachment.pid; }
// Nobody looks up what is wiped where a child forks that has no agent, so nothing of it may be stored: all of
// it comes home, and stays.
bool IsChild() { return attachment.barrier_page != 0 && Sys(SYS_getpid) != attachment.pid; }

// Gives `advice` for the first `bytes` bytes of the ranges.
void AdviseFirst(const iovec* ranges, size_t count, size_t bytes, int advice) {
  for (size_t i = 0; i < count && bytes > 0; ++i) {
    const size_t part = ranges[i].iov_len < bytes ? ranges[i].iov_len : bytes;
    Sys(SYS_madvise, ranges[i].iov_base, part, advice);
    bytes -= part;
  }
}

// Pages that hold mutexes of the kinds that the kernel writes.
void Keep(uint64_t mutex) {
  wire::KeptMutexes& kept = *attachment.kept;
  for (uint32_t i = 0; i < wire::kMaxKeptMutexes; ++i) {
    uint64_t found = kept.mutex[i].load(std::memory_order_relaxed);
    if (found == mutex) return;  // made again without having been destroyed
    if (found != 0 || !kept.mutex[i].compare_exchange_strong(found, mutex)) continue;
    uint32_t used = kept.used.load();
    while (used < i + 1 && !kept.used.compare_exchange_weak(used, i + 1)) {
    }
    kept.changes.fetch_add(1);
    return;
  }
  // No room for more than two thousand of them: this one may be evicted like any memory.
}

void Forget(uint64_t mutex) {
  wire::KeptMutexes& kept = *attachment.kept;
  const uint32_t used = kept.used.load();
  for (uint32_t i = 0; i < used && i < wire::kMaxKeptMutexes; ++i) {
    uint64_t found = mutex;
    if (kept.mutex[i].compare_exchange_strong(found, 0)) kept.changes.fetch_add(1);
  }
}

// Of glibc's pthread_mutex_t: PTHREAD_MUTEX_ROBUST_NORMAL_NP | PTHREAD_MUTEX_PRIO_INHERIT_NP.
constexpr int kKernelWrittenKinds = 16 | 32;

bool IsKernelWritten(const pthread_mutexattr_t* attributes) {
  int protocol = PTHREAD_PRIO_NONE;
  int robust = PTHREAD_MUTEX_STALLED;
  return (pthread_mutexattr_getprotocol(attributes, &protocol) == 0 && protocol == PTHREAD_PRIO_INHERIT) ||
         (pthread_mutexattr_getrobust(attributes, &robust) == 0 && robust == PTHREAD_MUTEX_ROBUST);
}

}  // namespace
}  // namespace uzswap::agent

using uzswap::agent::attachment;
using uzswap::agent::Sys;

extern "C" {

// libc's own, under its other name.
// NOLINTNEXTLINE(bugprone-reserved-identifier)
int __pthread_mutex_init(pthread_mutex_t*, const pthread_mutexattr_t*) noexcept;
// NOLINTNEXTLINE(bugprone-reserved-identifier)
int __pthread_mutex_destroy(pthread_mutex_t*) noexcept;

__attribute__((visibility("default"))) int madvise(void* address, size_t length, int advice) noexcept {
  if (uzswap::agent::IsForkAdvice(advice)) {
    if (uzswap::agent::IsAttached()) uzswap::agent::AwaitForks();
    if (uzswap::agent::IsChild()) Sys(SYS_madvise, address, length, MADV_POPULATE_READ);
  }
  const long ret = Sys(SYS_madvise, address, length, advice);
  if (ret == 0 && advice == MADV_GUARD_INSTALL) {
    // It drops pages and tells no userfaultfd (hazard H10). MADV_DONTNEED right behind it keeps the guard
    // markers and does tell: the daemon forgets what it stored of the range.
    Sys(SYS_madvise, address, length, MADV_DONTNEED);
    // A COPY that was under way may have replaced a marker; the daemon has forgotten the range by now.
    Sys(SYS_madvise, address, length, MADV_GUARD_INSTALL);
  }
  return uzswap::agent::WithErrno(ret);
}

// The same advice, to oneself (Linux 6.13): the kernel allows it for no other process.
__attribute__((visibility("default"))) ssize_t process_madvise(int pidfd, const iovec* ranges, size_t count,
                                                               int advice, unsigned flags) noexcept {
  if (uzswap::agent::IsForkAdvice(advice)) {
    if (uzswap::agent::IsAttached()) uzswap::agent::AwaitForks();
    if (uzswap::agent::IsChild()) uzswap::agent::AdviseFirst(ranges, count, ~size_t{0}, MADV_POPULATE_READ);
  }
  const long ret = Sys(SYS_process_madvise, pidfd, ranges, count, advice, flags);
  if (uzswap::agent::IsError(ret)) return uzswap::agent::WithErrno(ret);
  if (advice == MADV_GUARD_INSTALL) {
    // What was advised, which may be less than all.
    uzswap::agent::AdviseFirst(ranges, count, static_cast<size_t>(ret), MADV_DONTNEED);
    uzswap::agent::AdviseFirst(ranges, count, static_cast<size_t>(ret), MADV_GUARD_INSTALL);
  }
  return ret;
}

__attribute__((visibility("default"))) int pthread_mutex_init(
    pthread_mutex_t* mutex, const pthread_mutexattr_t* attributes) noexcept {
  const int error = __pthread_mutex_init(mutex, attributes);
  if (error == 0 && attributes != nullptr && attachment.kept != nullptr &&
      uzswap::agent::IsKernelWritten(attributes))
    uzswap::agent::Keep(reinterpret_cast<uint64_t>(mutex));
  return error;
}

__attribute__((visibility("default"))) int pthread_mutex_destroy(pthread_mutex_t* mutex) noexcept {
  if (attachment.kept != nullptr && (mutex->__data.__kind & uzswap::agent::kKernelWrittenKinds) != 0)
    uzswap::agent::Forget(reinterpret_cast<uint64_t>(mutex));
  return __pthread_mutex_destroy(mutex);
}

}  // extern "C"
