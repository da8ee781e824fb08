#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/sys/uapi.h"
#include "tools/agent/agent_state.h"
#include "tools/agent/syscalls.h"

namespace uzswap::agent {
namespace {

using wire::PageResult;

constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kRelease = std::memory_order_release;

void SetResult(wire::Ring& ring, uint32_t slot, PageResult result) {
  ring.result[slot].store(result, kRelease);
}

// Takes the gate for one MOVE. The reader holds it for microseconds, seldom for the application of an event:
// spin a little, then give the CPU away.
bool TakeGate(wire::Ring& ring) {
  for (uint32_t tries = 0;; ++tries) {
    uint32_t expected = wire::kGateFree;
    if (ring.header.gate.compare_exchange_weak(expected, wire::kGateAgent, std::memory_order_acq_rel))
      return true;
    if (expected == wire::kGateRevoked) return false;
    if (tries < 64) {
      __builtin_ia32_pause();
    } else {
      const long pause[2] = {0, tries < 1000 ? 20'000 : 500'000};
      Sys(SYS_nanosleep, pause, 0L);
      if (ring.header.command.load(kAcquire) != wire::kRunning) return false;
    }
  }
}

// Returns false if the daemon took the gate by force meanwhile.
bool ReleaseGate(wire::Ring& ring) {
  uint32_t expected = wire::kGateAgent;
  return ring.header.gate.compare_exchange_strong(expected, wire::kGateFree, std::memory_order_acq_rel);
}

enum class MoveOutcome { kGoOn, kStale };

// Moves slots [first, first+count), whose pages are adjacent, under the gate. Stops at the first page that
// the kernel refuses, records why, and goes on behind it.
MoveOutcome MoveRun(AgentState& state, const uint64_t* page, uint32_t first, uint32_t count) {
  wire::Ring& ring = *state.ring;
  uint32_t at = first;
  const uint32_t end = first + count;
  uint32_t attempt = count;  // pages tried by the next ioctl; 1 after EINVAL, which does not say which page
  while (at < end) {
    if (attempt > end - at) attempt = end - at;
    uffdio_move move{};
    move.dst = state.staging + uint64_t{at} * kPage;
    move.src = page[at];
    move.len = uint64_t{attempt} * kPage;
    const long ret = Sys(SYS_ioctl, state.uffd, UFFDIO_MOVE, &move);
    uint32_t done = move.move > 0 ? static_cast<uint32_t>(static_cast<uint64_t>(move.move) / kPage) : 0;
    if (done > attempt) done = attempt;
    for (uint32_t i = 0; i < done; ++i) {
      // Unless the daemon overruled us meanwhile, found the page in staging and took it from there.
      uint32_t expected = wire::kPending_;
      ring.result[at + i].compare_exchange_strong(expected, wire::kMoved, std::memory_order_acq_rel);
    }
    at += done;
    if (ret == 0 || done > 0) continue;  // partial: the next round learns the reason
    switch (-ret) {
      case EAGAIN:  // an event of this process is undelivered (fact 4.2): the command is overtaken
        return MoveOutcome::kStale;
      case EBUSY:
        SetResult(ring, at++, wire::kBusy);
        break;
      case ENOENT:
        SetResult(ring, at++, wire::kHole);
        break;
      case EINVAL:
        if (attempt > 1) {
          attempt = 1;  // the run crosses mappings, or one page's is unfit: ask one by one
        } else {
          SetResult(ring, at++, wire::kNotOurs);
        }
        break;
      case EEXIST:  // the program has locked all its memory, and staging with it (fact 5.13)
        state.staging_populated = true;
        SetResult(ring, at++, wire::kNotOurs);
        break;
      case EFAULT:
        SetResult(ring, at++, wire::kNotOurs);
        break;
      default:
        SetResult(ring, at++, wire::kFailed);
        break;
    }
  }
  return MoveOutcome::kGoOn;
}

void MarkRest(wire::Ring& ring, uint32_t from, uint32_t count, PageResult result) {
  for (uint32_t i = from; i < count; ++i) {
    if (ring.result[i].load(kAcquire) == wire::kPending_) SetResult(ring, i, result);
  }
}

// Each gate holds at most kPagesPerGate pages; the copy follows at once, outside the gate, so that a fault on
// a page that just left is answered soon. Returns false if the command was revoked.
void DoMove(AgentState& state, uint32_t count, uint64_t seq) {
  wire::Ring& ring = *state.ring;
  uint32_t at = 0;
  while (at < count) {
    uint32_t end = at + 1;
    const uint32_t limit = at + wire::kPagesPerGate < count ? at + wire::kPagesPerGate : count;
    while (end < limit && ring.page[end] == ring.page[end - 1] + kPage) ++end;
    if (!TakeGate(ring)) return;
    MoveOutcome outcome = MoveOutcome::kStale;
    if (ring.header.event_seq.load(kAcquire) == seq) outcome = MoveRun(state, ring.page, at, end - at);
    const bool mine = ReleaseGate(ring);
    for (uint32_t i = at; i < end; ++i) {
      if (ring.result[i].load(std::memory_order_relaxed) != wire::kMoved) continue;
      __builtin_memcpy(ring.data[i], reinterpret_cast<const void*>(state.staging + uint64_t{i} * kPage),
                       kPage);
      SetResult(ring, i, wire::kCopied);
    }
    if (!mine) return;
    if (outcome == MoveOutcome::kStale) {
      MarkRest(ring, at, count, wire::kStale);
      return;
    }
    at = end;
  }
}

// Un-shares pages after a fork (fact 6.2). May fault on an evicted page and wait for the daemon, which
// therefore never waits for this while it holds anything that a fault needs.
void DoPopulate(AgentState& state, uint32_t count) {
  wire::Ring& ring = *state.ring;
  uint32_t at = 0;
  while (at < count) {
    uint32_t end = at + 1;
    while (end < count && ring.page[end] == ring.page[end - 1] + kPage) ++end;
    const long ret = Sys(SYS_madvise, ring.page[at], uint64_t{end - at} * kPage, MADV_POPULATE_WRITE);
    for (uint32_t i = at; i < end; ++i) SetResult(ring, i, ret == 0 ? wire::kHole : wire::kNotOurs);
    at = end;
  }
}

int64_t ParseNumber(const char*& p) {
  while (*p == ' ') ++p;
  bool negative = false;
  if (*p == '-') {
    negative = true;
    ++p;
  }
  uint64_t value = 0;
  if (p[0] == '0' && p[1] == 'x') {
    for (p += 2;; ++p) {
      const char c = *p;
      if (c >= '0' && c <= '9') {
        value = value * 16 + static_cast<uint64_t>(c - '0');
      } else if (c >= 'a' && c <= 'f') {
        value = value * 16 + static_cast<uint64_t>(c - 'a' + 10);
      } else {
        break;
      }
    }
  } else {
    for (; *p >= '0' && *p <= '9'; ++p) value = value * 10 + static_cast<uint64_t>(*p - '0');
  }
  return negative ? -static_cast<int64_t>(value) : static_cast<int64_t>(value);
}

// "<tid>/syscall", relative to the task directory.
void TaskPath(char* out, const char* tid) {
  const char* parts[] = {tid, "/syscall"};
  for (const char* part : parts) {
    while (*part != 0) *out++ = *part++;
  }
  *out = 0;
}

void ReadThread(int tasks, const char* name, int32_t tid, wire::ThreadRecord& record) {
  record = {};
  record.tid = tid;
  record.syscall = -2;
  uint64_t head = 0;
  uint64_t length = 0;
  if (Sys(SYS_get_robust_list, tid, &head, &length) == 0) record.robust_list = head;
  char path[64];
  TaskPath(path, name);
  const long fd = Sys(SYS_openat, tasks, path, O_RDONLY | O_CLOEXEC);
  if (IsError(fd)) return;
  char text[256];
  const long got = Sys(SYS_read, fd, text, sizeof(text) - 1);
  Sys(SYS_close, fd);
  if (got <= 0) return;
  text[got] = 0;
  if (text[0] == 'r') return;  // "running"
  const char* p = text;
  record.syscall = static_cast<int32_t>(ParseNumber(p));
  if (record.syscall >= 0) {
    record.args[0] = static_cast<uint64_t>(ParseNumber(p));
    record.args[1] = static_cast<uint64_t>(ParseNumber(p));
  }
}

void DoThreads(AgentState& state) {
  wire::Ring& ring = *state.ring;
  auto* records = reinterpret_cast<wire::ThreadRecord*>(ring.data);
  ring.header.thread_count = ~uint32_t{0};  // unless all goes well: an incomplete list would be believed
  if (state.tasks < 0 || IsError(Sys(SYS_lseek, state.tasks, 0, SEEK_SET))) return;
  uint32_t count = 0;
  for (;;) {
    const long got = Sys(SYS_getdents64, state.tasks, state.dirents, sizeof(state.dirents));
    if (got < 0) return;
    if (got == 0) break;
    for (long offset = 0; offset < got;) {
      const auto* entry = reinterpret_cast<const dirent64*>(state.dirents + offset);
      offset += entry->d_reclen;
      const char* name = entry->d_name;
      if (*name < '0' || *name > '9') continue;
      const char* p = name;
      const auto tid = static_cast<int32_t>(ParseNumber(p));
      if (tid == state.own_tid) continue;
      if (count >= wire::kMaxThreadRecords) return;
      ReadThread(state.tasks, name, tid, records[count++]);
    }
  }
  ring.header.thread_count = count;
}

// The descriptor table of this thread has no stderr; the program's is borrowed for one line.
void SayLost() {
  static const char line[] =
      "uzswap: the daemon ended and has no successor; where this process touches what it held, it waits "
      "until it is killed\n";
  const long self = Sys(SYS_pidfd_open, Sys(SYS_getpid), 0);
  const long out = IsError(self) ? self : Sys(SYS_pidfd_getfd, self, 2, 0);
  if (!IsError(out)) Sys(SYS_write, out, line, sizeof(line) - 1);
  if (!IsError(out)) Sys(SYS_close, out);
  if (!IsError(self)) Sys(SYS_close, self);
}

[[noreturn]] void HoldForEver() {
  SayLost();
  for (;;) {
    uint32_t word = 0;
    Sys(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, 0L);
  }
}

[[noreturn]] void ExitThread() {
  for (;;) Sys(SYS_exit, 0);
}

[[noreturn]] void Leave(AgentState& state) {
  // The barrier page stays mapped: a thread of the program may be about to use it.
  uffdio_range range{state.staging, wire::kStagingBytes + kBarrierBytes};
  Sys(SYS_ioctl, state.uffd, UFFDIO_UNREGISTER, &range);
  Sys(SYS_munmap, state.staging, wire::kStagingBytes);
  Sys(SYS_munmap, state.ring, wire::kRingBytes);
  Sys(SYS_close, state.socket);
  Sys(SYS_close, state.uffd);
  ExitThread();
}

// Returns false if there is nothing to report: the command was revoked before it began. One that is revoked
// while it runs is reported, so that the daemon knows when the ring is free again.
bool Run(AgentState& state) {
  wire::Ring& ring = *state.ring;
  uint32_t expected = wire::kPending;
  if (!ring.header.command.compare_exchange_strong(expected, wire::kRunning, std::memory_order_acq_rel))
    return false;
  const uint32_t opcode = ring.header.opcode;
  const uint32_t count = ring.header.count < wire::kRingSlots ? ring.header.count : wire::kRingSlots;
  switch (opcode) {
    case wire::kOpMove:
      DoMove(state, count, ring.header.seq);
      break;
    case wire::kOpPopulate:
      DoPopulate(state, count);
      break;
    case wire::kOpRelease:
      EmptyStaging(state);
      break;
    case wire::kOpThreads:
      DoThreads(state);
      break;
    case wire::kOpExit:
      Leave(state);
    default:
      break;
  }
  ring.header.agent_heartbeat.fetch_add(1, std::memory_order_relaxed);
  // Also where it was revoked meanwhile: the ring is free again.
  ring.header.command.store(wire::kDone, kRelease);
  return true;
}

}  // namespace

void ServeCommands(AgentState& state) {
  wire::Bare report{};
  report.header = {wire::kMagic, wire::kVersion, static_cast<uint16_t>(wire::MessageType::kReport),
                   sizeof(report), 0};
  for (;;) {
    const long got = Sys(SYS_recvfrom, state.socket, state.packet, sizeof(state.packet), 0, 0L, 0L);
    if (got == -EINTR) continue;
    if (got <= 0) break;
    const auto* header = reinterpret_cast<const wire::Header*>(state.packet);
    if (got < static_cast<long>(sizeof(*header)) || header->magic != wire::kMagic) continue;
    if (header->type != static_cast<uint16_t>(wire::MessageType::kDoorbell)) continue;
    if (Run(state)) Sys(SYS_sendto, state.socket, &report, sizeof(report), MSG_NOSIGNAL, 0L, 0);
  }
  HoldForEver();
}

}  // namespace uzswap::agent
