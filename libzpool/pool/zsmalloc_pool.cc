#include "libzpool/pool/zsmalloc_pool.h"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "libzpool/base/pause_point.h"

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
// Zspages are packed anew if that frees one of so many of their frames.
constexpr uint64_t kMergeGain = 8;

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

// ---- moving

ZsmallocPool::SizeClass* ZsmallocPool::ClassOf(uint32_t span) {
  if (span >= arena_.span_count()) return nullptr;
  const TableWord found = At(span);
  return found.word == 0 ? nullptr : &classes_[found.size_class()];
}

Zspage* ZsmallocPool::FindLocked(SizeClass& c, uint32_t span) {
  const TableWord found = At(span);
  return found.word != 0 && &classes_[found.size_class()] == &c ? found.zspage() : nullptr;
}

std::optional<SpanShape> ZsmallocPool::ShapeOf(uint32_t span) {
  SizeClass* c = ClassOf(span);
  if (c == nullptr) return std::nullopt;
  MutexLock lock(c->mu);
  const Zspage* zspage = FindLocked(*c, span);
  if (zspage == nullptr || zspage->isolated) return std::nullopt;
  return SpanShape{zspage->occupied(), zspage->size_class()};
}

Result<uint32_t> ZsmallocPool::Reserve(const SpanShape& shape) {
  const uint32_t count = static_cast<uint32_t>(std::popcount(shape.frames));
  SizeClass& c = classes_[shape.size_class];
  Zspage* const zspage = ZP_TRY(NewZspage(shape.size_class));
  Status got = Error{Errc::kNoMemory, 0, "frames for a migration"};
  if (arena_.TryTakeForMigration(count)) {
    got = arena_.PopulateFresh(zspage->span(), shape.frames);
    if (!got.ok()) arena_.Punch(zspage->span(), shape.frames);
  }
  if (!got.ok()) {
    {
      MutexLock lock(c.mu);
      span_table_[zspage->span()].store(0, std::memory_order_release);
    }
    DiscardZspage(zspage);
    return got.error();
  }
  MutexLock lock(c.mu);
  ++c.stats.zspages;
  c.stats.frames += count;
  zspage->MarkTaken(shape.frames);
  zspage->MarkPresent(shape.frames);
  CountIdleLocked(c, std::popcount(zspage->idle()));
  return zspage->span();
}

MigrateOutcome ZsmallocPool::Isolate(uint32_t span, const SpanShape& shape) {
  SizeClass* c = ClassOf(span);
  if (c == nullptr) return MigrateOutcome::kGone;
  MutexLock lock(c->mu);
  Zspage* zspage = FindLocked(*c, span);
  if (zspage == nullptr) return MigrateOutcome::kGone;
  if (zspage->isolated) return MigrateOutcome::kBusy;
  if (zspage->pins != 0) return MigrateOutcome::kPinned;
  if (zspage->size_class() != shape.size_class || (zspage->occupied() & ~shape.frames) != 0 ||
      zspage->punching() != 0 || zspage->HasUnbound()) {
    return MigrateOutcome::kBusy;
  }
  UnlinkLocked(*c, zspage);
  zspage->isolated = true;
  return MigrateOutcome::kMoved;
}

bool ZsmallocPool::MoveObject(Zspage* from, uint32_t slot, ZsmallocPool& pool, Zspage* to, uint32_t to_slot,
                              Handle handle, uint64_t word) {
  Location location = Location::Decode(word);
  const int64_t length = location.length;
  pool.arena_.Write(to->OffsetOf(to_slot), {arena_.At(from->OffsetOf(slot)), location.length});
  to->SetHandle(to_slot, handle);
  location.node = pool.arena_.node();
  location.offset = to->OffsetOf(to_slot);
  ZP_PAUSE_POINT("move.copied");
  // Counted there before it can be freed there.
  pool.classes_[to->size_class()].Count(1, length);
  if (handles_.CompareExchangeLocation(handle, word, location.Encode())) {
    classes_[from->size_class()].Count(-1, -length);
    from->SetHandle(slot, kMovedAway);
    return true;
  }
  pool.classes_[to->size_class()].Count(-1, -length);
  return false;
}

Zspage::UsedWords ZsmallocPool::CopyUsed(const Zspage* zspage) {
  SizeClass& c = classes_[zspage->size_class()];
  MutexLock lock(c.mu);
  return zspage->used_slots();
}

MigratedSpan ZsmallocPool::Migrate(uint32_t span, MovableOwner& target, uint32_t target_span,
                                   const std::atomic<bool>* abort) {
  return MoveSpan(span, static_cast<ZsmallocPool&>(target), target_span, nullptr, abort);
}

MigratedSpan ZsmallocPool::MoveSpan(uint32_t span, ZsmallocPool& pool, uint32_t target_span, uint32_t* packed,
                                    const std::atomic<bool>* abort) {
  // The caller's: both are isolated.
  Zspage* const from = At(span).zspage();
  Zspage* const to = pool.At(target_span).zspage();
  ZP_CHECK(from != nullptr && to != nullptr && from->isolated && to->isolated &&
               from->size_class() == to->size_class(),
           "migration of spans that do not match");
  // What there is to move; objects freed from now on are met below.
  const Zspage::UsedWords used = CopyUsed(from);
  // fn(slot, slot in the target) until it says no or the target has no more room.
  const uint32_t first = packed != nullptr ? *packed : 0;
  const uint32_t room = packed != nullptr ? to->RoomBelow(to->present()) : from->objects();
  const auto for_each_slot = [&](auto&& fn) {
    uint32_t next = first;
    for (uint32_t word = 0; word < used.size(); ++word) {
      for (uint64_t rest = used[word]; rest != 0; rest &= rest - 1) {
        const uint32_t slot = word * 64 + static_cast<uint32_t>(std::countr_zero(rest));
        if (next == room || !fn(slot, packed != nullptr ? next : slot)) return;
        ++next;
      }
    }
  };
  {
    SlotSet claimed;
    for_each_slot([&](uint32_t, uint32_t to_slot) {
      if (packed != nullptr) ++*packed;
      to->Add(to_slot, &claimed);
      to->PrepareMovedAway(to_slot);
      return true;
    });
    SizeClass& c = pool.classes_[to->size_class()];
    MutexLock lock(c.mu);
    const int idle_before = std::popcount(to->idle());
    to->OccupyAll(claimed);
    pool.CountIdleLocked(c, std::popcount(to->idle()) - idle_before);
  }
  MigratedSpan result;
  for_each_slot([&](uint32_t slot, uint32_t to_slot) {
    ZP_PAUSE_POINT("migrate.object");
    if (abort != nullptr && abort->load(std::memory_order_relaxed)) {
      result.outcome = MigrateOutcome::kAborted;
      return false;
    }
    const Handle handle = from->handle(slot);
    const std::optional<uint64_t> word = handles_.LookupAt(handle, arena_.node(), from->OffsetOf(slot));
    if (!word.has_value()) return true;
    if (MoveObject(from, slot, pool, to, to_slot, handle, *word)) {
      ++result.objects;
      result.bytes += Location::Decode(*word).length;
    } else {
      to->SetHandle(to_slot, kMovedAway);
    }
    return true;
  });
  if (result.outcome != MigrateOutcome::kAborted) return result;
  for_each_slot([&](uint32_t slot, uint32_t to_slot) {
    if (from->handle(slot) != kMovedAway) return true;
    const Handle handle = to->handle(to_slot);
    const std::optional<uint64_t> word = handles_.LookupAt(handle, pool.arena_.node(), to->OffsetOf(to_slot));
    if (!word.has_value()) return true;
    Location location = Location::Decode(*word);
    const int64_t length = location.length;
    location.node = arena_.node();
    location.offset = from->OffsetOf(slot);
    from->SetHandle(slot, handle);
    classes_[from->size_class()].Count(1, length);
    if (handles_.CompareExchangeLocation(handle, *word, location.Encode())) {
      pool.classes_[to->size_class()].Count(-1, -length);
      to->SetHandle(to_slot, kMovedAway);
    } else {
      classes_[from->size_class()].Count(-1, -length);
      from->SetHandle(slot, kMovedAway);  // freed there: here, too, then
    }
    return true;
  });
  result.objects = 0;
  result.bytes = 0;
  return result;
}

void ZsmallocPool::Putback(uint32_t span) {
  Zspage* const zspage = At(span).zspage();
  ZP_CHECK(zspage != nullptr && zspage->isolated, "putback of a span that is not isolated");
  SizeClass& c = classes_[zspage->size_class()];
  // Slots that their objects moved away from are nobody's but ours.
  const Zspage::UsedWords used = CopyUsed(zspage);
  SlotSet moved_away;
  for (uint32_t word = 0; word < used.size(); ++word) {
    for (uint64_t rest = used[word]; rest != 0; rest &= rest - 1) {
      const uint32_t slot = word * 64 + static_cast<uint32_t>(std::countr_zero(rest));
      if (zspage->handle(slot) == kMovedAway) zspage->Add(slot, &moved_away);
    }
  }
  PunchBatch batch;
  bool vacant = false;
  {
    MutexLock lock(c.mu);
    const int idle_before = std::popcount(zspage->idle());
    zspage->VacateAll(moved_away);
    CountIdleLocked(c, std::popcount(zspage->idle()) - idle_before);
    zspage->isolated = false;
    vacant = DetachIfVacantLocked(c, zspage);
    if (!vacant) {
      RelinkLocked(c, zspage);
      // No frame is on its way out, so with no object all that are taken are idle.
      if (zspage->live() == 0) TakeIdleLocked(c, zspage, &batch);
    }
  }
  if (vacant) DiscardZspage(zspage);
  FinishPunch(c, &batch);
}

// ---- compaction

bool ZsmallocPool::AddMoving(Zspage* from, uint32_t slot, const Claim& to, CompactBatch* batch) const {
  const Handle handle = from->handle(slot);
  const std::optional<uint64_t> word = handles_.LookupAt(handle, arena_.node(), from->OffsetOf(slot));
  if (!word.has_value()) return false;
  batch->objects[batch->count++] = {handle, *word, slot, to};
  return true;
}

// All that is in `from`, or the first of it, into holes of others; it is in no list.
bool ZsmallocPool::ChooseHolesLocked(SizeClass& c, Zspage* from, CompactBatch* batch) {
  const uint32_t wanted = std::min(from->live(), kCompactObjects);
  for (int at = from->HighestUsed(from->objects()); at >= 0 && batch->count < wanted;
       at = from->HighestUsed(static_cast<uint32_t>(at))) {
    Claim claim;
    if (ClaimLocked(c, true, Limits::kKept, &claim) != ClaimOutcome::kClaimed) break;
    if (!AddMoving(from, static_cast<uint32_t>(at), claim, batch)) VacateLocked(c, claim.zspage, claim.slot);
  }
  // Some may be on their way in or out; but if there was no room for most, the frames would not come free.
  if (batch->count * 2 > wanted) return true;
  for (uint32_t i = 0; i < batch->count; ++i)
    VacateLocked(c, batch->objects[i].to.zspage, batch->objects[i].to.slot);
  batch->count = 0;
  return false;
}

ZsmallocPool::Choice ZsmallocPool::ChooseLocked(SizeClass& c, uint32_t waste_permille, CompactBatch* batch) {
  const uint64_t object_bytes = c.stats.object_bytes;
  const auto frames_for = [&](uint64_t objects) {
    return (objects * object_bytes + kPageBytes - 1) / kPageBytes;
  };
  const uint64_t objects = c.objects.load(std::memory_order_relaxed);
  const uint64_t in_use = c.stats.frames - c.stats.idle_frames;
  if (in_use <= frames_for(objects) ||
      (in_use - frames_for(objects)) * 1000 <= c.stats.frames * waste_permille)
    return {};
  Choice merge;
  uint64_t live = 0;
  uint64_t frames = 0;
  for (int group = 0; group < static_cast<int>(FullnessGroup::kFull); ++group) {
    Zspage* zspage = c.groups[static_cast<size_t>(group)].front();
    for (; zspage != nullptr && merge.count < kMergeSpans; zspage = GroupList::Next(zspage)) {
      if (zspage->pins != 0 || zspage->punching() != 0 || zspage->live() == 0) continue;
      if (merge.count == 0 && group < static_cast<int>(FullnessGroup::kAlmostFull)) {
        UnlinkLocked(c, zspage);
        zspage->isolated = true;
        Choice holes;
        holes.from = zspage;
        if (ChooseHolesLocked(c, zspage, batch)) return holes;
        zspage->isolated = false;
        RelinkLocked(c, zspage);
      }
      if (live + zspage->live() > zspage->objects()) break;
      live += zspage->live();
      frames += static_cast<uint64_t>(std::popcount(zspage->occupied()));
      merge.spans[merge.count++] = zspage->span();
    }
  }
  merge.frames = frames_for(live);
  const bool gains = frames > merge.frames && (frames - merge.frames) * kMergeGain >= frames;
  return gains ? merge : Choice{};
}

Compacted ZsmallocPool::Merge(SizeClass& c, const Choice& choice, Epochs& epochs) {
  const uint32_t size_class = classes_.NumberOf(c);
  const uint64_t all = ~uint64_t{0};
  const Result<uint32_t> target =
      Reserve({choice.frames >= 64 ? all : (uint64_t{1} << choice.frames) - 1, size_class});
  if (!target.ok()) return {};
  Compacted result;
  std::array<uint32_t, kMergeSpans> isolated;
  uint32_t count = 0;
  for (uint32_t i = 0; i < choice.count; ++i) {
    if (Isolate(choice.spans[i], {all, size_class}) == MigrateOutcome::kMoved)
      isolated[count++] = choice.spans[i];
  }
  uint32_t next = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const MigratedSpan moved = MoveSpan(isolated[i], *this, *target, &next, nullptr);
    result.objects += moved.objects;
    result.bytes += moved.bytes;
  }
  ZP_PAUSE_POINT("compact.published");
  epochs.Synchronize();
  for (uint32_t i = 0; i < count; ++i) Putback(isolated[i]);
  Putback(*target);
  return result;
}

Compacted ZsmallocPool::Compact(uint32_t size_class, uint32_t waste_permille, Epochs& epochs) {
  SizeClass& c = classes_[size_class];
  CompactBatch batch;
  Compacted result;
  Choice choice;
  {
    MutexLock lock(c.mu);
    choice = ChooseLocked(c, waste_permille, &batch);
  }
  Zspage* const from = choice.from;
  if (from == nullptr) return choice.count == 0 ? result : Merge(c, choice, epochs);
  for (uint32_t i = 0; i < batch.count; ++i) {
    Moving& object = batch.objects[i];
    object.moved =
        MoveObject(from, object.slot, *this, object.to.zspage, object.to.slot, object.handle, object.word);
    if (!object.moved) continue;
    ++result.objects;
    result.bytes += Location::Decode(object.word).length;
  }
  ZP_PAUSE_POINT("compact.published");
  epochs.Synchronize();
  PunchBatch punch;
  {
    MutexLock lock(c.mu);
    for (uint32_t i = 0; i < batch.count; ++i) {
      const Moving& object = batch.objects[i];
      if (object.moved) {
        VacateLocked(c, from, object.slot);
      } else {
        VacateLocked(c, object.to.zspage, object.to.slot);
      }
    }
    from->isolated = false;
    RelinkLocked(c, from);
    if (from->idle() != 0) TakeIdleLocked(c, from, &punch);
  }
  FinishPunch(c, &punch);
  return result;
}

}  // namespace zp
