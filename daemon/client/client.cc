#include "daemon/client/client.h"

#include <numa.h>
#include <sys/mman.h>
#include <sys/random.h>

#include <cstring>
#include <thread>

#include "daemon/sys/clock.h"

namespace uzswap {

using zp::PageCount;
using zp::PageIndex;
using zp::Slot;

namespace {
// Restore gives up on a page after this long without any progress.
constexpr std::chrono::seconds kRestorePatience{10};
constexpr std::chrono::milliseconds kDismissPatience{500};
}  // namespace

Client::Client(ClientServices services, ClientIdentity identity, Userfaultfd uffd, ClientRecord* record,
               zp::OffsetIndex index, zp::StoreAs store_as)
    : services_(services),
      identity_(std::move(identity)),
      uffd_(std::move(uffd)),
      record_(record),
      store_as_(store_as),
      stats_(services_.table.stats(record)),
      index_(std::move(index)),
      registered_(services_.table, record) {}

zp::Result<std::shared_ptr<Client>> Client::Create(ClientServices services, ClientIdentity identity,
                                                   Userfaultfd uffd, ProcessMemory memory,
                                                   std::unique_ptr<AgentChannel> channel, AgentRanges ranges,
                                                   uint64_t limit_bytes, zp::StoreAs store_as) {
  ClientRecord* record = ZP_TRY(services.table.Allocate());
  auto index = zp::OffsetIndex::Create(services.index_arena, services.store, RootOf(record));
  if (!index.ok() || getrandom(&record->domain, sizeof(record->domain), 0) != sizeof(record->domain)) {
    services.table.Free(record);
    return index.ok() ? zp::ErrnoError("getrandom") : index.error();
  }
  record->pid = identity.pid;
  record->uid = identity.uid;
  (void)identity.comm.copy(record->comm, sizeof(record->comm) - 1);
  record->uffd_fd = uffd.fd();
  record->ring_fd = channel->ring_fd();
  record->socket_fd = channel->socket_fd();
  NoteFiles(record, memory);
  record->arena_start = ranges.arena.start;
  record->arena_bytes = ranges.arena.end - ranges.arena.start;
  record->staging_start = ranges.staging.start;
  record->staging_bytes = ranges.staging.end - ranges.staging.start;
  record->notes_start = ranges.notes.start;
  record->notes_bytes = ranges.notes.end - ranges.notes.start;
  record->agent_filters = memory.AgentFilters();
  record->limit_bytes = limit_bytes;
  NoteStoreAs(record, store_as);
  auto client = std::shared_ptr<Client>(
      new Client(services, std::move(identity), std::move(uffd), record, std::move(*index), store_as));
  client->memory_ = std::move(memory);
  client->has_memory_ = true;
  client->channel_ = std::move(channel);
  client->ranges_ = ranges;
  client->limit_bytes_ = limit_bytes;
  zp::MutexLock lock(client->evict_mu_);
  client->scanner_.Exclude(ranges.arena);
  client->scanner_.Exclude(ranges.staging);
  client->scanner_.Exclude(ranges.notes);
  return client;
}

Client::~Client() {
  ClientTable::Retire(record_);
  // The index releases what it holds; nobody can fault any more, or the memory is gone.
  std::vector<Slot> dropped;
  index_.DropRange(PageIndex(0), PageIndex(zp::kPageIndexLimit), &dropped);
  for (const Slot slot : dropped) services_.store.Release(slot);
  { const zp::OffsetIndex last(std::move(index_)); }  // its root is in the record
  services_.table.Free(record_);
}

Client::RestoreResult Client::Restore(bool stop_evicting, FaultScratch& scratch) {
  zp::MutexLock evicting(evict_mu_);
  if (stop_evicting) evicting_ = false;
  RestoreResult result;
  auto progress_at = std::chrono::steady_clock::now();
  PageIndex from(0);
  for (;;) {
    // A bounded bite at a time, so that faults and events get their turn.
    constexpr size_t kBite = 1024;
    std::vector<PageIndex> pages;
    {
      zp::ReaderLock lock(meta_mu_);
      index_.ForEach(from, PageIndex(zp::kPageIndexLimit), [&](PageIndex page, Slot slot) {
        if (slot.is_stored() || slot.is_filling()) pages.push_back(page);
        return pages.size() < kBite;
      });
    }
    if (pages.empty()) {
      if (from == PageIndex(0)) break;
      from = PageIndex(0);
      if (std::chrono::steady_clock::now() - progress_at > kRestorePatience) break;
      continue;
    }
    for (const PageIndex page : pages) {
      ResolveOutcome outcome = ResolveOutcome::kResolved;
      const uint64_t before = index_.stored();
      {
        zp::ReaderLock lock(meta_mu_);
        const Slot slot = index_.Get(page);
        if (slot.is_filling()) {
          outcome = ResolveOutcome::kRequeue;  // a fault has it; it goes home, or is stored again
        } else if (slot.is_stored()) {
          outcome = Fill(page, slot, FaultScratch::kMaxRun, scratch);
        } else {
          continue;
        }
      }
      if (outcome == ResolveOutcome::kGone) return result;
      if (outcome == ResolveOutcome::kRequeue) std::this_thread::sleep_for(std::chrono::microseconds(50));
      const uint64_t after = index_.stored();
      if (after < before) {
        result.pages += before - after;
        progress_at = std::chrono::steady_clock::now();
      }
    }
    if (std::chrono::steady_clock::now() - progress_at > kRestorePatience) break;
    from = pages.back() + PageCount(1);
  }
  result.failed = index_.stored();
  if (stop_evicting && result.failed == 0) {
    // Also what the kernel registered beyond our knowledge: mappings that grew, or whose proof an event
    // overtook.
    const auto maps =
        has_memory_ ? memory_.ReadMaps() : zp::Result<std::vector<MapEntry>>(std::vector<MapEntry>());
    zp::WriterLock lock(meta_mu_);
    for (const AddressRange& range : registered_.set().All())
      uffd_.Unregister(range.start, range.end - range.start);
    if (maps.ok()) {
      for (const MapEntry& entry : *maps) {
        if (entry.private_anonymous) uffd_.Unregister(entry.start, entry.end - entry.start);
      }
    }
    registered_.Clear();
  }
  return result;
}

void Client::SetLimit(uint64_t bytes) {
  limit_bytes_.store(bytes, std::memory_order_relaxed);
  record_->limit_bytes = bytes;
}

void Client::Dismiss() {
  if (channel_ == nullptr) return;
  zp::MutexLock evicting(evict_mu_);
  evicting_ = false;
  if (IsFiltered()) return;  // it holds nothing that is needed
  (void)channel_->Await(kDismissPatience);
  (void)Post(wire::kOpExit, {}, 0);
}

uint64_t Client::SampleResident() {
  if (!has_memory_) return 0;
  const uint64_t bytes = memory_.ResidentBytes();
  stats_.resident_bytes.store(bytes, std::memory_order_relaxed);
  reclaim_wanted_.store(false, std::memory_order_relaxed);
  ClientStats::RaiseTo(stats_.resident_peak_bytes, bytes);
  return bytes;
}

std::optional<zp::NodeId> Client::FindHome() {
  if (identity_.pid == 0) return std::nullopt;
  const int cpu = ReadTaskCpu(identity_.pid, identity_.pid);
  const int node = cpu < 0 ? -1 : numa_node_of_cpu(cpu);
  if (node < 0 || node >= static_cast<int>(zp::kMaxNodes)) return std::nullopt;
  const uint64_t now = MonotonicNs();
  node_.Observe(zp::NodeId(static_cast<uint8_t>(node)), now);
  return node_.Settled(now);
}

}  // namespace uzswap
