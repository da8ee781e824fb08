// One userfaultfd: errno becomes meaning once, here.
//
// Idea: every ioctl that the daemon uses returns an outcome that its caller can switch over. Numbers in
// brackets are facts and hazards of daemon/DESIGN.md.
//
// Threads: all methods may be called from any thread at once; the kernel serialises what must be.
// Failure: an outcome, never an exception. What is unexpected is kFailed with errno kept in `sys_errno`.
#pragma once

#include <cstdint>
#include <span>

#include "daemon/sys/uapi.h"
#include "libzpool/base/fd.h"
#include "libzpool/base/result.h"
#include "libzpool/base/units.h"

namespace uzswap {

enum class CopyOutcome {
  kCopied,          // all of it
  kPartly,          // the first `pages` pages; ask again for the rest
  kAlreadyPresent,  // the first page is there; waiters were not woken
  kRetry,           // an event is undelivered: drop every lock, requeue the address, look up anew (H4, H16)
  kNoMapping,       // unmapped, unregistered, or the range crosses mappings
  kTargetGone,      // the process has ended or called exec
  kFailed,
};

struct CopyResult {
  CopyOutcome outcome;
  uint64_t pages = 0;  // resolved and woken
  int sys_errno = 0;
};

class Userfaultfd {
 public:
  static constexpr uint64_t kWantedFeatures =
      UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
      UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_POISON | UFFD_FEATURE_MOVE;

  static constexpr char kDevice[] = "/dev/userfaultfd";

  // The open device, after it was seen to make a userfaultfd. Errors carry errno: ENOENT, EACCES, EPERM (a
  // device policy) as open(2) gives them, ENOTTY where another file stands there.
  static zp::Result<zp::UniqueFd> OpenDevice();

  Userfaultfd() = default;
  // Takes over a descriptor received from a client or in a FORK message; sets O_NONBLOCK and CLOEXEC on it,
  // whatever the sender did (design §6: a blocking one would be dropped by the fd store).
  static zp::Result<Userfaultfd> Adopt(zp::UniqueFd fd);

  // The one-shot UFFDIO_API handshake (1.3). kPermission: EVENT_FORK needs CAP_SYS_PTRACE. kUnsupported: the
  // kernel lacks a feature (Linux 6.8 has all). kInvalid: not a fresh userfaultfd.
  zp::Status Handshake();

  // Registers missing mode. kNotFound: nothing (fit) is mapped there.
  zp::Status Register(uint64_t start, uint64_t bytes) const;
  void Unregister(uint64_t start, uint64_t bytes) const;
  void Wake(uint64_t start, uint64_t bytes) const;
  // Resolves `pages` pages from `address` with `source`'s content, or with zeros. Wakes their waiters.
  CopyResult Copy(uint64_t address, const void* source, uint64_t pages) const;
  CopyResult Zero(uint64_t address, uint64_t pages) const;
  // Marks a missing page lost: whoever touches it gets SIGBUS (14.2).
  CopyResult Poison(uint64_t address) const;
  // Whether, at some moment of the call, no change of the memory was made that is to be announced and was not
  // read yet. Costs a system call that does nothing.
  bool Quiet() const;
  // True if the process's memory is gone (exit, exec).
  bool TargetGone() const;

  // Reads up to `messages.size()` messages. 0: none was waiting. kNoMemory: a fork waits for a descriptor for
  // its child, which this process has none left for; its message stays in the queue.
  zp::Result<size_t> Read(std::span<uffd_msg> messages) const;

  int fd() const { return fd_.get(); }
  bool valid() const { return fd_.valid(); }

 private:
  explicit Userfaultfd(zp::UniqueFd fd) : fd_(std::move(fd)) {}
  zp::UniqueFd fd_;
};

}  // namespace uzswap
