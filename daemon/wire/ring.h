// The ring: memory shared by one agent and the daemon. It carries one command at a time, the results of its
// pages, the gate, and the content of staged pages.
//
// Layout (a memfd of kRingBytes, mapped shared by both):
//
//   [0, 4096)                          RingHeader: gate, event sequence, command word
//   [4096, 4096 + 512*8)               page[]:   addresses of the command's pages, by slot
//   [8192, 8192 + 512*4 → 12288)       result[]: PageResult of each slot
//   [kDataOffset, + 512*4096)          data:     content of staged page i in slot i
//
// Trust: the client can write all of it at any time. The daemon keeps its own copy of everything that it
// decides by (addresses, sequence, counts) and reads from here only result[], data and the two words `gate`
// and `command`; a lie there harms the liar's own pages alone. Data is copied before it is encoded.
//
// The gate (hazard H1): the agent holds it (kGateAgent) around each UFFDIO_MOVE, the daemon (kGateReader)
// around read(2) of the userfaultfd and the application of an event. The agent compares `event_seq` with the
// command's `seq` while it holds the gate, so no MOVE acts on a decision that an event has overtaken. An
// agent that is stopped while it holds the gate is overruled: the daemon unregisters staging, after which no
// MOVE can succeed, and then takes the gate by force (kGateRevoked); the agent's release then fails and it
// drops the command.
#pragma once

#include <stdint.h>

#include <atomic>

namespace uzswap::wire {

inline constexpr uint64_t kRingMagic = 0x31474e52'50535a55;  // "UZSPRNG1"
inline constexpr uint32_t kRingVersion = 1;
inline constexpr uint32_t kRingSlots = 512;  // one MOVE batch; fact H17: at most 512 pages an ioctl
inline constexpr uint64_t kRingPageBytes = 4096;
inline constexpr uint64_t kDataOffset = 16384;
inline constexpr uint64_t kRingBytes = kDataOffset + kRingSlots * kRingPageBytes;
inline constexpr uint64_t kStagingBytes = kRingSlots * kRingPageBytes;
// The gate is held for at most this many pages' MOVE at a time, so that a fault waits tens of µs, not
// hundreds.
inline constexpr uint32_t kPagesPerGate = 128;

enum GateState : uint32_t { kGateFree = 0, kGateAgent = 1, kGateReader = 2, kGateRevoked = 3 };

// IDLE → PENDING by the daemon, → RUNNING and → DONE by the agent; PENDING → IDLE (taken back) and RUNNING →
// REVOKED (overruled) by the daemon. Whoever reads IDLE or DONE knows that the agent is at no command.
enum CommandState : uint32_t { kIdle = 0, kPending = 1, kRunning = 2, kDone = 3, kRevoked = 4 };

enum Opcode : uint32_t {
  kOpMove = 1,      // move page[i] to staging slot i, copy it to data slot i
  kOpPopulate = 2,  // MADV_POPULATE_WRITE page[i]: break sharing after a fork; never under the gate
  kOpRelease = 3,   // empty staging
  kOpThreads = 4,   // list threads: see ThreadRecord, written to the data area
  kOpExit = 5,      // detach: unregister staging, close everything, end the agent's thread
};

// What became of one page of a command. Order matters: from kMoved on the page is in staging.
enum PageResult : uint32_t {
  kPending_ = 0,  // not reached
  kHole = 1,      // nothing there
  kBusy = 2,      // pinned (O_DIRECT, io_uring, GUP), shared after fork, or momentarily referenced
  kNotOurs = 3,   // no such mapping, wrong protection, locked, guard
  kStale = 4,     // the command's sequence was overtaken, or the kernel has an undelivered event
  kFailed = 5,    // MOVE is refused altogether (seccomp)
  kMoved = 16,    // in staging, not yet copied to data
  kCopied = 17,   // in staging, and content in data
};

// kOpThreads: data holds `thread_count` of these. Taken inside the process, where no privilege is needed.
struct ThreadRecord {
  int32_t tid;
  int32_t syscall;   // number of the system call that it is blocked in; -1 blocked outside one; -2 running
  uint64_t args[2];  // its first two arguments (address, length for madvise)
  uint64_t robust_list;  // head registered with the kernel: lies within the thread's descriptor (TLS)
};
static_assert(sizeof(ThreadRecord) == 32);
inline constexpr uint32_t kMaxThreadRecords = kRingSlots * kRingPageBytes / sizeof(ThreadRecord);

struct RingHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t slots;
  uint64_t reserved0[6];

  alignas(64) std::atomic<uint32_t> gate;

  alignas(64) std::atomic<uint64_t> event_seq;

  alignas(64) std::atomic<uint32_t> command;  // CommandState
  uint32_t opcode;
  uint32_t count;  // of page[] entries
  uint32_t thread_count;
  uint64_t seq;
  std::atomic<uint64_t> agent_heartbeat;  // counts commands finished
};
static_assert(sizeof(RingHeader) <= 4096);
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

struct Ring {
  RingHeader header;
  alignas(4096) uint64_t page[kRingSlots];
  alignas(4096) std::atomic<uint32_t> result[kRingSlots];
  alignas(4096) uint8_t pad_[4096];
  uint8_t data[kRingSlots][kRingPageBytes];
};
static_assert(sizeof(Ring) == kRingBytes);

}  // namespace uzswap::wire
