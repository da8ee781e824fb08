// ZsmallocPool, coming back: zspages are made anew from the spans' tags and from what the entries name.
#include <bit>

#include "libzpool/pool/zsmalloc_pool.h"

namespace zp {

Status ZsmallocPool::AdoptSpan(uint32_t span, uint32_t size_class, uint64_t present) {
  // Standby objects are whole frames.
  if (owner_ == FrameOwner::kStandby && size_class != kClassCount - 1)
    return Error{Errc::kInvalid, 0, "the size class of a span"};
  Zspage* const zspage = ZP_TRY(MakeZspage(span, size_class));
  arena_.AdoptSpan(span, present);
  SizeClass& c = classes_[size_class];
  MutexLock lock(c.mu);
  ++c.stats.zspages;
  c.stats.frames += static_cast<uint64_t>(std::popcount(present));
  zspage->MarkTaken(present);
  zspage->MarkPresent(present);
  CountIdleLocked(c, std::popcount(zspage->idle()));
  return OkStatus();
}

AdoptOutcome ZsmallocPool::AdoptObject(uint64_t offset, uint32_t length, Handle handle) {
  const uint64_t span = offset / kSpanBytes;
  Zspage* const zspage = span < arena_.span_count() ? At(static_cast<uint32_t>(span)).zspage() : nullptr;
  if (zspage == nullptr || zspage->size_class() != SizeClassGeometry::ClassOf(length) ||
      !zspage->HasSlotAt(offset % kSpanBytes))
    return AdoptOutcome::kBadPlace;
  const uint32_t slot = zspage->SlotAt(offset % kSpanBytes);
  if ((zspage->FramesOf(slot) & ~zspage->present()) != 0) return AdoptOutcome::kNoMemory;
  if (zspage->is_occupied(slot)) return AdoptOutcome::kOverlaps;
  SizeClass& c = classes_[zspage->size_class()];
  {
    MutexLock lock(c.mu);
    ClaimSlotLocked(c, zspage, slot);
  }
  zspage->SetHandle(slot, handle);
  c.Count(1, length);
  return AdoptOutcome::kAdopted;
}

void ZsmallocPool::Abandon() {
  for (uint32_t span = 0; span < arena_.span_limit(); ++span) {
    if (Zspage* const zspage = At(span).zspage(); zspage != nullptr) Zspage::Destroy(zspage);
    span_table_[span].store(0, std::memory_order_relaxed);
  }
  for (SizeClass& c : classes_) {
    MutexLock lock(c.mu);
    c.groups = {};
    c.idle = {};
    c.objects.store(0, std::memory_order_relaxed);
  }
}

}  // namespace zp
