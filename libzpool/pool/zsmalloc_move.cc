// ZsmallocPool's part of migration: a span is reserved, isolated, moved and put back. See MovableOwner.
#include <algorithm>
#include <bit>
#include <optional>

#include "libzpool/base/pause_point.h"
#include "libzpool/pool/zsmalloc_pool.h"

namespace zp {

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

}  // namespace zp
