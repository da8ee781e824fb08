// A fault, from its address to the thread that goes on. See daemon/DESIGN.md, "The life of a fault".
#include <cstring>
#include <span>

#include "daemon/client/client.h"
#include "daemon/sys/clock.h"
#include "libzpool/base/pause_point.h"

namespace uzswap {

using zp::PageCount;
using zp::PageIndex;
using zp::Slot;
using Exchange = zp::OffsetIndex::Exchange;

namespace {

alignas(4096) const std::byte kZeros[zp::kPageBytes] = {};

// Zero pages mapped ahead of a fault on fresh memory. They cost a page-table entry each and no memory.
constexpr uint64_t kFaultAround = 16;

zp::MutablePageView PageOf(FaultScratch& scratch, uint64_t i) {
  return zp::MutablePageView(scratch.run.data() + i * zp::kPageBytes, zp::kPageBytes);
}

}  // namespace

ResolveOutcome Client::Resolve(const Fault& fault, FaultScratch& scratch) {
  if (Over(kOverrunPermille) && evictable_.load(std::memory_order_relaxed) &&
      MonotonicNs() - fault.started_ns < kThrottleNs) {
    Add(stats_.faults_throttled);
    return ResolveOutcome::kThrottled;
  }
  const PageIndex page = PageIndex::FromAddress(fault.address);
  ResolveOutcome outcome = ResolveOutcome::kRequeue;
  {
    // Look-up and COPY are one against evictions and events (H2, H6): both take this lock exclusively.
    zp::ReaderLock lock(meta_mu_);
    const Slot slot = index_.Get(page);
    if (slot.is_empty()) {
      outcome = ZeroFill(page, fault);
    } else if (slot.is_stored()) {
      outcome = Fill(page, slot, ReadAheadWindow(fault.tid, page), scratch);
      if (outcome == ResolveOutcome::kResolved) heat_.Touch(fault.address);
    } else if (slot.is_busy() && slot.busy_kind() == kStaging) {
      outcome = FillFromStaging(page, slot, scratch);
    }
    // Filling: another thread is at it. It may yet have to give up, so the address stays with us, too.
  }
  if (outcome == ResolveOutcome::kResolved) {
    stats_.latency.Record(MonotonicNs() - fault.started_ns);
  } else if (outcome == ResolveOutcome::kRequeue) {
    Add(stats_.faults_retried);
  }
  return outcome;
}

bool Client::Over(uint64_t permille) const {
  const uint64_t limit = limit_bytes();
  return limit != 0 && Read(stats_.resident_bytes) > limit + limit * permille / 1000;
}

void Client::Grew(uint64_t pages) {
  Add(stats_.resident_bytes, pages * zp::kPageBytes);
  const uint64_t limit = limit_bytes();
  if (limit == 0 || Read(stats_.resident_bytes) <= limit) return;
  if (!reclaim_wanted_.exchange(true, std::memory_order_relaxed)) services_.host.WantReclaim();
}

// Grows while a thread's faults follow one another, and falls to one page when they don't.
uint64_t Client::ReadAheadWindow(int tid, PageIndex page) {
  Stream& stream = streams_[static_cast<unsigned>(tid) % streams_.size()];
  uint32_t window = 1;
  if (stream.next_page.load(std::memory_order_relaxed) == page.value()) {
    window = std::min<uint32_t>(stream.window.load(std::memory_order_relaxed) * 2, FaultScratch::kMaxRun);
  }
  stream.window.store(window, std::memory_order_relaxed);
  stream.next_page.store(page.value() + window, std::memory_order_relaxed);
  return window;
}

// A page that we do not hold is fresh memory.
ResolveOutcome Client::ZeroFill(PageIndex page, const Fault& fault) {
  const uint64_t address = page.address();
  ZP_PAUSE_POINT("zero_fill.before_copy");
  // A page about to be written gets memory of its own at once; one that is read shares the kernel's zero
  // page.
  const CopyResult result = fault.write ? uffd_.Copy(address, kZeros, 1) : uffd_.Zero(address, 1);
  switch (result.outcome) {
    case CopyOutcome::kCopied:
    case CopyOutcome::kPartly:
      break;
    case CopyOutcome::kRetry:
      return ResolveOutcome::kRequeue;
    case CopyOutcome::kTargetGone:
      return ResolveOutcome::kGone;
    case CopyOutcome::kAlreadyPresent:
      Add(stats_.faults_duplicate);
      uffd_.Wake(address, zp::kPageBytes);
      return ResolveOutcome::kResolved;
    case CopyOutcome::kNoMapping:
    case CopyOutcome::kFailed:
      // Unmapped meanwhile, or no memory: the thread tries again and gets what the kernel would give (5.8).
      uffd_.Wake(address, zp::kPageBytes);
      return ResolveOutcome::kResolved;
  }
  SeeQuiet();
  Add(stats_.faults_zero_fill);
  uint64_t around = 0;
  while (around < kFaultAround && index_.Get(page + PageCount(1 + around)).is_empty()) ++around;
  uint64_t filled = 0;
  if (around > 0) {
    // ZEROPAGE stops at what is present and at guard markers, which a COPY would destroy (5.5).
    filled = uffd_.Zero(address + zp::kPageBytes, around).pages;
    Add(stats_.fault_around_pages, filled);
  }
  if (fault.write) Grew(1 + filled);  // who writes here goes on behind it
  // What was missing now, after its REMOVE was announced, holds nothing old any more.
  Undoom(address, address + (1 + filled) * zp::kPageBytes);
  return ResolveOutcome::kResolved;
}

// Gives back the page of `slot`, and up to `window` - 1 stored pages behind it in the same COPY.
ResolveOutcome Client::Fill(PageIndex page, Slot slot, uint64_t window, FaultScratch& scratch) {
  std::array<Slot, FaultScratch::kMaxRun> taken;
  const uint64_t wanted = std::min<uint64_t>(window, FaultScratch::kMaxRun);
  uint64_t run = 0;
  bool corrupt = false;
  while (run < wanted) {
    const PageIndex at = page + PageCount(run);
    const Slot now = run == 0 ? slot : index_.Get(at);
    if (!now.is_stored()) break;
    if (index_.CompareExchange(at, now, now.Filling()) != Exchange::kDone) break;
    if (services_.store.Load(now, PageOf(scratch, run), scratch.codec, record_->domain) !=
        zp::LoadOutcome::kLoaded) {
      corrupt = run == 0;
      (void)index_.CompareExchange(at, now.Filling(), now);
      break;
    }
    taken[run++] = now;
  }
  const uint64_t address = page.address();
  if (corrupt) {
    // Lost, not zero: whoever touches it is told (14.2). The object stays out of use but the slot is free.
    Add(stats_.corrupt);
    const CopyOutcome poisoned = uffd_.Poison(address).outcome;
    if (poisoned == CopyOutcome::kRetry || poisoned == CopyOutcome::kFailed) return ResolveOutcome::kRequeue;
    if (poisoned == CopyOutcome::kTargetGone) return ResolveOutcome::kGone;
    if (index_.CompareExchange(page, slot, Slot::Empty()) == Exchange::kDone) Forget(slot);
    uffd_.Wake(address, zp::kPageBytes);
    return ResolveOutcome::kResolved;
  }
  if (run == 0) return ResolveOutcome::kRequeue;  // somebody was faster

  ZP_PAUSE_POINT("fill.before_copy");
  CopyResult result = uffd_.Copy(address, scratch.run.data(), run);
  // A run that leaves the mapping is refused whole (9.1): the first page alone may still do.
  if (result.outcome == CopyOutcome::kNoMapping && run > 1)
    result = uffd_.Copy(address, scratch.run.data(), 1);
  ZP_PAUSE_POINT("fill.copied");
  uint64_t home = result.pages;
  if (result.outcome == CopyOutcome::kAlreadyPresent) {
    // The kernel's page is the truth; a copy beside it can only be old.
    Add(stats_.conflicts);
    home = 1;
  }
  for (uint64_t i = 0; i < run; ++i) {
    const Slot next = i < home ? Slot::Empty() : taken[i];
    // Ours alone while it is filling.
    (void)index_.CompareExchange(page + PageCount(i), taken[i].Filling(), next);
    ZP_PAUSE_POINT("fill.published");
    if (i < home) Forget(taken[i]);
  }
  // Who waits for a page of the run that was put back has to ask again.
  if (home < run) uffd_.Wake(address + home * zp::kPageBytes, (run - home) * zp::kPageBytes);
  switch (result.outcome) {
    case CopyOutcome::kCopied:
    case CopyOutcome::kPartly:
      SeeQuiet();
      Add(stats_.faults_stored);
      Add(stats_.read_ahead_pages, home - 1);
      Grew(home);
      return ResolveOutcome::kResolved;
    case CopyOutcome::kRetry:
      return ResolveOutcome::kRequeue;
    case CopyOutcome::kTargetGone:
      return ResolveOutcome::kGone;
    case CopyOutcome::kAlreadyPresent:
    case CopyOutcome::kNoMapping:
    case CopyOutcome::kFailed:
      break;
  }
  uffd_.Wake(address, zp::kPageBytes);
  return ResolveOutcome::kResolved;
}

// The page is in the agent's staging: answer from the ring's copy, never wait for its compression (H9).
ResolveOutcome Client::FillFromStaging(PageIndex page, Slot slot, FaultScratch& scratch) {
  const uint32_t n = slot.busy_payload();
  // Not moved yet, or not copied yet: a matter of microseconds, or of the batch's end.
  if (n >= wire::kRingSlots || channel_->result(n) != wire::kCopied) return ResolveOutcome::kRequeue;
  channel_->CopyPage(n, scratch.run.data());
  return GiveStaged(page, slot, scratch);
}

// Sends the first page of `scratch.run` home as the content of a slot in staging. kResolved with the slot as
// it was: the kernel refused, and the waiting thread was told to ask again.
ResolveOutcome Client::GiveStaged(PageIndex page, Slot slot, FaultScratch& scratch) {
  const Slot filling = Slot::Busy(kFilling, slot.busy_payload());
  if (index_.CompareExchange(page, slot, filling) != Exchange::kDone) return ResolveOutcome::kRequeue;
  ZP_PAUSE_POINT("give.taken");
  const CopyResult result = uffd_.Copy(page.address(), scratch.run.data(), 1);
  ZP_PAUSE_POINT("give.copied");
  const bool home = result.outcome == CopyOutcome::kCopied || result.outcome == CopyOutcome::kAlreadyPresent;
  (void)index_.CompareExchange(page, filling, home ? Slot::Empty() : slot);
  if (result.outcome == CopyOutcome::kRetry) return ResolveOutcome::kRequeue;
  if (result.outcome == CopyOutcome::kTargetGone) return ResolveOutcome::kGone;
  if (result.outcome == CopyOutcome::kCopied) {
    Add(stats_.faults_stored);
    heat_.Touch(page.address());
  } else {
    uffd_.Wake(page.address(), zp::kPageBytes);
  }
  return ResolveOutcome::kResolved;
}

void Client::Undoom(uint64_t start, uint64_t end) {
  if (!any_doomed_.load(std::memory_order_acquire)) return;
  zp::MutexLock lock(doomed_mu_);
  doomed_.Remove(start, end);
}

// Ends our hold of a stored page that is home, dropped or lost.
void Client::Forget(Slot stored) {
  if (!stored.is_stored()) return;
  if (stored.is_handle()) Sub(stats_.object_bytes, services_.store.object_bytes(stored));
  services_.store.Release(stored);
}

// Before the slot is published: a fault may Forget it at once.
void Client::CountStored(Slot slot) {
  if (slot.is_handle()) Add(stats_.object_bytes, services_.store.object_bytes(slot));
  ClientStats::RaiseTo(stats_.stored_peak_pages, index_.stored() + 1);
  ClientStats::RaiseTo(stats_.object_peak_bytes, Read(stats_.object_bytes));
}

}  // namespace uzswap
