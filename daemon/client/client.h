// One attached memory (mm): a process with an agent, or a forked child that is only served.
//
// Idea: everything that the daemon knows about the pages of one userfaultfd, and the protocol that keeps it
// true against the application's own changes. daemon/DESIGN.md walks through a fault, an eviction and each
// event with the names used here.
//
// A page is: *resident* (slot empty) → *staging* (Busy kStaging n: in batch slot n; ring result n says
// whether the MOVE happened) → *stored* (same-filled or handle); a fault takes it home through *filling*
// (Busy kFilling).
//
// Locks, in this order:
//   1. evict_mu_    one batch at a time; held over a whole eviction, also while waiting for the agent
//   2. reader_mu_   who may read(2) messages (G of the protocol)
//   3. the gate     shared with the agent; around read(2) and the application of events, and around its MOVE
//   4. meta_mu_     shared: look up and resolve; exclusive: change what is registered, apply events, begin a
//   batch
//   5. doomed_mu_   the set of doomed ranges
//   then those of libzpool.
// A fault needs 2 to 5 only, never waits for an agent, and no lock is held while a message is waited for.
//
// Threads: public methods from any thread.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "daemon/client/agent_channel.h"
#include "daemon/client/home_node.h"
#include "daemon/client/victim_scanner.h"
#include "daemon/keeper/inherited_descriptors.h"
#include "daemon/state/client_stats.h"
#include "daemon/state/client_table.h"
#include "daemon/state/range_set.h"
#include "daemon/state/recorded_ranges.h"
#include "daemon/sys/process_memory.h"
#include "daemon/sys/userfaultfd.h"
#include "libzpool/base/mutex.h"
#include "libzpool/index/offset_index.h"
#include "libzpool/store/page_store.h"

namespace uzswap {

class Client;

// What a client needs from the daemon around it.
class ClientHost {
 public:
  virtual ~ClientHost() = default;
  // A child was forked: make its faults be read. Called with the parent's locks held; must not call back.
  virtual void AdoptChild(std::shared_ptr<Client> child) = 0;
  // A client grew over its limit by faults. Called with locks held, at most once between two samples.
  virtual void WantReclaim() = 0;
};

struct ClientServices {
  zp::PageStore& store;
  zp::IndexArena& index_arena;
  ClientTable& table;
  ClientHost& host;
};

struct ClientIdentity {
  pid_t pid = 0;
  uid_t uid = 0;
  std::string comm;
};

// A page fault to resolve. Kept by address, never by what was found there (H4).
struct Fault {
  uint64_t address = 0;
  int tid = 0;
  bool write = false;
  uint64_t started_ns = 0;  // when its message was read
};

// Per-thread buffers of whoever resolves faults.
struct FaultScratch {
  static constexpr uint64_t kMaxRun = 32;  // pages per COPY: read-ahead's ceiling
  zp::PageStore::Scratch codec;
  alignas(4096) std::array<std::byte, kMaxRun * zp::kPageBytes> run;
};

enum class ResolveOutcome {
  kResolved,
  kRequeue,    // transient: resolve the same address again, a little later
  kThrottled,  // the client is far over its limit: again when the reclaimer had time to make room
  kGone,       // the memory is gone
};

class Client {
 public:
  struct AgentRanges {
    AddressRange arena, staging, notes;  // notes: empty if there are none
  };

  // A client with an agent. `memory` was opened for the peer.
  static zp::Result<std::shared_ptr<Client>> Create(ClientServices services, ClientIdentity identity,
                                                    Userfaultfd uffd, ProcessMemory memory,
                                                    std::unique_ptr<AgentChannel> channel, AgentRanges ranges,
                                                    uint64_t limit_bytes, zp::StoreAs store_as);
  // Goes on with the client that another daemon left in `record`. `index` was recovered from there;
  // `unfinished` are the pages whose slots were busy or filling. Errors: a descriptor is missing or is not
  // what it should be; nothing has changed but that the others were taken. Resume must follow.
  static zp::Result<std::shared_ptr<Client>> Recover(ClientServices services, ClientRecord* record,
                                                     InheritedDescriptors& inherited, zp::OffsetIndex index,
                                                     std::vector<zp::PageIndex> unfinished);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  uint32_t id() const { return record_->id; }
  const ClientIdentity& identity() const { return identity_; }
  bool has_agent() const { return channel_ != nullptr; }
  int socket_fd() const { return channel_ == nullptr ? -1 : channel_->socket_fd(); }
  int ring_fd() const { return channel_ == nullptr ? -1 : channel_->ring_fd(); }
  // How its pages are kept from now on; a forked child has its parent's.
  zp::PoolKind pool() const { return store_as_.pool; }
  zp::CodecId codec() const { return store_as_.codec; }
  const Userfaultfd& uffd() const { return uffd_; }
  ClientStats& stats() { return stats_; }
  const ClientStats& stats() const { return stats_; }
  // Pages that are with us now, and how many of them are same-filled.
  zp::OffsetIndex::Counts stored_counts() const { return index_.counts(); }
  uint64_t limit_bytes() const { return limit_bytes_.load(std::memory_order_relaxed); }
  void SetLimit(uint64_t bytes);
  // The agent is about to be told that it is attached: from now on a successor goes on with the client.
  void Publish() { ClientTable::Publish(record_); }
  // Finishes what the daemon before was at, and wakes everybody who waits: what it had taken is asked for
  // again. Before anything else is done with a recovered client; every other client of the state was
  // recovered before.
  void Resume(InheritedDescriptors& inherited, FaultScratch& scratch)
      ZP_EXCLUDES(evict_mu_, reader_mu_, meta_mu_);

  // Reads waiting messages, applies the events among them, and appends the faults, oldest first.
  void ReadMessages(std::vector<Fault>* faults) ZP_EXCLUDES(reader_mu_, meta_mu_);
  ResolveOutcome Resolve(const Fault& fault, FaultScratch& scratch) ZP_EXCLUDES(meta_mu_);

  // Evicts up to `max_pages` cold pages (at most one batch). The number evicted; 0: nothing can go now.
  // kBusy: somebody else evicts, or the agent does not answer. kGone: agent or process ended.
  zp::Result<uint64_t> Evict(uint64_t max_pages, FaultScratch& scratch)
      ZP_EXCLUDES(evict_mu_, reader_mu_, meta_mu_);

  // Brings every page home and stops evicting (`stop_evicting`: for good, and unregisters everything). Pages
  // that failed stay stored; ranges are then not unregistered (H12). Returns the pages brought home.
  struct RestoreResult {
    uint64_t pages = 0;
    uint64_t failed = 0;
  };
  RestoreResult Restore(bool stop_evicting, FaultScratch& scratch) ZP_EXCLUDES(evict_mu_, meta_mu_);
  // After a full Restore: tells the agent to leave.
  void Dismiss() ZP_EXCLUDES(evict_mu_);

  // Registers the mappings through which the program may grow, so that its growth is seen, and can be held
  // up. Does nothing while another thread evicts.
  void RegisterGrowth() ZP_EXCLUDES(evict_mu_, meta_mu_);
  // Far over the limit, faults wait for the reclaimer, each kThrottleNs at most; but only while eviction
  // makes progress, which the reclaimer says here.
  static constexpr uint64_t kThrottleNs = 10'000'000;
  static constexpr uint64_t kOverrunPermille = 40;
  static constexpr uint64_t kUrgentPermille = 20;  // from here on young mappings are not spared
  void SetEvictable(bool evictable) { evictable_.store(evictable, std::memory_order_relaxed); }

  // Samples the resident set (between samples faults add to the figure); 0 for a client whose pid is not
  // known.
  uint64_t SampleResident();
  // Where a client's index has its root: in its record, so that a successor finds the tree.
  static std::atomic<uint32_t>* RootOf(ClientRecord* record) {
    return reinterpret_cast<std::atomic<uint32_t>*>(&record->index_root);
  }
  // Looks where its first thread runs. The node where it has been for a while; nothing: it comes and goes, or
  // its process is not known. For machines with several nodes.
  std::optional<zp::NodeId> FindHome();
  // Asks the kernel whether the memory is gone.
  bool Gone() const { return uffd_.TargetGone(); }

 private:
  enum BusyKind : uint8_t { kFilling = 1, kStaging = 2 };
  // The payload of both is the batch's slot.
  static_assert(wire::kRingSlots - 1 <= zp::Slot::kMaxBusyPayload && kStaging <= zp::Slot::kMaxBusyKind);

  Client(ClientServices services, ClientIdentity identity, Userfaultfd uffd, ClientRecord* record,
         zp::OffsetIndex index, zp::StoreAs store_as);

  // faults.cc
  ResolveOutcome ZeroFill(zp::PageIndex page, const Fault& fault) ZP_REQUIRES_SHARED(meta_mu_);
  ResolveOutcome Fill(zp::PageIndex page, zp::Slot slot, uint64_t window, FaultScratch& scratch)
      ZP_REQUIRES_SHARED(meta_mu_);
  ResolveOutcome FillFromStaging(zp::PageIndex page, zp::Slot slot, FaultScratch& scratch)
      ZP_REQUIRES_SHARED(meta_mu_);
  ResolveOutcome GiveStaged(zp::PageIndex page, zp::Slot slot, FaultScratch& scratch)
      ZP_REQUIRES_SHARED(meta_mu_);
  uint64_t ReadAheadWindow(int tid, zp::PageIndex page);
  // Whether the resident set is more than `permille` thousandths over the limit, as far as is known.
  bool Over(uint64_t permille) const;
  void Grew(uint64_t pages);
  // The kernel did what was asked for, which it does not while a change is unannounced (4.2). (Not written
  // where it is known: all fault workers come by here.)
  void SeeQuiet() {
    if (!was_quiet_.load(std::memory_order_relaxed)) was_quiet_.store(true, std::memory_order_relaxed);
  }
  void Undoom(uint64_t start, uint64_t end) ZP_EXCLUDES(doomed_mu_);
  void Forget(zp::Slot stored);
  void CountStored(zp::Slot slot);

  // events.cc
  void TakeGate() ZP_REQUIRES(reader_mu_);
  void ApplyEvent(const uffd_msg& message, std::vector<zp::Slot>* dropped) ZP_REQUIRES(reader_mu_, meta_mu_);
  void ApplyRemap(uint64_t from, uint64_t to, uint64_t bytes, std::vector<zp::Slot>* dropped)
      ZP_REQUIRES(reader_mu_, meta_mu_);
  void ApplyUnmap(uint64_t start, uint64_t end, std::vector<zp::Slot>* dropped)
      ZP_REQUIRES(reader_mu_, meta_mu_);
  const Moves& CurrentMoves() const ZP_REQUIRES_SHARED(meta_mu_);
  // Makes `moves` the ones that count, and `steps` the progress, at once.
  void StoreMoves(const Moves& moves, uint32_t steps) ZP_REQUIRES(meta_mu_);
  void SetSteps(uint32_t steps) ZP_REQUIRES(meta_mu_);
  void ForgetMoves() ZP_REQUIRES(meta_mu_);
  void ApplyFork(int child_fd) ZP_REQUIRES(reader_mu_, meta_mu_);
  void Drop(uint64_t start, uint64_t end, std::vector<zp::Slot>* dropped) ZP_REQUIRES(meta_mu_);
  // Stores or reinstates every page of the batch in flight, so that no slot is busy.
  void SettleBatch() ZP_REQUIRES(reader_mu_, meta_mu_);
  void OverruleAgent() ZP_REQUIRES(reader_mu_);

  // recovery.cc
  static void NoteFiles(ClientRecord* record, const ProcessMemory& memory);
  static void NoteStoreAs(ClientRecord* record, zp::StoreAs store_as) {
    record->codec = static_cast<uint8_t>(store_as.codec);
    record->pool = static_cast<uint8_t>(store_as.pool);
  }
  void AdoptUnfinished() ZP_REQUIRES(meta_mu_);
  void ReplayMessages(InheritedDescriptors& inherited, std::vector<zp::Slot>* dropped)
      ZP_REQUIRES(reader_mu_, meta_mu_);

  // eviction.cc
  bool IsFiltered() ZP_REQUIRES(evict_mu_);
  void ReadKept() ZP_REQUIRES(evict_mu_);
  zp::Status Post(wire::Opcode opcode, std::span<const uint64_t> pages, uint64_t seq) ZP_REQUIRES(evict_mu_)
      ZP_EXCLUDES(reader_mu_, meta_mu_);
  void RefreshThreads() ZP_REQUIRES(evict_mu_) ZP_EXCLUDES(reader_mu_, meta_mu_);
  bool RegisterFor(const std::vector<uint64_t>& pages) ZP_REQUIRES(evict_mu_) ZP_EXCLUDES(meta_mu_);
  // Whether some page of the range is the agent's.
  bool IsOwn(const AddressRange& range) const;
  bool IsRegistered(uint64_t page) ZP_EXCLUDES(meta_mu_);
  uint64_t BeginBatch(const std::vector<uint64_t>& pages, bool registered) ZP_REQUIRES(evict_mu_)
      ZP_EXCLUDES(reader_mu_, meta_mu_);
  void RunBatch(uint64_t count) ZP_REQUIRES(evict_mu_) ZP_EXCLUDES(reader_mu_, meta_mu_);
  uint64_t FinishBatch(FaultScratch& scratch, std::vector<uint64_t>* busy) ZP_REQUIRES(evict_mu_)
      ZP_EXCLUDES(meta_mu_);
  bool FinishSlot(uint32_t n, FaultScratch& scratch, std::vector<uint64_t>* busy) ZP_REQUIRES(evict_mu_)
      ZP_EXCLUDES(meta_mu_);
  void CountRefusal(uint32_t result, uint64_t page) ZP_REQUIRES(evict_mu_);
  // While no MOVE is under way: puts what lies in staging, and is not in the ring, there.
  void CollectStaged() ZP_REQUIRES_SHARED(meta_mu_);
  void LoseStaged(zp::PageIndex page);
  zp::Owner OwnerOf(zp::PageIndex page) const { return {record_->id, page, record_->domain}; }
  void PutHome(uint32_t n, FaultScratch& scratch) ZP_EXCLUDES(meta_mu_);
  bool ReplaceStaging(uint32_t n, zp::Slot with) ZP_EXCLUDES(meta_mu_);
  void Unshare(const std::vector<uint64_t>& pages) ZP_REQUIRES(evict_mu_) ZP_EXCLUDES(reader_mu_, meta_mu_);
  bool ReleaseStaging() ZP_REQUIRES(evict_mu_) ZP_EXCLUDES(reader_mu_, meta_mu_);

  ClientServices services_;
  const ClientIdentity identity_;
  const Userfaultfd uffd_;
  ClientRecord* const record_;
  ProcessMemory memory_;  // set once before the client is shared
  bool has_memory_ = false;
  std::unique_ptr<AgentChannel> channel_;  // null for a forked child
  AgentRanges ranges_;
  const zp::StoreAs store_as_;
  ClientStats& stats_;                     // in the client table, as the record
  std::vector<zp::PageIndex> unfinished_;  // of a recovered client, until Resume
  std::atomic<uint64_t> limit_bytes_{0};
  std::atomic<bool> evictable_{true};
  std::atomic<bool> reclaim_wanted_{false};
  HomeNode node_;                             // where its first thread runs, and its objects go
  std::atomic<bool> forked_{false};           // a fork happened: busy pages may be shared ones
  std::atomic<bool> ever_registered_{false};  // something may be registered

  zp::Mutex evict_mu_;
  bool evicting_ ZP_GUARDED_BY(evict_mu_) = true;
  bool filtered_ ZP_GUARDED_BY(evict_mu_) =
      false;  // the agent's thread has another number of filters than at attach
  VictimScanner scanner_ ZP_GUARDED_BY(evict_mu_);
  std::chrono::steady_clock::time_point threads_at_ ZP_GUARDED_BY(evict_mu_){};
  std::chrono::steady_clock::time_point growth_at_ ZP_GUARDED_BY(evict_mu_){};
  uint64_t kept_changes_ ZP_GUARDED_BY(evict_mu_) = 0;   // of the notes, when they were last read
  bool staging_dirty_ ZP_GUARDED_BY(evict_mu_) = false;  // a MOVE was posted since staging was last emptied
  bool batch_posted_ ZP_GUARDED_BY(evict_mu_) = false;   // the ring's results belong to the batch in flight
  std::set<uint64_t> unshared_
      ZP_GUARDED_BY(evict_mu_);  // pages that POPULATE_WRITE was asked for, a bounded memory

  zp::Mutex reader_mu_ ZP_ACQUIRED_AFTER(evict_mu_);
  int overruled_ ZP_GUARDED_BY(reader_mu_) = 0;
  uint64_t overruled_ns_ ZP_GUARDED_BY(reader_mu_) = 0;
  std::atomic<bool> distrusted_{false};  // its gate is ignored, and nothing is evicted

  mutable zp::SharedMutex meta_mu_ ZP_ACQUIRED_AFTER(reader_mu_);
  zp::OffsetIndex index_;  // Get and CompareExchange: shared; the rest: exclusive
  RecordedRanges registered_ ZP_GUARDED_BY(meta_mu_);
  // Whether the record may hold moves; of a recovered client it may.
  bool any_moves_ ZP_GUARDED_BY(meta_mu_) = true;
  // Every change that was made before some moment since the last move was noted was announced and applied by
  // then. Set with meta_mu_ shared, reset with it exclusive.
  std::atomic<bool> was_quiet_{false};
  uint64_t event_seq_ ZP_GUARDED_BY(meta_mu_) = 0;
  // Batch in flight: where the page of slot n is now (mremap moves it). Read shared, written exclusive.
  std::array<uint64_t, wire::kRingSlots> batch_page_ ZP_GUARDED_BY(meta_mu_){};
  uint32_t batch_count_ ZP_GUARDED_BY(meta_mu_) = 0;
  uint64_t batch_seq_ ZP_GUARDED_BY(meta_mu_) = 0;

  zp::Mutex doomed_mu_ ZP_ACQUIRED_AFTER(meta_mu_);
  RangeSet doomed_ ZP_GUARDED_BY(doomed_mu_);
  DoomClearance clearance_ ZP_GUARDED_BY(doomed_mu_);
  std::atomic<bool> any_doomed_{false};

  // Read-ahead, by faulting thread; races lose a hint.
  struct Stream {
    std::atomic<uint64_t> next_page{0};
    std::atomic<uint32_t> window{1};
  };
  std::array<Stream, 16> streams_;
  RegionHeat heat_;
};

}  // namespace uzswap
