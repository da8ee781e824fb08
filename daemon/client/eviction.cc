// From a cold page to a stored one. See daemon/DESIGN.md, "The life of an eviction".
#include <pthread.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <thread>

#include "daemon/client/client.h"
#include "daemon/sys/clock.h"
#include "daemon/wire/notes.h"
#include "libzpool/base/pause_point.h"

namespace uzswap {

using zp::PageIndex;
using zp::Slot;
using Exchange = zp::OffsetIndex::Exchange;

namespace {

constexpr std::chrono::milliseconds kAgentPatience{100};  // to begin a command
constexpr std::chrono::milliseconds kAgentRunTime{500};   // to finish one that it began
constexpr std::chrono::milliseconds kThreadsEvery{100};
constexpr size_t kUnsharedRemembered = 8192;
constexpr int kRegisterRounds = 4;
constexpr int kHomeTries = 2000;  // × 50 µs and more, for a page whose COPY the kernel refuses
constexpr std::chrono::milliseconds kGrowthEvery{1};
constexpr uint64_t kGrowthBytes = 2 << 20;  // a smaller mapping cannot carry a program far over its limit

// The evictable mapping around `page`, with what touches it and would be one with it but for a protection
// that may be temporary, or but for our own registration: a boundary in `maps` that was not there in
// `before`.
AddressRange MappingAround(const std::vector<MapEntry>& maps, uint64_t page,
                           const std::vector<MapEntry>* before) {
  const auto after =
      std::upper_bound(maps.begin(), maps.end(), page,
                       [](uint64_t address, const MapEntry& entry) { return address < entry.start; });
  if (after == maps.begin()) return {};
  auto first = std::prev(after);
  auto last = first;
  if (first->end <= page || !first->private_rw_anonymous) return {};
  const auto joins = [&](const MapEntry& lower, const MapEntry& upper) {
    if (!lower.private_anonymous || !upper.private_anonymous || lower.end != upper.start) return false;
    if (lower.private_rw_anonymous != upper.private_rw_anonymous) return true;
    return before != nullptr && std::none_of(before->begin(), before->end(), [&](const MapEntry& entry) {
             return entry.start == upper.start || entry.end == upper.start;
           });
  };
  while (first != maps.begin() && joins(*std::prev(first), *first)) --first;
  while (std::next(last) != maps.end() && joins(*last, *std::next(last))) ++last;
  return {first->start, last->end};
}

}  // namespace

zp::Result<uint64_t> Client::Evict(uint64_t max_pages, FaultScratch& scratch) {
  if (channel_ == nullptr) return zp::Error{zp::Errc::kGone, 0, "the client has no agent"};
  if (!evict_mu_.TryLock()) return zp::Error{zp::Errc::kBusy, 0, "another thread evicts from this client"};
  const auto evict = [&]() ZP_REQUIRES(evict_mu_) -> zp::Result<uint64_t> {
    if (!evicting_ || distrusted_.load(std::memory_order_relaxed)) return uint64_t{0};
    if (IsFiltered()) {
      Add(stats_.refused_failed,
          scanner_.Next(memory_, heat_, std::min<uint64_t>(max_pages, wire::kRingSlots), false).size());
      return uint64_t{0};
    }
    if (!channel_->Ready()) return zp::Error{zp::Errc::kBusy, 0, "the agent does not answer"};
    if (staging_dirty_ && !ReleaseStaging())
      return zp::Error{zp::Errc::kBusy, 0, "the agent does not answer"};
    RefreshThreads();
    ReadKept();
    const std::vector<uint64_t> pages =
        scanner_.Next(memory_, heat_, std::min<uint64_t>(max_pages, wire::kRingSlots), Over(kUrgentPermille));
    if (pages.empty()) return uint64_t{0};
    ZP_PAUSE_POINT("evict.chosen");
    const bool registered = RegisterFor(pages);
    ZP_PAUSE_POINT("evict.registered");
    const uint64_t count = BeginBatch(pages, registered);
    if (count == 0) return uint64_t{0};
    ZP_PAUSE_POINT("evict.begun");
    RunBatch(count);
    ZP_PAUSE_POINT("evict.moved");
    std::vector<uint64_t> busy;
    const uint64_t evicted = FinishBatch(scratch, &busy);
    ZP_PAUSE_POINT("evict.finished");
    (void)ReleaseStaging();
    if (!busy.empty() && forked_.load(std::memory_order_acquire)) Unshare(busy);
    return evicted;
  };
  auto result = evict();
  evict_mu_.Unlock();
  return result;
}

// Whether the program has put a seccomp filter on all its threads, the agent's too. Such a filter may kill
// the process for any call that the agent makes, so it is asked for none any more.
bool Client::IsFiltered() {
  if (!filtered_) filtered_ = memory_.AgentFilters() != record_->agent_filters;
  return filtered_;
}

// Which pages hold mutexes that the kernel writes itself, as the agent notes them.
void Client::ReadKept() {
  if (ranges_.notes.empty()) return;
  const auto read = [&](size_t offset, void* to, size_t bytes) {
    return memory_.Read(ranges_.notes.start + offset, to, bytes);
  };
  uint64_t changes = 0;
  uint32_t used = 0;
  if (!read(offsetof(wire::KeptMutexes, changes), &changes, sizeof(changes)) || changes == kept_changes_ ||
      !read(offsetof(wire::KeptMutexes, used), &used, sizeof(used)))
    return;
  std::vector<uint64_t> mutexes(std::min(used, wire::kMaxKeptMutexes));
  if (!read(offsetof(wire::KeptMutexes, mutex), mutexes.data(), mutexes.size() * sizeof(uint64_t))) return;
  kept_changes_ = changes;
  std::set<uint64_t> pages;
  for (const uint64_t mutex : mutexes) {
    // It may lie across two.
    for (const uint64_t at : {mutex, mutex + sizeof(pthread_mutex_t) - 1}) {
      if (mutex != 0) pages.insert(at & ~uint64_t{zp::kPageBytes - 1});
    }
  }
  scanner_.SetKept(std::move(pages));
}

// A reader that waits for the gate in vain overrules the agent: that is of the command that it saw, and must
// not come to be of the next one, whose MOVE would then run without the gate. So nothing of a new command is
// written while somebody reads.
zp::Status Client::Post(wire::Opcode opcode, std::span<const uint64_t> pages, uint64_t seq) {
  zp::MutexLock posting(reader_mu_);
  return channel_->Post(opcode, pages, seq);
}

// Where thread descriptors and stacks are, and which threads are outside madvise(2) by now.
void Client::RefreshThreads() {
  const auto now = std::chrono::steady_clock::now();
  if (now - threads_at_ < kThreadsEvery) return;
  if (services_.store.topology().nodes().size() > 1) (void)FindHome();
  {
    zp::MutexLock lock(doomed_mu_);
    clearance_.Mark();
  }
  if (!Post(wire::kOpThreads, {}, 0).ok()) return;
  if (channel_->Await(kAgentRunTime) != AgentChannel::AwaitOutcome::kDone) return;
  ZP_PAUSE_POINT("threads.listed");
  const auto listed = channel_->Threads();
  if (!listed.has_value())
    return;  // no /proc there: stacks stay as they were known, doomed pages stay doomed
  threads_at_ = now;
  const auto& threads = *listed;
  scanner_.SetThreads(threads, identity_.pid);
  zp::MutexLock lock(doomed_mu_);
  for (const AddressRange& range : clearance_.Observe(threads)) doomed_.Remove(range.start, range.end);
  for (const AddressRange& range : clearance_.Pending()) doomed_.Add(range.start, range.end);
  any_doomed_.store(!doomed_.empty(), std::memory_order_release);
}

// Registers the mappings that hold the pages, and notes which are registered beyond doubt: a MOVE out of a
// mapping that is not loses the page (4.1). The kernel registers what is mapped at that moment; a hole in the
// range, mapped since, is not registered, and nobody tells. So the maps are read again afterwards, and each
// mapping is asked. From then on it can only change by an event, and then `event_seq_` has moved, or MOVE
// answers EAGAIN (H7). Returns false where that was overtaken: what is not registered then may be so the next
// time.
bool Client::RegisterFor(const std::vector<uint64_t>& pages) {
  uint64_t seq = 0;
  std::vector<uint64_t> unknown;
  {
    zp::ReaderLock lock(meta_mu_);
    seq = event_seq_;
    for (const uint64_t page : pages) {
      if (!registered_.set().Contains(page)) unknown.push_back(page);
    }
  }
  if (unknown.empty()) return true;
  // Always whole mappings: registering a part would split one, and an mremap over both parts, which is one
  // mapping natively, would fail half done (Linux 6.17). A mapping that grew or merged between the look and
  // the call was split all the same: the next round sees the rest beside it and mends that.
  std::vector<MapEntry> before;
  RangeSet accepted;  // what is in no userfaultfd of the program's own
  for (int round = 0;; ++round) {
    auto maps = memory_.ReadMaps();
    if (!maps.ok()) return false;
    ZP_PAUSE_POINT("register.maps_read");
    bool asked = false;
    AddressRange mapping;
    for (const uint64_t page : unknown) {
      if (page >= mapping.start && page < mapping.end) continue;
      mapping = MappingAround(*maps, page, round > 0 ? &before : nullptr);
      if (mapping.empty()) continue;
      if (round > 0 && MappingAround(before, page, &before) == mapping) continue;
      asked = true;
      ever_registered_.store(true, std::memory_order_relaxed);
      if (uffd_.Register(mapping.start, mapping.end - mapping.start).ok())
        accepted.Add(mapping.start, mapping.end);
    }
    ZP_PAUSE_POINT("register.asked");
    before = std::move(*maps);
    if (!asked) break;  // so `before` was read after the last registration
    if (round == kRegisterRounds) return false;
  }
  std::vector<AddressRange> proven;
  AddressRange mapping;
  for (const uint64_t page : unknown) {
    if (page >= mapping.start && page < mapping.end) continue;
    mapping = {};
    const auto entry = std::find_if(before.begin(), before.end(), [&](const MapEntry& candidate) {
      return candidate.start <= page && page < candidate.end;
    });
    if (entry == before.end()) continue;
    mapping = {entry->start, entry->end};
    if (accepted.Contains(page) && IsRegistered(page)) proven.push_back(mapping);
  }
  zp::WriterLock lock(meta_mu_);
  if (event_seq_ != seq) return false;
  for (const AddressRange& range : proven) registered_.Add(range.start, range.end);
  return true;
}

bool Client::IsOwn(const AddressRange& range) const {
  const auto overlaps = [&](const AddressRange& own) {
    return range.start < own.end && own.start < range.end;
  };
  return overlaps(ranges_.arena) || overlaps(ranges_.staging) || overlaps(ranges_.notes);
}

void Client::RegisterGrowth() {
  if (channel_ == nullptr || !evict_mu_.TryLock()) return;
  const auto now = std::chrono::steady_clock::now();
  if (evicting_ && now - growth_at_ >= kGrowthEvery) {
    growth_at_ = now;
    scanner_.Refresh(memory_, false);
    auto maps = memory_.ReadMaps();
    std::vector<uint64_t> pages;
    if (maps.ok()) {
      for (const MapEntry& entry : *maps) {
        if (!entry.private_rw_anonymous || entry.end - entry.start < kGrowthBytes ||
            IsOwn({entry.start, entry.end}))
          continue;
        // Its last page: growth goes upwards in a heap, and a mapping that is full needs no watching.
        pages.push_back(entry.end - zp::kPageBytes);
      }
    }
    (void)RegisterFor(pages);
  }
  evict_mu_.Unlock();
}

// Asks with a ZEROPAGE for a page that is expected to be present: EEXIST if its mapping is registered, ENOENT
// if not. Should it be missing, it is fresh memory, and zero is what a fault would have got. The mapping may
// be in a userfaultfd of the program's own since (17.2), where a MOVE would succeed all the same, and the
// page be lost: registered once more, it refuses.
bool Client::IsRegistered(uint64_t page) {
  zp::ReaderLock lock(meta_mu_);
  if (!index_.Get(PageIndex::FromAddress(page)).is_empty()) return false;
  const CopyOutcome outcome = uffd_.Zero(page, 1).outcome;
  if (outcome != CopyOutcome::kAlreadyPresent && outcome != CopyOutcome::kCopied) return false;
  return uffd_.Register(page, zp::kPageBytes).ok();
}

uint64_t Client::BeginBatch(const std::vector<uint64_t>& pages, bool registered) {
  zp::MutexLock posting(reader_mu_);  // see Post
  zp::WriterLock lock(meta_mu_);
  zp::MutexLock doom_lock(doomed_mu_);
  channel_->ResetResults();
  uint32_t count = 0;
  uint64_t doomed = 0;
  for (const uint64_t address : pages) {
    if (!registered_.set().Contains(address)) {
      // Refused to us: the program has a userfaultfd of its own there, or it is no memory of the plain kind.
      Add(registered ? stats_.refused_not_ours : stats_.refused_stale);
      continue;
    }
    if (doomed_.Contains(address)) {
      ++doomed;
      continue;
    }
    const PageIndex page = PageIndex::FromAddress(address);
    if (!index_.Ensure(page).ok()) break;
    if (index_.CompareExchange(page, Slot::Empty(), Slot::Busy(kStaging, count)) != Exchange::kDone) continue;
    batch_page_[count++] = address;
  }
  Add(stats_.refused_doomed, doomed);
  batch_count_ = count;
  batch_seq_ = event_seq_;
  return count;
}

void Client::RunBatch(uint64_t count) {
  std::array<uint64_t, wire::kRingSlots> pages;
  uint64_t seq = 0;
  {
    zp::ReaderLock lock(meta_mu_);
    pages = batch_page_;
    seq = batch_seq_;
  }
  batch_posted_ = Post(wire::kOpMove, std::span(pages).first(count), seq).ok();
  if (!batch_posted_) return;
  ZP_PAUSE_POINT("evict.posted");
  staging_dirty_ = true;
  auto awaited = channel_->Await(kAgentPatience);
  if (awaited == AgentChannel::AwaitOutcome::kTimeout) {
    if (channel_->RevokePending()) {
      Add(stats_.revoked);
      return;
    }
    awaited = channel_->Await(kAgentRunTime);
  }
  if (awaited == AgentChannel::AwaitOutcome::kDone) return;
  // Stopped in the middle, or gone: decide from what the kernel shows.
  zp::MutexLock reading(reader_mu_);
  OverruleAgent();
  channel_->ReleaseGate();
}

uint64_t Client::FinishBatch(FaultScratch& scratch, std::vector<uint64_t>* busy) {
  uint32_t count = 0;
  {
    zp::ReaderLock lock(meta_mu_);
    if (batch_posted_) CollectStaged();
    count = batch_count_;
  }
  uint64_t evicted = 0;
  for (uint32_t n = 0; n < count; ++n) evicted += FinishSlot(n, scratch, busy) ? 1 : 0;
  zp::WriterLock lock(meta_mu_);
  batch_count_ = 0;
  Add(stats_.evicted_pages, evicted);
  return evicted;
}

// What lies in staging has left the application, whatever the agent's word on it: it may have been stopped
// behind its MOVE, or it may not know, since the kernel may move more pages than it says (H28). A page that
// is in the application as well did not leave: staging was populated by mlockall (5.13).
void Client::CollectStaged() {
  if (channel_ == nullptr) return;  // a forked child has no staging
  std::vector<page_region> staged;
  const uint64_t start = ranges_.staging.start;
  uint64_t end = start;
  const auto is_open = [&](uint32_t n) ZP_REQUIRES_SHARED(meta_mu_) {
    return channel_->result(n) != wire::kCopied &&
           index_.Get(PageIndex::FromAddress(batch_page_[n])) == Slot::Busy(kStaging, n);
  };
  for (uint32_t n = 0; n < batch_count_; ++n) {
    if (is_open(n)) end = start + uint64_t{n + 1} * zp::kPageBytes;
  }
  if (end == start || !memory_.ScanOccupied(start, end, &staged).ok()) return;
  for (const page_region& region : staged) {
    for (uint64_t at = region.start; at < region.end; at += zp::kPageBytes) {
      const auto n = static_cast<uint32_t>((at - start) / zp::kPageBytes);
      if (!is_open(n)) continue;
      std::vector<page_region> stayed;
      const uint64_t page = batch_page_[n];
      if (channel_->result(n) != wire::kMoved &&
          (!memory_.ScanOccupied(page, page + zp::kPageBytes, &stayed).ok() || !stayed.empty()))
        continue;
      std::array<std::byte, zp::kPageBytes> content;
      if (!memory_.Read(at, content.data(), content.size())) continue;
      channel_->SetPage(n, content.data());
      channel_->SetCopied(n);
    }
  }
}

// A page that left the application and cannot be had from staging: lost, which is told (SIGBUS), never zero.
void Client::LoseStaged(PageIndex page) {
  Add(stats_.corrupt);
  for (int tries = 0; tries < kHomeTries && uffd_.Poison(page.address()).outcome == CopyOutcome::kRetry;
       ++tries) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

bool Client::FinishSlot(uint32_t n, FaultScratch& scratch, std::vector<uint64_t>* busy) {
  const uint32_t result = batch_posted_ ? channel_->result(n) : uint32_t{wire::kStale};
  uint64_t address = 0;
  {
    zp::ReaderLock lock(meta_mu_);
    address = batch_page_[n];
  }
  if (result == wire::kCopied) {
    // The client can write the ring: encode a copy that cannot change.
    channel_->CopyPage(n, scratch.run.data());
    const zp::PageView content(scratch.run.data(), zp::kPageBytes);
    auto stored = services_.store.Store(content, OwnerOf(PageIndex::FromAddress(address)), node_.now(),
                                        store_as_, scratch.codec);
    if (!stored.ok()) {
      Add(stats_.refused_no_memory);
      PutHome(n, scratch);
      return false;
    }
    CountStored(*stored);
    ZP_PAUSE_POINT("evict.stored");
    if (ReplaceStaging(n, *stored)) {
      ZP_PAUSE_POINT("evict.published");
      return true;
    }
    Forget(*stored);  // faulted home or dropped meanwhile
    return false;
  }
  CountRefusal(result, address);
  if (result == wire::kBusy) busy->push_back(address);
  if (result == wire::kMoved) LoseStaged(PageIndex::FromAddress(address));
  (void)ReplaceStaging(n, Slot::Empty());
  return false;
}

// Publishes what becomes of slot n, unless the page is no longer in it.
bool Client::ReplaceStaging(uint32_t n, Slot with) {
  const Slot staging = Slot::Busy(kStaging, n);
  for (;;) {
    {
      zp::ReaderLock lock(meta_mu_);
      const PageIndex page = PageIndex::FromAddress(batch_page_[n]);
      const Slot now = index_.Get(page);
      if (now == staging) {
        if (index_.CompareExchange(page, staging, with) == Exchange::kDone) return true;
      } else if (!(now.is_busy() && now.busy_kind() == kFilling)) {
        return false;
      }
    }
    std::this_thread::yield();  // a fault is being answered from staging; it may still be put back
  }
}

// The pool is full: the page goes back where it was, uncompressed, from the caller's copy in `scratch`.
void Client::PutHome(uint32_t n, FaultScratch& scratch) {
  const Slot staging = Slot::Busy(kStaging, n);
  for (int tries = 0; tries < kHomeTries;) {
    {
      zp::ReaderLock lock(meta_mu_);
      const PageIndex page = PageIndex::FromAddress(batch_page_[n]);
      const Slot now = index_.Get(page);
      if (now == staging) {
        const ResolveOutcome outcome = GiveStaged(page, now, scratch);
        if (outcome == ResolveOutcome::kResolved && index_.Get(page) != staging) return;
        if (outcome == ResolveOutcome::kGone) break;
        if (outcome == ResolveOutcome::kResolved) ++tries;
      } else if (!(now.is_busy() && now.busy_kind() == kFilling)) {
        return;  // a fault took it home, or an event dropped it
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  zp::PageIndex page;
  {
    zp::ReaderLock lock(meta_mu_);
    page = PageIndex::FromAddress(batch_page_[n]);
  }
  LoseStaged(page);
  (void)ReplaceStaging(n, Slot::Empty());
}

// After a fork a page stays shared until it is written (6.2): written by populate, by the agent, outside the
// gate.
void Client::Unshare(const std::vector<uint64_t>& pages) {
  if (!Post(wire::kOpPopulate, pages, 0).ok()) return;
  (void)channel_->Await(kAgentRunTime);
  if (unshared_.size() > kUnsharedRemembered) unshared_.clear();
  unshared_.insert(pages.begin(), pages.end());
}

bool Client::ReleaseStaging() {
  if (!staging_dirty_) return true;
  if (!Post(wire::kOpRelease, {}, 0).ok()) return false;
  if (channel_->Await(kAgentPatience) == AgentChannel::AwaitOutcome::kDone) {
    staging_dirty_ = false;
    return true;
  }
  (void)channel_->RevokePending();
  return false;
}

void Client::CountRefusal(uint32_t result, uint64_t page) {
  switch (result) {
    case wire::kHole:
      Add(stats_.refused_hole);
      break;
    case wire::kBusy:
      // Shared after a fork, unless un-sharing it did not help: then somebody holds a reference.
      if (forked_.load(std::memory_order_relaxed) && !unshared_.contains(page)) {
        Add(stats_.refused_busy);
      } else {
        Add(stats_.refused_pinned);
      }
      break;
    case wire::kNotOurs:
      Add(stats_.refused_not_ours);
      break;
    case wire::kFailed:
      Add(stats_.refused_failed);
      break;
    default:
      Add(stats_.refused_stale);
      break;
  }
}

}  // namespace uzswap
