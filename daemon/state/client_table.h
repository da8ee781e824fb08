// The client table: what a successor daemon has to know, in a memfd with a fixed layout.
//
// Layout: [TableHeader, 4096 bytes][ClientRecord × kMaxClients][ClientStats × kMaxClients, to a whole page]
// [AddressRange × kRangesPerClient × kMaxClients]. Sparse: a client costs memory while its number is used.
// Records say which descriptors the daemon had open, by number: the keeper shares the daemon's descriptor
// table, and a successor starts with a copy of it (keeper/keeper.h). userfaultfd messages are read *into* the
// record of their client: an event is applied from there and only then counted as done, so that a successor
// finds the last ones taken and goes on with them. Counters live here too, so that a restart does not set
// them back.
//
// The table also gives out client numbers, which the handle table's owner words carry; a number is reused
// only after its client has gone.
//
// Threads: Allocate and Free are thread-safe; a record belongs to its Client, under the Client's own locks.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "daemon/state/client_stats.h"
#include "daemon/state/range_set.h"
#include "daemon/sys/process_memory.h"
#include "daemon/sys/uapi.h"
#include "libzpool/base/fd.h"
#include "libzpool/base/mapping.h"
#include "libzpool/base/mutex.h"
#include "libzpool/base/result.h"
#include "libzpool/frame/topology.h"

namespace uzswap {

inline constexpr uint64_t kClientTableMagic = 0x31544c43'50535a55;  // "UZSPCLT1"
inline constexpr uint32_t kClientTableVersion = 4;
inline constexpr uint32_t kMaxClients = 65536;  // of the 2^19 that an owner word can name
inline constexpr uint32_t kMessagesPerRead = 8;
// Separate registered ranges that a successor is told of; a process may have 65530 mappings.
inline constexpr uint32_t kRangesPerClient = 4096;

struct TableHeader {
  uint64_t magic;
  uint32_t layout_version;
  uint32_t record_bytes;
  uint32_t capacity;
  uint32_t stats_bytes;

  // 1 while what is in the files must not be lost: whoever finds the daemon dead starts a successor.
  std::atomic<uint32_t> armed;
  // The keeper that is to do so; one that finds another's number here has been relieved.
  std::atomic<int32_t> keeper_pid;
  uint32_t restarts;
  uint32_t reserved;
  uint64_t started_ns;    // CLOCK_MONOTONIC, when the first daemon of this state started
  uint64_t restarted_ns;  // and when the last one did, 0: never
  // Descriptors that are not a client's; -1: none.
  int32_t listener_fd, handles_fd, index_fd;
  int32_t frames_fd[zp::kMaxNodes];
  // What the keeper executes next; empty: the same program again.
  char successor[1024];
};
static_assert(sizeof(TableHeader) <= 4096);

// What stands before it is written before what stands behind: enough for a successor, which looks when this
// process is dead, and a processor's stores are seen by itself in order.
inline void CompilerBarrier() { std::atomic_signal_fence(std::memory_order_seq_cst); }

// A number that is kReserved is being attached or forked: nothing depends on it yet.
enum class ClientState : uint32_t { kFree = 0, kLive = 1, kDying = 2, kReserved = 3 };

// What mremap moved lately: kept while an UNMAP may be read that is older than the mapping it would drop.
struct Moves {
  // Where something arrived.
  struct Arrival {
    uint64_t start, end;  // empty: nothing is there any more
    uint64_t number;      // they are counted
    // What was registered there before, so that its unmapping is still to be read; empty: nothing.
    uint64_t late_start, late_end;
  };
  // From where something left, so that mremap's own UNMAP of just this is still to be read.
  struct Departure {
    uint64_t start, end;  // empty: a free place
  };
  Arrival arrivals[64];
  Departure departures[48];
};

// How far the messages of a record are applied, and which of its two Moves counts: of one word, since an
// event that changes them must not be taken for one that has not.
struct alignas(8) Progress {
  // 2n: n messages; 2n+1: the next one, a REMAP, has also emptied its destination and noted the move.
  uint32_t steps;
  uint32_t moves;  // 0 or 1
};

struct ClientRecord {
  uint32_t state;  // ClientState
  uint32_t id;
  int32_t pid;  // 0: a forked child whose pid nobody told
  uint32_t uid;
  uint32_t parent_id;   // of a forked child; 0: none
  uint32_t domain;      // of it and its forked children: what its pages' checksums are mixed with
  uint8_t codec, pool;  // zp::CodecId and zp::PoolKind that its pages are kept with
  char comm[16];
  int32_t uffd_fd, ring_fd, socket_fd;
  int32_t memory_fds[ProcessMemory::kFiles];
  uint64_t arena_start, arena_bytes;
  uint64_t staging_start, staging_bytes;
  uint64_t notes_start, notes_bytes;
  uint64_t agent_filters;  // seccomp filters that the agent's thread had when it attached
  uint64_t limit_bytes;
  uint64_t event_seq;    // events applied
  uint32_t index_root;   // root node of the client's OffsetIndex
  uint32_t ranges_used;  // of its places for ranges, so many had one in them once
  Progress progress;
  uffd_msg messages[kMessagesPerRead];  // taken from the kernel; the first whose `event` is 0 ends them
  Moves moves[2];
  uint8_t reserved[1112];
};
static_assert(sizeof(uffd_msg) == 32);
static_assert(sizeof(ClientRecord) == 8192);

class ClientTable {
 public:
  static zp::Result<ClientTable> Create();
  // Takes over another process's table. kInvalid: it is none. kUnsupported: it has another layout.
  static zp::Result<ClientTable> Adopt(zp::UniqueFd fd);
  ClientTable(ClientTable&&) noexcept = default;

  // A zeroed record with a fresh id (from 1) in state kReserved, and zeroed counters. kNoMemory: all numbers
  // are taken, or the machine has no memory.
  zp::Result<ClientRecord*> Allocate() ZP_EXCLUDES(*mu_);
  // Says that a successor has to go on with it.
  static void Publish(ClientRecord* record) { SetState(record, ClientState::kLive); }
  // Says that it needs nobody any more, before its descriptors are closed.
  static void Retire(ClientRecord* record) { SetState(record, ClientState::kDying); }
  void Free(ClientRecord* record) ZP_EXCLUDES(*mu_);
  ClientStats& stats(const ClientRecord* record) const;
  // The client's places for ranges, of which the first `ranges_used` have memory.
  std::span<AddressRange> ranges(const ClientRecord* record) const;
  // Gives the first `count` places memory. False: there are not so many, or the machine has no memory.
  bool PopulateRanges(const ClientRecord* record, uint32_t count) const;

  static Progress LoadProgress(ClientRecord* record) {
    return std::bit_cast<Progress>(ProgressWord(record).load(std::memory_order_relaxed));
  }
  // What was written before is there for whoever sees it.
  static void StoreProgress(ClientRecord* record, Progress progress) {
    ProgressWord(record).store(std::bit_cast<uint64_t>(progress), std::memory_order_release);
  }
  // Records in state kLive whose fields make sense; the others are freed. For a successor, before anything
  // else.
  std::vector<ClientRecord*> Survivors() ZP_EXCLUDES(*mu_);

  TableHeader& header() const { return *reinterpret_cast<TableHeader*>(mapping_.data()); }
  int fd() const { return fd_.get(); }

 private:
  ClientTable(zp::UniqueFd fd, zp::Mapping mapping) : fd_(std::move(fd)), mapping_(std::move(mapping)) {}
  ClientRecord* record(uint32_t id) const;
  static std::atomic_ref<uint64_t> ProgressWord(ClientRecord* record) {
    return std::atomic_ref(*reinterpret_cast<uint64_t*>(&record->progress));
  }
  void PunchOut(uint32_t id) ZP_REQUIRES(*mu_);
  static void SetState(ClientRecord* record, ClientState state);

  zp::UniqueFd fd_;
  zp::Mapping mapping_;
  std::unique_ptr<zp::Mutex> mu_ = std::make_unique<zp::Mutex>();
  uint32_t next_ ZP_GUARDED_BY(*mu_) =
      1;  // where the search for a free number goes on: numbers are reused late
};

}  // namespace uzswap
