#include "libzpool/pool/zsmalloc_pool.h"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

namespace zp {
namespace {

// Idle frames that are kept: by a class 1/32 of what it has, so that free-and-store of one object does not
// call the kernel each time; and in any case as many as the whole pool may have idle, 16 and 1/64 of its
// frames. Freeing a run of frames costs 1 us a frame, a single one 4 (see DESIGN.md), so they are collected
// before they go.
constexpr uint64_t kIdleShareOfClass = 32;
constexpr uint64_t kIdleFramesOfPool = 16;
constexpr uint64_t kIdleShareOfPool = 64;
// Zspages looked at per fullness group. More than one only when all free slots of the first lie in frames
// that are being punched.
constexpr int kZspagesTried = 4;

uint64_t ZspageBytes(uint32_t size_class) {
  return sizeof(Zspage) + (SizeClassGeometry::ObjectsPerZspage(size_class) + 63) / 64 * sizeof(uint64_t);
}

// The lowest run of set bits.
struct Run {
  uint32_t first;
  uint32_t count;
  uint64_t mask;
};
Run LowestRun(uint64_t frames) {
  const uint32_t first = static_cast<uint32_t>(std::countr_zero(frames));
  const uint32_t count = static_cast<uint32_t>(std::countr_one(frames >> first));
  const uint64_t ones = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
  return {first, count, ones << first};
}

}  // namespace

Result<std::unique_ptr<ZsmallocPool>> ZsmallocPool::Create(FrameArena& arena) {
  Mapping table = ZP_TRY(Mapping::Anonymous(arena.span_count() * sizeof(std::atomic<Zspage*>)));
  ZsmallocPool* pool = new (std::nothrow) ZsmallocPool(arena, std::move(table));
  if (pool == nullptr) return Error{Errc::kNoMemory, 0, "pool"};
  return std::unique_ptr<ZsmallocPool>(pool);
}

ZsmallocPool::ZsmallocPool(FrameArena& arena, Mapping span_table)
    : arena_(arena),
      span_table_memory_(std::move(span_table)),
      span_table_(reinterpret_cast<std::atomic<Zspage*>*>(span_table_memory_.data())) {
  for (uint32_t i = 0; i < kClassCount; ++i) {
    MutexLock lock(classes_[i].mu);
    classes_[i].stats.object_bytes = SizeClassGeometry::ObjectBytes(i);
  }
}

ZsmallocPool::~ZsmallocPool() {
  Trim();
  for (SizeClass& c : classes_) {
    MutexLock lock(c.mu);
    ZP_DCHECK(c.stats.objects == 0, "a pool is destroyed with objects in it");
  }
}

Result<uint64_t> ZsmallocPool::Allocate(uint32_t length) {
  ZP_CHECK(length >= 1 && length <= kPageBytes, "length of an object");
  const uint32_t size_class = SizeClassGeometry::ClassOf(length);
  SizeClass& c = classes_[size_class];
  Zspage* fresh = nullptr;
  Claim claim;
  for (bool trimmed = false;;) {
    ClaimOutcome outcome = ClaimOutcome::kClaimed;
    Zspage* vacant = nullptr;
    {
      MutexLock lock(c.mu);
      if (fresh != nullptr) {
        ++c.stats.zspages;
        RelinkLocked(c, fresh);
      }
      outcome = ClaimLocked(c, length, &claim);
      if (fresh != nullptr && outcome != ClaimOutcome::kClaimed && DetachIfVacantLocked(c, fresh))
        vacant = fresh;
      fresh = nullptr;
    }
    if (vacant != nullptr) DiscardZspage(vacant);
    if (outcome == ClaimOutcome::kClaimed) break;
    if (outcome == ClaimOutcome::kNeedsZspage) {
      fresh = ZP_TRY(NewZspage(size_class));
      continue;
    }
    if (trimmed || Trim() == 0) return Error{Errc::kNoMemory, 0, "pool capacity"};
    trimmed = true;
  }
  if (claim.populate != 0) {
    const Status populated = PopulateClaim(c, claim);
    if (!populated.ok()) {
      {
        MutexLock lock(c.mu);
        VacateLocked(c, claim.zspage, claim.slot, length);
      }
      // Whatever the kernel did give is idle now and goes back.
      TrimClass(c);
      return populated.error();
    }
  }
  return claim.zspage->OffsetOf(claim.slot);
}

void ZsmallocPool::Free(uint64_t offset, uint32_t length) {
  const uint64_t span = offset / kSpanBytes;
  ZP_CHECK(span < arena_.span_count(), "free outside of the arena");
  Zspage* zspage = span_table_[span].load(std::memory_order_acquire);
  ZP_CHECK(zspage != nullptr && zspage->size_class() == SizeClassGeometry::ClassOf(length),
           "free of what is no object");
  SizeClass& c = classes_[zspage->size_class()];
  PunchBatch batch;
  {
    MutexLock lock(c.mu);
    VacateLocked(c, zspage, zspage->SlotAt(offset % kSpanBytes), length);
    if (c.stats.idle_frames > c.stats.frames / kIdleShareOfClass &&
        idle_frames_.load(std::memory_order_relaxed) >
            kIdleFramesOfPool + arena_.frames_in_use() / kIdleShareOfPool) {
      CollectIdleLocked(c, &batch);
    }
  }
  FinishPunch(c, &batch);
}

uint64_t ZsmallocPool::Trim() {
  uint64_t frames = 0;
  for (SizeClass& c : classes_) frames += TrimClass(c);
  return frames;
}

SizeClassStats ZsmallocPool::class_stats(uint32_t size_class) const {
  const SizeClass& c = classes_[size_class];
  MutexLock lock(c.mu);
  return c.stats;
}

uint64_t ZsmallocPool::metadata_bytes() const {
  return zspage_bytes_.load(std::memory_order_relaxed) + sizeof(*this);
}

void ZsmallocPool::DebugVerify() const {
  for (const SizeClass& c : classes_) {
    MutexLock lock(c.mu);
    uint64_t objects = 0;
    uint64_t frames = 0;
    uint64_t idle = 0;
    uint64_t zspages = 0;
    for (int group = 0; group < kFullnessGroups; ++group) {
      for (const Zspage* z = c.groups[static_cast<size_t>(group)].front(); z != nullptr;
           z = GroupList::Next(z)) {
        ZP_CHECK(static_cast<int>(z->group()) == group, "zspage in the wrong fullness group");
        ZP_CHECK((z->idle() != 0) == IdleList::IsLinked(z), "idle list out of step");
        ZP_CHECK((z->idle() & ~z->taken()) == 0 && (z->present() & ~z->taken()) == 0, "frames out of step");
        ZP_CHECK(!z->is_vacant(), "vacant zspage kept");
        ++zspages;
        objects += z->live();
        frames += static_cast<uint64_t>(std::popcount(z->taken()));
        idle += static_cast<uint64_t>(std::popcount(z->idle()));
        for (uint32_t frame = 0; frame < kFramesPerSpan; ++frame) {
          const FrameDescriptor& d = arena_.descriptor(uint64_t{z->span()} * kFramesPerSpan + frame);
          const bool taken = (z->taken() >> frame & 1) != 0;
          const bool is_idle = (z->idle() >> frame & 1) != 0;
          ZP_CHECK(taken || d.live == 0, "objects in a frame without memory");
          ZP_CHECK(!taken || is_idle == (d.live == 0), "idle frame out of step");
        }
      }
    }
    ZP_CHECK(objects == c.stats.objects && frames == c.stats.frames && idle == c.stats.idle_frames &&
                 zspages == c.stats.zspages,
             "class statistics out of step");
  }
}

ZsmallocPool::ClaimOutcome ZsmallocPool::ClaimLocked(SizeClass& c, uint32_t length, Claim* claim) {
  Zspage* zspage = nullptr;
  int slot = -1;
  for (int group = static_cast<int>(FullnessGroup::kAlmostFull); group >= 0 && slot < 0; --group) {
    zspage = c.groups[static_cast<size_t>(group)].front();
    for (int tried = 0; zspage != nullptr && tried < kZspagesTried; ++tried) {
      slot = zspage->FindFree();
      if (slot >= 0) break;
      zspage = GroupList::Next(zspage);
    }
  }
  if (slot < 0) return ClaimOutcome::kNeedsZspage;

  const uint64_t frames = zspage->FramesOf(static_cast<uint32_t>(slot));
  const uint64_t missing = frames & ~zspage->taken();
  if (missing != 0) {
    if (!arena_.TryTake(static_cast<uint32_t>(std::popcount(missing)))) return ClaimOutcome::kOverBudget;
    c.stats.frames += static_cast<uint64_t>(std::popcount(missing));
  }
  const int idle_before = std::popcount(zspage->idle());
  zspage->MarkTaken(missing);
  zspage->Occupy(static_cast<uint32_t>(slot));
  CountIdleLocked(c, std::popcount(zspage->idle()) - idle_before);
  ++c.stats.objects;
  c.stats.stored_bytes += length;
  RelinkLocked(c, zspage);

  claim->zspage = zspage;
  claim->slot = static_cast<uint32_t>(slot);
  // Also frames that another thread has taken and not yet seen populated: to populate twice is harmless, to
  // touch too early is SIGBUS.
  claim->populate = frames & ~zspage->present();
  return ClaimOutcome::kClaimed;
}

void ZsmallocPool::VacateLocked(SizeClass& c, Zspage* zspage, uint32_t slot, uint32_t length) {
  const int idle_before = std::popcount(zspage->idle());
  zspage->Vacate(slot);
  CountIdleLocked(c, std::popcount(zspage->idle()) - idle_before);
  --c.stats.objects;
  c.stats.stored_bytes -= length;
  RelinkLocked(c, zspage);
}

void ZsmallocPool::CountIdleLocked(SizeClass& c, int delta) {
  if (delta == 0) return;
  c.stats.idle_frames += static_cast<uint64_t>(int64_t{delta});
  idle_frames_.fetch_add(static_cast<uint64_t>(int64_t{delta}), std::memory_order_relaxed);
}

void ZsmallocPool::RelinkLocked(SizeClass& c, Zspage* zspage) {
  const FullnessGroup group = zspage->group();
  if (!GroupList::IsLinked(zspage) || zspage->linked_group != group) {
    if (GroupList::IsLinked(zspage)) {
      c.groups[static_cast<size_t>(zspage->linked_group)].Remove(zspage);
      --c.stats.zspages_by_group[static_cast<size_t>(zspage->linked_group)];
    }
    c.groups[static_cast<size_t>(group)].PushFront(zspage);
    ++c.stats.zspages_by_group[static_cast<size_t>(group)];
    zspage->linked_group = group;
  }
  const bool has_idle = zspage->idle() != 0;
  if (has_idle && !IdleList::IsLinked(zspage)) c.idle.PushFront(zspage);
  if (!has_idle && IdleList::IsLinked(zspage)) c.idle.Remove(zspage);
}

void ZsmallocPool::CollectIdleLocked(SizeClass& c, PunchBatch* batch) {
  while (batch->count < PunchBatch::kCapacity) {
    Zspage* zspage = c.idle.front();
    if (zspage == nullptr) break;
    const uint64_t frames = zspage->BeginPunch();
    CountIdleLocked(c, -std::popcount(frames));
    c.idle.Remove(zspage);
    batch->items[static_cast<size_t>(batch->count++)] = {zspage, frames};
  }
}

bool ZsmallocPool::DetachIfVacantLocked(SizeClass& c, Zspage* zspage) {
  if (!zspage->is_vacant()) return false;
  c.groups[static_cast<size_t>(zspage->linked_group)].Remove(zspage);
  --c.stats.zspages_by_group[static_cast<size_t>(zspage->linked_group)];
  --c.stats.zspages;
  return true;
}

Status ZsmallocPool::PopulateClaim(SizeClass& c, const Claim& claim) {
  const uint64_t base = uint64_t{claim.zspage->span()} * kFramesPerSpan;
  for (uint64_t rest = claim.populate; rest != 0;) {
    const Run run = LowestRun(rest);
    ZP_TRY(arena_.Populate(base + run.first, run.count));
    rest &= ~run.mask;
  }
  MutexLock lock(c.mu);
  claim.zspage->MarkPresent(claim.populate);
  return OkStatus();
}

uint64_t ZsmallocPool::FinishPunch(SizeClass& c, PunchBatch* batch) {
  uint64_t frames = 0;
  for (int i = 0; i < batch->count; ++i) {
    const PunchBatch::Item item = batch->items[static_cast<size_t>(i)];
    const uint64_t base = uint64_t{item.zspage->span()} * kFramesPerSpan;
    for (uint64_t rest = item.frames; rest != 0;) {
      const Run run = LowestRun(rest);
      arena_.Punch(base + run.first, run.count);
      rest &= ~run.mask;
    }
    bool vacant = false;
    {
      MutexLock lock(c.mu);
      const uint64_t punched = static_cast<uint64_t>(std::popcount(item.frames));
      item.zspage->EndPunch(item.frames);
      c.stats.frames -= punched;
      frames += punched;
      vacant = DetachIfVacantLocked(c, item.zspage);
    }
    if (vacant) DiscardZspage(item.zspage);
  }
  batch->count = 0;
  return frames;
}

uint64_t ZsmallocPool::TrimClass(SizeClass& c) {
  uint64_t frames = 0;
  for (;;) {
    PunchBatch batch;
    {
      MutexLock lock(c.mu);
      CollectIdleLocked(c, &batch);
    }
    if (batch.count == 0) return frames;
    frames += FinishPunch(c, &batch);
  }
}

Result<Zspage*> ZsmallocPool::NewZspage(uint32_t size_class) {
  const uint32_t span = ZP_TRY(arena_.AllocateSpan());
  Zspage* zspage = Zspage::New(arena_, span, size_class);
  if (zspage == nullptr) {
    arena_.FreeSpan(span);
    return Error{Errc::kNoMemory, 0, "zspage"};
  }
  zspage_bytes_.fetch_add(ZspageBytes(size_class), std::memory_order_relaxed);
  span_table_[span].store(zspage, std::memory_order_release);
  return zspage;
}

void ZsmallocPool::DiscardZspage(Zspage* zspage) {
  const uint32_t span = zspage->span();
  span_table_[span].store(nullptr, std::memory_order_release);
  zspage_bytes_.fetch_sub(ZspageBytes(zspage->size_class()), std::memory_order_relaxed);
  Zspage::Destroy(zspage);
  arena_.FreeSpan(span);
}

}  // namespace zp
