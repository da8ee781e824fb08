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

}  // namespace

Result<std::unique_ptr<ZsmallocPool>> ZsmallocPool::Create(FrameArena& arena, HandleTable& handles,
                                                           FrameOwner owner) {
  Mapping table = ZP_TRY(Mapping::Anonymous(arena.span_count() * sizeof(std::atomic<uintptr_t>)));
  std::unique_ptr<ZsmallocPool> pool(new (std::nothrow)
                                         ZsmallocPool(arena, handles, owner, std::move(table)));
  if (pool == nullptr || !pool->classes_.ok()) return Error{Errc::kNoMemory, 0, "pool"};
  for (SizeClass& c : pool->classes_) {
    MutexLock lock(c.mu);
    c.stats.object_bytes = SizeClassGeometry::ObjectBytes(pool->classes_.NumberOf(c));
  }
  return pool;
}

ZsmallocPool::ZsmallocPool(FrameArena& arena, HandleTable& handles, FrameOwner owner, Mapping span_table)
    : arena_(arena),
      handles_(handles),
      owner_(owner),
      span_table_memory_(std::move(span_table)),
      span_table_(reinterpret_cast<std::atomic<uintptr_t>*>(span_table_memory_.data())),
      classes_(owner == FrameOwner::kStandby ? kClassCount - 1 : 0) {}

ZsmallocPool::~ZsmallocPool() {
  if (!classes_.ok()) return;
  Trim();
  for (SizeClass& c : classes_) {
    ZP_DCHECK(c.objects.load(std::memory_order_relaxed) == 0, "a pool is destroyed with objects in it");
  }
}

Result<uint64_t> ZsmallocPool::Allocate(uint32_t length, Limits limits) {
  ZP_CHECK(length >= 1 && length <= kPageBytes, "length of an object");
  const uint32_t size_class = SizeClassGeometry::ClassOf(length);
  // Not a check: a mover that goes by a span's tag may ask for what is no standby object any more.
  if (size_class < classes_.first()) return Error{Errc::kInvalid, 0, "standby takes whole frames alone"};
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
        fresh->isolated = false;
        RelinkLocked(c, fresh);
      }
      outcome = ClaimLocked(c, false, limits, &claim);
      // Another may have made room meanwhile, and the claim went there.
      if (fresh != nullptr && DetachIfVacantLocked(c, fresh)) vacant = fresh;
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
        VacateLocked(c, claim.zspage, claim.slot);
      }
      // Whatever the kernel did give is idle now and goes back.
      TrimClass(c);
      return populated.error();
    }
  }
  c.Count(1, length);
  return claim.zspage->OffsetOf(claim.slot);
}

Zspage* ZsmallocPool::ZspageOf(uint64_t offset, uint32_t length) const {
  const uint64_t span = offset / kSpanBytes;
  ZP_CHECK(span < arena_.span_count(), "an object outside of the arena");
  Zspage* zspage = At(static_cast<uint32_t>(span)).zspage();
  ZP_CHECK(zspage != nullptr && zspage->size_class() == SizeClassGeometry::ClassOf(length),
           "what is no object");
  return zspage;
}

void ZsmallocPool::Bind(uint64_t offset, Handle handle) {
  Zspage* zspage = At(static_cast<uint32_t>(offset / kSpanBytes)).zspage();
  zspage->SetHandle(zspage->SlotAt(offset % kSpanBytes), handle);
}

Status ZsmallocPool::Pin(uint64_t offset, uint32_t length) {
  Zspage* zspage = ZspageOf(offset, length);
  SizeClass& c = classes_[zspage->size_class()];
  MutexLock lock(c.mu);
  if (zspage->isolated) return Error{Errc::kBusy, 0, "an object that is being moved"};
  ++zspage->pins;
  return OkStatus();
}

void ZsmallocPool::Unpin(uint64_t offset, uint32_t length) {
  Zspage* zspage = ZspageOf(offset, length);
  SizeClass& c = classes_[zspage->size_class()];
  MutexLock lock(c.mu);
  ZP_CHECK(zspage->pins > 0, "unpinned more often than pinned");
  --zspage->pins;
}

void ZsmallocPool::Free(uint64_t offset, uint32_t length) {
  Zspage* zspage = ZspageOf(offset, length);
  SizeClass& c = classes_[zspage->size_class()];
  c.Count(-1, -int64_t{length});
  PunchBatch batch;
  {
    MutexLock lock(c.mu);
    VacateLocked(c, zspage, zspage->SlotAt(offset % kSpanBytes));
    if (c.stats.idle_frames > c.stats.frames / kIdleShareOfClass &&
        idle_frames_.load(std::memory_order_relaxed) >
            kIdleFramesOfPool + arena_.frames_in_use() / kIdleShareOfPool) {
      CollectIdleLocked(c, &batch);
    }
  }
  FinishPunch(c, &batch);
}

size_t ZsmallocPool::List(uint32_t span, uint32_t* at, std::span<Handle> out) {
  SizeClass* const c = ClassOf(span);
  if (c == nullptr) return 0;
  MutexLock lock(c->mu);
  const Zspage* const zspage = FindLocked(*c, span);
  if (zspage == nullptr || zspage->isolated) return 0;
  size_t count = 0;
  for (int slot = zspage->LowestUsed(*at); slot >= 0 && count < out.size(); slot = zspage->LowestUsed(*at)) {
    *at = static_cast<uint32_t>(slot) + 1;
    const Handle handle = zspage->handle(static_cast<uint32_t>(slot));
    if (!handle.is_null() && handle != kMovedAway) out[count++] = handle;
  }
  return count;
}

uint64_t ZsmallocPool::Trim() {
  uint64_t frames = 0;
  for (SizeClass& c : classes_) frames += TrimClass(c);
  return frames;
}

SizeClassStats ZsmallocPool::class_stats(uint32_t size_class) const {
  const SizeClass& c = classes_[size_class];
  SizeClassStats stats;
  {
    MutexLock lock(c.mu);
    stats = c.stats;
  }
  stats.objects = c.objects.load(std::memory_order_relaxed);
  stats.stored_bytes = c.stored_bytes.load(std::memory_order_relaxed);
  return stats;
}

ObjectPoolStats ZsmallocPool::stats() const {
  ObjectPoolStats total;
  total.metadata_bytes = zspage_bytes_.load(std::memory_order_relaxed) + sizeof(*this) + classes_.bytes();
  for (uint32_t i = classes_.first(); i < kClassCount; ++i) {
    const SizeClassStats stats = class_stats(i);
    total.objects += stats.objects;
    total.stored_bytes += stats.stored_bytes;
    total.frames += stats.frames;
    total.idle_frames += stats.idle_frames;
  }
  return total;
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
        ZP_CHECK(!z->isolated, "isolated zspage in a list");
        ++zspages;
        objects += z->live();
        bool unbound = false;
        for (int slot = z->LowestUsed(0); slot >= 0; slot = z->LowestUsed(static_cast<uint32_t>(slot) + 1))
          unbound = unbound || z->handle(static_cast<uint32_t>(slot)).is_null();
        ZP_CHECK(unbound == z->HasUnbound(), "objects without handle out of step");
        frames += static_cast<uint64_t>(std::popcount(z->taken()));
        idle += static_cast<uint64_t>(std::popcount(z->idle()));
        for (uint32_t frame = 0; frame < kFramesPerSpan; ++frame) {
          const bool has_object = z->HasObject(frame);
          const bool taken = (z->taken() >> frame & 1) != 0;
          const bool is_idle = (z->idle() >> frame & 1) != 0;
          ZP_CHECK(taken || !has_object, "objects in a frame without memory");
          ZP_CHECK(!taken || is_idle != has_object, "idle frame out of step");
        }
      }
    }
    ZP_CHECK(objects == c.objects.load(std::memory_order_relaxed) && frames == c.stats.frames &&
                 idle == c.stats.idle_frames && zspages == c.stats.zspages,
             "class statistics out of step");
  }
}

ZsmallocPool::ClaimOutcome ZsmallocPool::ClaimLocked(SizeClass& c, bool holes, Limits limits, Claim* claim) {
  Zspage* zspage = nullptr;
  int slot = -1;
  const int lowest = holes ? static_cast<int>(FullnessGroup::kAlmostFull) : 0;
  for (int group = static_cast<int>(FullnessGroup::kAlmostFull); group >= lowest && slot < 0; --group) {
    zspage = c.groups[static_cast<size_t>(group)].front();
    for (int tried = 0; zspage != nullptr && tried < kZspagesTried; ++tried) {
      slot = holes ? zspage->FindFreePresent() : zspage->FindFree();
      if (slot >= 0) break;
      zspage = GroupList::Next(zspage);
    }
  }
  if (slot < 0) return ClaimOutcome::kNeedsZspage;

  // The address is translated while the slot is claimed: where it lies nobody was lately, and what is copied
  // there would wait for that (a seventh of a store).
  __builtin_prefetch(arena_.At(zspage->OffsetOf(static_cast<uint32_t>(slot))));
  const uint64_t frames = zspage->FramesOf(static_cast<uint32_t>(slot));
  const uint64_t missing = frames & ~zspage->taken();
  if (missing != 0) {
    if (!arena_.TryTake(static_cast<uint32_t>(std::popcount(missing)), limits))
      return ClaimOutcome::kOverBudget;
    c.stats.frames += static_cast<uint64_t>(std::popcount(missing));
  }
  const int idle_before = std::popcount(zspage->idle());
  zspage->MarkTaken(missing);
  CountIdleLocked(c, std::popcount(zspage->idle()) - idle_before);
  ClaimSlotLocked(c, zspage, static_cast<uint32_t>(slot));

  claim->zspage = zspage;
  claim->slot = static_cast<uint32_t>(slot);
  // Also frames that another thread has taken and not yet seen populated: to populate twice is harmless, to
  // touch too early is SIGBUS.
  claim->populate = frames & ~zspage->present();
  return ClaimOutcome::kClaimed;
}

void ZsmallocPool::ClaimSlotLocked(SizeClass& c, Zspage* zspage, uint32_t slot) {
  const int idle_before = std::popcount(zspage->idle());
  zspage->Occupy(slot);
  CountIdleLocked(c, std::popcount(zspage->idle()) - idle_before);
  RelinkLocked(c, zspage);
}

void ZsmallocPool::VacateLocked(SizeClass& c, Zspage* zspage, uint32_t slot) {
  const int idle_before = std::popcount(zspage->idle());
  zspage->Vacate(slot);
  CountIdleLocked(c, std::popcount(zspage->idle()) - idle_before);
  RelinkLocked(c, zspage);
}

void ZsmallocPool::CountIdleLocked(SizeClass& c, int delta) {
  if (delta == 0) return;
  c.stats.idle_frames += static_cast<uint64_t>(int64_t{delta});
  idle_frames_.fetch_add(static_cast<uint64_t>(int64_t{delta}), std::memory_order_relaxed);
}

void ZsmallocPool::RelinkLocked(SizeClass& c, Zspage* zspage) {
  if (zspage->isolated) return;
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

// Of a zspage in circulation that has idle frames. From here to FinishPunch its frames on their way out keep
// it.
void ZsmallocPool::TakeIdleLocked(SizeClass& c, Zspage* zspage, PunchBatch* batch) {
  const uint64_t frames = zspage->BeginPunch();
  ZP_CHECK(frames != 0, "nothing to punch");
  CountIdleLocked(c, -std::popcount(frames));
  c.idle.Remove(zspage);
  batch->items[static_cast<size_t>(batch->count++)] = {zspage, frames};
}

void ZsmallocPool::CollectIdleLocked(SizeClass& c, PunchBatch* batch) {
  while (batch->count < PunchBatch::kCapacity) {
    Zspage* zspage = c.idle.front();
    if (zspage == nullptr) break;
    TakeIdleLocked(c, zspage, batch);
  }
}

void ZsmallocPool::UnlinkLocked(SizeClass& c, Zspage* zspage) {
  if (GroupList::IsLinked(zspage)) {
    c.groups[static_cast<size_t>(zspage->linked_group)].Remove(zspage);
    --c.stats.zspages_by_group[static_cast<size_t>(zspage->linked_group)];
  }
  if (IdleList::IsLinked(zspage)) c.idle.Remove(zspage);
}

bool ZsmallocPool::DetachIfVacantLocked(SizeClass& c, Zspage* zspage) {
  if (!zspage->is_vacant() || zspage->isolated) return false;
  UnlinkLocked(c, zspage);
  zspage->isolated = true;
  --c.stats.zspages;
  // Under the lock, so that who finds a zspage in the table under it may use it.
  span_table_[zspage->span()].store(0, std::memory_order_release);
  return true;
}

Status ZsmallocPool::PopulateClaim(SizeClass& c, const Claim& claim) {
  ZP_TRY(arena_.Populate(claim.zspage->span(), claim.populate));
  MutexLock lock(c.mu);
  claim.zspage->MarkPresent(claim.populate);
  return OkStatus();
}

uint64_t ZsmallocPool::FinishPunch(SizeClass& c, PunchBatch* batch) {
  uint64_t frames = 0;
  for (int i = 0; i < batch->count; ++i) {
    const PunchBatch::Item item = batch->items[static_cast<size_t>(i)];
    arena_.Punch(item.zspage->span(), item.frames);
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
  const uint32_t span = ZP_TRY(arena_.AllocateSpan({owner_, static_cast<uint8_t>(size_class)}));
  const Result<Zspage*> made = MakeZspage(span, size_class);
  if (!made.ok()) arena_.FreeSpan(span);
  return made;
}

Result<Zspage*> ZsmallocPool::MakeZspage(uint32_t span, uint32_t size_class) {
  Zspage* zspage = Zspage::New(span, size_class);
  if (zspage == nullptr) return Error{Errc::kNoMemory, 0, "zspage"};
  zspage_bytes_.fetch_add(Zspage::BytesOf(size_class), std::memory_order_relaxed);
  span_table_[span].store(TableWord(zspage).word, std::memory_order_release);
  return zspage;
}

// It is out of the table and of all lists, and no frame of it is taken.
void ZsmallocPool::DiscardZspage(Zspage* zspage) {
  const uint32_t span = zspage->span();
  zspage_bytes_.fetch_sub(Zspage::BytesOf(zspage->size_class()), std::memory_order_relaxed);
  Zspage::Destroy(zspage);
  arena_.FreeSpan(span);
}

}  // namespace zp
