// What the application does to its memory, as the kernel tells it. See daemon/DESIGN.md, "The life of an
// event".
#include <algorithm>
#include <cstring>
#include <thread>
#include <tuple>

#include "daemon/client/client.h"
#include "daemon/sys/clock.h"
#include "libzpool/base/pause_point.h"

namespace uzswap {

using zp::PageCount;
using zp::PageIndex;
using zp::Slot;
using Exchange = zp::OffsetIndex::Exchange;

namespace {

// The agent holds the gate for one ioctl of at most kPagesPerGate pages. Longer than this means that it lost
// its CPU or was stopped: then it is overruled.
constexpr std::chrono::milliseconds kGatePatience{20};
constexpr int kOverrulesTolerated = 16;                 // each less than
constexpr uint64_t kOverruleMemoryNs = 10'000'000'000;  // this after the one before

PageIndex PageAt(uint64_t address) { return PageIndex::FromAddress(address); }
PageIndex PageEnd(uint64_t address) { return PageIndex::FromAddress(address + zp::kPageBytes - 1); }

// What arrived there has gone. Whether there was any. (A hole in the middle stays in: nothing is lost by not
// dropping twice.)
bool TakeOut(const AddressRange& range, Moves* moves) {
  bool any = false;
  for (Moves::Arrival& arrival : moves->arrivals) {
    if (arrival.start >= range.end || range.start >= arrival.end) continue;
    any = true;
    if (range.start <= arrival.start) {
      arrival.start = std::min(range.end, arrival.end);
    } else if (range.end >= arrival.end) {
      arrival.end = range.start;
    }
  }
  return any;
}

void AddArrival(const AddressRange& range, const std::vector<AddressRange>& before, Moves* moves) {
  uint64_t last = 0;
  for (const Moves::Arrival& arrival : moves->arrivals) last = std::max(last, arrival.number);
  // Of those that nothing more is awaited of, the oldest is given up.
  *std::min_element(std::begin(moves->arrivals), std::end(moves->arrivals),
                    [](const Moves::Arrival& a, const Moves::Arrival& b) {
                      const auto rank = [](const Moves::Arrival& arrival) {
                        return std::tuple(arrival.late_start < arrival.late_end, arrival.start < arrival.end,
                                          arrival.number);
                      };
                      return rank(a) < rank(b);
                    }) = {range.start, range.end, last + 1, before.empty() ? 0 : before.front().start,
                          before.empty() ? 0 : before.back().end};
}

// Null: there is none.
Moves::Departure* FindDeparture(Moves* moves, const AddressRange& range) {
  const auto found = std::find_if(std::begin(moves->departures), std::end(moves->departures),
                                  [&](const Moves::Departure& departure) {
                                    return departure.start == range.start && departure.end == range.end;
                                  });
  return found == std::end(moves->departures) ? nullptr : found;
}

}  // namespace

void Client::ReadMessages(std::vector<Fault>* faults) {
  std::vector<Slot> dropped;
  bool starved = false;
  {
    zp::MutexLock reading(reader_mu_);
    TakeGate();
    // From before the read until the event is applied nobody else may look up and resolve (H5, H23): the
    // kernel refuses with EAGAIN only until the application's thread runs on, which the read lets it do. A
    // fault that was requeued meanwhile would find its new address empty and fill it with zeros.
    zp::WriterLock lock(meta_mu_);
    // Into the client table: a successor finds the last messages taken, and how far they were applied. The
    // old ones are gone before the count of steps speaks of the new ones.
    for (uffd_msg& message : record_->messages) message.event = 0;
    CompilerBarrier();
    if (any_moves_ && (was_quiet_.load(std::memory_order_relaxed) || uffd_.Quiet())) ForgetMoves();
    SetSteps(0);
    CompilerBarrier();
    const auto read = uffd_.Read(std::span(record_->messages));
    const size_t count = read.ok() ? *read : 0;
    starved = !read.ok();
    const uint64_t now = MonotonicNs();
    bool any_event = false;
    for (size_t i = 0; i < count; ++i) {
      const uffd_msg& message = record_->messages[i];
      if (message.event == UFFD_EVENT_PAGEFAULT) {
        faults->push_back({message.arg.pagefault.address & ~uint64_t{zp::kPageBytes - 1},
                           static_cast<int>(message.arg.pagefault.feat.ptid),
                           (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0, now});
        SetSteps(static_cast<uint32_t>(2 * (i + 1)));
        continue;
      }
      ZP_PAUSE_POINT("event.taken");
      any_event = true;
      ApplyEvent(message, &dropped);
      SetSteps(static_cast<uint32_t>(2 * (i + 1)));
      ZP_PAUSE_POINT("event.applied");
    }
    if (any_event) {
      record_->event_seq = ++event_seq_;
      if (channel_ != nullptr) channel_->PublishEventSeq(event_seq_);
    }
    if (channel_ != nullptr) channel_->ReleaseGate();
  }
  for (const Slot slot : dropped) Forget(slot);
  // No descriptor for a forked child: the message stays readable, so don't come back at once.
  if (starved) std::this_thread::sleep_for(kGatePatience);
}

void Client::TakeGate() {
  if (channel_ == nullptr || distrusted_.load(std::memory_order_relaxed)) return;
  if (channel_->TryTakeGate(kGatePatience)) return;
  OverruleAgent();
  // A client that keeps doing this costs other clients' faults their time: it is served without its gate, and
  // never evicted from again, so no MOVE of ours needs the gate. One that is stopped now and then is not
  // meant.
  const uint64_t now = MonotonicNs();
  overruled_ = now - overruled_ns_ > kOverruleMemoryNs ? 1 : overruled_ + 1;
  overruled_ns_ = now;
  if (overruled_ >= kOverrulesTolerated) distrusted_.store(true, std::memory_order_relaxed);
}

// The agent sits on the gate, perhaps stopped between taking it and its MOVE (H21). Without a registered
// destination no MOVE can succeed; the ioctl waits for one that is under way.
void Client::OverruleAgent() {
  Add(stats_.revoked);
  const AddressRange& staging = ranges_.staging;
  uffd_.Unregister(staging.start, staging.end - staging.start);
  channel_->MarkRevoked();
  channel_->SeizeGate();
}

void Client::Drop(uint64_t start, uint64_t end, std::vector<Slot>* dropped) {
  const uint64_t handles = index_.counts().handles;
  const size_t before = dropped->size();
  index_.DropRange(PageAt(start), PageEnd(end), dropped);
  // Objects that a forked child shares are not handed out; they leave our gauge at the average size.
  uint64_t shared = handles - index_.counts().handles;
  for (size_t i = before; i < dropped->size() && shared > 0; ++i) shared -= (*dropped)[i].is_handle() ? 1 : 0;
  if (shared > 0) Sub(stats_.object_bytes, Read(stats_.object_bytes) / handles * shared);
}

void Client::ApplyEvent(const uffd_msg& message, std::vector<Slot>* dropped) {
  switch (message.event) {
    case UFFD_EVENT_UNMAP: {
      Add(stats_.events_unmap);
      ApplyUnmap(message.arg.remove.start, message.arg.remove.end, dropped);
      break;
    }
    case UFFD_EVENT_REMOVE: {
      Add(stats_.events_remove);
      const auto& range = message.arg.remove;
      Drop(range.start, range.end, dropped);
      // Announced before the zap: what is still there must not come back later (H3).
      zp::MutexLock lock(doomed_mu_);
      doomed_.Add(range.start, range.end);
      clearance_.Doomed(range.start, range.end);
      any_doomed_.store(true, std::memory_order_release);
      break;
    }
    case UFFD_EVENT_REMAP:
      Add(stats_.events_remap);
      ApplyRemap(message.arg.remap.from, message.arg.remap.to, message.arg.remap.len, dropped);
      break;
    case UFFD_EVENT_FORK:
      Add(stats_.events_fork);
      ApplyFork(static_cast<int>(message.arg.fork.ufd));
      break;
    default:
      break;
  }
}

// The kernel announces an unmapping after it is done, and mremap announces that of the old place after the
// move was read: another thread can have moved a mapping, with what we hold of it, to the place meanwhile
// (H25). Such an UNMAP spares what arrived. It is known by a departure of just this range; or, which takes
// two threads that meet within the kernel, by what was registered at the place when an arrival there was
// applied: the kernel could not have moved a mapping there otherwise. Where two UNMAPs are awaited their
// order does not matter, since each is counted.
void Client::ApplyUnmap(uint64_t start, uint64_t end, std::vector<Slot>* dropped) {
  Moves moves = CurrentMoves();
  bool late = false;
  bool changed = false;
  if (Moves::Departure* const departure = FindDeparture(&moves, {start, end}); departure != nullptr) {
    *departure = {};
    late = changed = true;
  } else {
    RangeSet announced;  // of which no arrival was told yet
    announced.Add(start, end);
    std::sort(std::begin(moves.arrivals), std::end(moves.arrivals),
              [](const Moves::Arrival& a, const Moves::Arrival& b) { return a.number < b.number; });
    for (Moves::Arrival& arrival : moves.arrivals) {
      for (const AddressRange& part : announced.Intersect(arrival.late_start, arrival.late_end)) {
        announced.Remove(part.start, part.end);
        // Several mappings may have been there, each with an UNMAP of its own.
        if (part.start <= arrival.late_start) {
          arrival.late_start = part.end;
        } else {
          arrival.late_end = part.start;
        }
        late = changed = true;
      }
    }
  }
  RangeSet arrived;
  for (const Moves::Arrival& arrival : moves.arrivals) {
    if (late) arrived.Add(arrival.start, arrival.end);
  }
  const std::vector<AddressRange> gone = arrived.Gaps(start, end);
  for (const AddressRange& range : gone) {
    Drop(range.start, range.end, dropped);
    ZP_PAUSE_POINT("unmap.dropped");
    registered_.Remove(range.start, range.end);
    Undoom(range.start, range.end);
    changed |= TakeOut(range, &moves);
  }
  if (changed) StoreMoves(moves, ClientTable::LoadProgress(record_).steps + 2);
}

const Moves& Client::CurrentMoves() const { return record_->moves[ClientTable::LoadProgress(record_).moves]; }

void Client::StoreMoves(const Moves& moves, uint32_t steps) {
  const uint32_t other = 1 - ClientTable::LoadProgress(record_).moves;
  record_->moves[other] = moves;
  ClientTable::StoreProgress(record_, {steps, other});
}

void Client::SetSteps(uint32_t steps) {
  ClientTable::StoreProgress(record_, {steps, ClientTable::LoadProgress(record_).moves});
}

void Client::ForgetMoves() {
  Moves& moves = record_->moves[ClientTable::LoadProgress(record_).moves];
  for (Moves::Arrival& arrival : moves.arrivals) arrival.end = arrival.late_end = 0;
  for (Moves::Departure& departure : moves.departures) departure = {};
  any_moves_ = false;
}

void Client::ApplyRemap(uint64_t from, uint64_t to, uint64_t bytes, std::vector<Slot>* dropped) {
  const uint32_t steps = ClientTable::LoadProgress(record_).steps;
  // Once: what lies there after a crash in the middle was moved there, and is registered.
  if (steps % 2 == 0) {
    Drop(to, to + bytes, dropped);
    Moves moves = CurrentMoves();
    (void)TakeOut({from, from + bytes}, &moves);
    const std::vector<AddressRange> before = registered_.set().Intersect(to, to + bytes);
    AddArrival({to, to + bytes}, before, &moves);
    Moves::Departure* const place = FindDeparture(&moves, {});
    if (place != nullptr) *place = {from, from + bytes};
    StoreMoves(moves, steps + 1);
    any_moves_ = true;
    was_quiet_.store(false, std::memory_order_relaxed);
    ZP_PAUSE_POINT("remap.emptied");
  }
  // Out of memory for index nodes: the application waits, as it would for the kernel's own page tables. What
  // is still at the old place stays whole meanwhile.
  while (!index_.Rekey(PageAt(from), PageAt(to), PageCount(bytes / zp::kPageBytes)).ok()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  for (uint32_t n = 0; n < batch_count_; ++n) {
    if (batch_page_[n] >= from && batch_page_[n] < from + bytes) batch_page_[n] += to - from;
  }
  ZP_PAUSE_POINT("remap.moved");
  // The kernel registers the new place whole (5.3). An UNMAP of the old one follows, if it goes; where it
  // stays (MREMAP_DONTUNMAP) it is proven anew. With more threads within mremap than there are places for
  // departures it stays in the set, so that whatever arrives there awaits that UNMAP.
  Moves moves = CurrentMoves();
  if (FindDeparture(&moves, {from, from + bytes}) != nullptr) registered_.Remove(from, from + bytes);
  registered_.Add(to, to + bytes);
  zp::MutexLock lock(doomed_mu_);
  const auto moved = doomed_.Intersect(from, from + bytes);
  doomed_.Remove(to, to + bytes);
  for (const AddressRange& part : moved) {
    doomed_.Add(part.start + (to - from), part.end + (to - from));
    clearance_.Doomed(part.start + (to - from), part.end + (to - from));
  }
}

// The child's context exists in our descriptor table alone (6.1, H22), which the keeper shares. A successor
// knows by the child's record that this was done.
void Client::ApplyFork(int child_fd) {
  forked_.store(true, std::memory_order_release);
  auto uffd = Userfaultfd::Adopt(zp::UniqueFd(child_fd));
  if (!uffd.ok()) return;
  SettleBatch();
  ZP_PAUSE_POINT("fork.settled");
  auto record = services_.table.Allocate();
  const auto clone_index = [&] { return index_.Clone(record.ok() ? RootOf(*record) : nullptr); };
  auto clone = clone_index();
  while (!clone.ok()) {  // as in ApplyRemap: a child without its pages is no option
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    clone = clone_index();
  }
  if (!record.ok()) {
    // Every client number is taken. The child cannot be served, but it must never read zeros: its evicted
    // pages are marked lost before its descriptor is closed.
    clone->ForEach(PageIndex(0), PageIndex(zp::kPageIndexLimit), [&](PageIndex page, Slot slot) {
      if (slot.is_stored()) (void)uffd->Poison(page.address());
    });
    return;
  }
  (*record)->uid = identity_.uid;
  (*record)->parent_id = record_->id;
  (*record)->domain = record_->domain;
  (void)identity_.comm.copy((*record)->comm, sizeof((*record)->comm) - 1);
  (*record)->uffd_fd = uffd->fd();
  NoteStoreAs(*record, store_as_);
  auto child = std::shared_ptr<Client>(new Client(services_, {0, identity_.uid, identity_.comm},
                                                  std::move(*uffd), *record, std::move(*clone), store_as_));
  {
    zp::WriterLock lock(child->meta_mu_);
    for (const AddressRange& range : registered_.set().All()) child->registered_.Add(range.start, range.end);
    if (has_memory_ && ever_registered_.load(std::memory_order_relaxed)) {
      // The child must see zeros in what is wiped on fork (H11).
      std::vector<Slot> wiped;
      auto ranges = memory_.ReadWipeOnFork();
      if (ranges.ok()) {
        for (const MapEntry& range : *ranges) child->Drop(range.start, range.end, &wiped);
      }
      for (const Slot slot : wiped) services_.store.Release(slot);
    }
    Add(child->stats_.object_bytes, Read(stats_.object_bytes));
  }
  ZP_PAUSE_POINT("fork.cloned");
  child->Publish();
  ZP_PAUSE_POINT("fork.published");
  services_.host.AdoptChild(std::move(child));
}

// Runs with the gate held: no MOVE is under way, and what is pending will be refused as stale.
void Client::SettleBatch() {
  if (batch_count_ == 0) return;
  CollectStaged();
  auto scratch = std::make_unique<FaultScratch>();
  for (uint32_t n = 0; n < batch_count_; ++n) {
    const PageIndex page = PageAt(batch_page_[n]);
    const Slot staging = Slot::Busy(kStaging, n);
    if (index_.Get(page) != staging) continue;
    const uint32_t result = channel_->result(n);
    if (result != wire::kCopied) {
      if (result == wire::kMoved) LoseStaged(page);
      (void)index_.CompareExchange(page, staging, Slot::Empty());
      continue;
    }
    channel_->CopyPage(n, scratch->run.data());
    const zp::PageView content(scratch->run.data(), zp::kPageBytes);
    // Where the pool is full: neither parent nor child may lose the page, so it goes over the limit by this
    // one.
    auto stored = services_.store.StoreAlways(content, OwnerOf(page), node_.now(), store_as_, scratch->codec);
    if (!stored.ok()) {
      LoseStaged(page);  // no memory at all: the last resort of a dying machine
      (void)index_.CompareExchange(page, staging, Slot::Empty());
      continue;
    }
    CountStored(*stored);
    ZP_PAUSE_POINT("settle.stored");
    (void)index_.CompareExchange(page, staging, *stored);
    Add(stats_.evicted_pages);
  }
}

}  // namespace uzswap
