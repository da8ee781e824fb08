// How a test tells the threads of the application what to do: memory shared by the two processes.
//
// Idea: one mailbox per thread of the application; the test posts an operation and waits for its end. The
// mapping is shared, so uzswap never manages it, and no thread of the application touches memory that it was
// not told to.
//
// Threads: a mailbox has one poster at a time. `state` is a futex word, shared between processes.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace uzswap::test {

inline constexpr unsigned kBoxes = 16;
inline constexpr unsigned kFirstThreads = 6;  // boxes served from the start; 0 is the main thread's
inline constexpr uint64_t kScratchBytes = 64 * 1024;

enum class Op : uint32_t {
  kSyscall,      // args: number, a0 … a5; ret: as the kernel's, -errno
  kRead64,       // address
  kWrite64,      // address, value
  kFill,         // address, pages, generation
  kCheck,        // address, pages, generation; ret: 0, or the address of the first wrong word
  kIsZero,       // address, pages; ret: as kCheck
  kIncrement,    // address: adds one to the word until Shared::stop is set; ret: how often
  kLibcMadvise,  // address, bytes, advice: through libc, as programs do
  kFork,         // box: the child serves that box; ret: its pid
  kStartThread,  // box: a new pthread serves that box
  kJoinThread,   // box
  kQuit,         // ends the thread that serves this box
  kExec,         // becomes another program, which waits for ever
};

enum BoxState : uint32_t { kIdle = 0, kPosted = 1, kRunning = 2, kDone = 3 };

struct Mailbox {
  std::atomic<uint32_t> state;
  Op op;
  int64_t args[7];
  int64_t ret;
  int32_t signal;  // SIGSEGV or SIGBUS that the operation got; 0: none
  std::atomic<int32_t> tid;
};

struct Shared {
  std::atomic<uint32_t> ready;
  std::atomic<uint32_t> stop;
  Mailbox boxes[kBoxes];
  alignas(4096) unsigned char scratch[kScratchBytes];
};

inline void FutexWait(std::atomic<uint32_t>& word, uint32_t value, int timeout_ms = -1) {
  timespec timeout{timeout_ms / 1000, timeout_ms % 1000 * 1'000'000L};
  (void)syscall(SYS_futex, &word, FUTEX_WAIT, value, timeout_ms < 0 ? nullptr : &timeout, nullptr, 0);
}
inline void FutexWake(std::atomic<uint32_t>& word) {
  (void)syscall(SYS_futex, &word, FUTEX_WAKE, 1 << 30, nullptr, nullptr, 0);
}

// Word `i` of a page carries the page's address at the time of filling, a generation and its place.
inline uint64_t PatternWord(uint64_t page_address, uint64_t generation, uint64_t i) {
  return (page_address >> 12 << 24) ^ (generation << 16) ^ i ^ 0x5a00'0000'0000'0000;
}

}  // namespace uzswap::test
