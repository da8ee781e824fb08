// ZbudPool's part of migration: a span is reserved, isolated, moved and put back. See MovableOwner.
#include <bit>
#include <optional>

#include "libzpool/base/pause_point.h"
#include "libzpool/pool/zbud_pool.h"
#include "libzpool/pool/zbud_span.h"

namespace zp {

ZbudPool::Shard* ZbudPool::ShardAt(uint32_t span) {
  if (span >= arena_.span_count()) return nullptr;
  const uintptr_t word = span_table_[span].load(std::memory_order_acquire);
  return word == 0 ? nullptr : &shards_[word & kShardMask];
}

ZbudPool::Span* ZbudPool::FindLocked(const Shard& shard, uint32_t span) {
  const uintptr_t word = span_table_[span].load(std::memory_order_acquire);
  const bool is_its = word != 0 && &shards_[word & kShardMask] == &shard;
  return is_its ? reinterpret_cast<Span*>(word & ~kShardMask) : nullptr;
}

std::optional<SpanShape> ZbudPool::ShapeOf(uint32_t number) {
  Shard* const shard = ShardAt(number);
  if (shard == nullptr) return std::nullopt;
  MutexLock lock(shard->mu);
  const Span* const span = FindLocked(*shard, number);
  if (span == nullptr || span->isolated) return std::nullopt;
  return SpanShape{span->Occupied(), span->shard};
}

Result<uint32_t> ZbudPool::Reserve(const SpanShape& shape) {
  const uint32_t count = static_cast<uint32_t>(std::popcount(shape.frames));
  Shard& shard = shards_[shape.size_class];
  Span* const span = ZP_TRY(NewSpan(shape.size_class));
  if (!arena_.TryTakeForMigration(count)) {
    {
      MutexLock lock(shard.mu);
      span_table_[span->span].store(0, std::memory_order_release);
    }
    DiscardSpan(span);
    return Error{Errc::kNoMemory, 0, "frames for a migration"};
  }
  const Status populated = arena_.PopulateFresh(span->span, shape.frames);
  {
    MutexLock lock(shard.mu);
    span->taken = shape.frames;
    span->present = shape.frames;
    shard.frames += count;
    shard.idle_frames += count;
  }
  // NOLINTBEGIN(clang-analyzer-cplusplus.NewDeleteLeaks): the table has it
  if (populated.ok()) return span->span;
  Putback(span->span);
  return populated.error();
  // NOLINTEND(clang-analyzer-cplusplus.NewDeleteLeaks)
}

MigrateOutcome ZbudPool::Isolate(uint32_t number, const SpanShape& shape) {
  Shard* const shard = ShardAt(number);
  if (shard == nullptr) return MigrateOutcome::kGone;
  MutexLock lock(shard->mu);
  Span* const span = FindLocked(*shard, number);
  if (span == nullptr) return MigrateOutcome::kGone;
  if (span->isolated) return MigrateOutcome::kBusy;
  if (span->pins != 0) return MigrateOutcome::kPinned;
  if (span->punching != 0 || span->moving != 0 || (span->Occupied() & ~shape.frames) != 0)
    return MigrateOutcome::kBusy;
  for (uint32_t frame = 0; frame < kFramesPerSpan; ++frame) {
    for (const uint32_t buddy : {Span::kFirst, Span::kLast}) {
      if (span->chunks[frame][buddy] != 0 && span->handle(frame, buddy).is_null())
        return MigrateOutcome::kBusy;
    }
  }
  for (uint32_t frame = 0; frame < kFramesPerSpan; ++frame) UnlinkLocked(*shard, span, frame);
  span->isolated = true;
  LinkOpenLocked(*shard, span);
  return MigrateOutcome::kMoved;
}

MigratedSpan ZbudPool::Migrate(uint32_t from_number, MovableOwner& target, uint32_t to_number,
                               const std::atomic<bool>* abort) {
  ZbudPool& pool = static_cast<ZbudPool&>(target);
  Span* const from = At(from_number);
  Span* const to = pool.At(to_number);
  ZP_CHECK(from != nullptr && to != nullptr && from->isolated && to->isolated,
           "migration of spans that are not isolated");
  Shard& from_shard = ShardOf(*from);
  Shard& to_shard = pool.ShardOf(*to);
  decltype(from->chunks) chunks;
  {
    MutexLock lock(from_shard.mu);
    chunks = from->chunks;
  }
  {
    MutexLock lock(to_shard.mu);
    to->chunks = chunks;
    to_shard.idle_frames -= static_cast<uint64_t>(std::popcount(to->Occupied()));
    for (std::atomic<uint32_t>& handle : to->handles)
      handle.store(kMovedAway.value(), std::memory_order_relaxed);
  }
  const auto offset_of = [&](const Span* span, uint32_t frame, uint32_t buddy) {
    return span->OffsetOf(frame, buddy, chunks[frame][buddy]);
  };
  // Publishes an object's place on the other side, and counts it there before it can be freed there.
  const auto publish = [](ZbudPool& out_of, Shard& out, ZbudPool& into, Shard& in, Handle handle,
                          uint64_t word, Location location) {
    const auto count = [](Shard& shard, uint64_t objects, uint64_t bytes) {
      MutexLock lock(shard.mu);
      shard.objects += objects;
      shard.stored_bytes += bytes;
    };
    const uint64_t length = location.length;
    count(in, 1, length);
    location.node = into.arena_.node();
    const bool done = out_of.handles_.CompareExchangeLocation(handle, word, location.Encode());
    count(done ? out : in, ~uint64_t{0}, ~length + 1);
    return done;
  };
  MigratedSpan result;
  for (uint32_t i = 0; i < kFramesPerSpan * 2; ++i) {
    const uint32_t frame = i / 2;
    const uint32_t buddy = i % 2;
    if (chunks[frame][buddy] == 0) continue;
    ZP_PAUSE_POINT("migrate.object");
    if (abort != nullptr && abort->load(std::memory_order_relaxed)) {
      result.outcome = MigrateOutcome::kAborted;
      break;
    }
    const Handle handle = from->handle(frame, buddy);
    const uint64_t source = offset_of(from, frame, buddy);
    const std::optional<uint64_t> word = handles_.LookupAt(handle, arena_.node(), source);
    if (!word.has_value()) continue;
    Location location = Location::Decode(*word);
    location.offset = offset_of(to, frame, buddy);
    pool.arena_.Write(location.offset, {arena_.At(source), location.length});
    to->SetHandle(frame, buddy, handle);
    ZP_PAUSE_POINT("move.copied");
    if (publish(*this, from_shard, pool, to_shard, handle, *word, location)) {
      from->SetHandle(frame, buddy, kMovedAway);
      ++result.objects;
      result.bytes += location.length;
    } else {
      to->SetHandle(frame, buddy, kMovedAway);
    }
  }
  if (result.outcome != MigrateOutcome::kAborted) return result;
  for (uint32_t i = 0; i < kFramesPerSpan * 2; ++i) {
    const uint32_t frame = i / 2;
    const uint32_t buddy = i % 2;
    if (chunks[frame][buddy] == 0 || from->handle(frame, buddy) != kMovedAway) continue;
    const Handle handle = to->handle(frame, buddy);
    const std::optional<uint64_t> word =
        handles_.LookupAt(handle, pool.arena_.node(), offset_of(to, frame, buddy));
    if (!word.has_value()) continue;
    Location location = Location::Decode(*word);
    location.offset = offset_of(from, frame, buddy);
    from->SetHandle(frame, buddy, handle);
    if (publish(pool, to_shard, *this, from_shard, handle, *word, location)) {
      to->SetHandle(frame, buddy, kMovedAway);
    } else {
      from->SetHandle(frame, buddy, kMovedAway);  // freed there: here, too, then
    }
  }
  result.objects = 0;
  result.bytes = 0;
  return result;
}

void ZbudPool::Putback(uint32_t number) {
  Span* const span = At(number);
  ZP_CHECK(span != nullptr && span->isolated, "putback of a span that is not isolated");
  Shard& shard = ShardOf(*span);
  uint64_t frames = 0;
  bool vacant = false;
  {
    MutexLock lock(shard.mu);
    for (uint32_t i = 0; i < kFramesPerSpan * 2; ++i) {
      if (span->chunks[i / 2][i % 2] != 0 && span->handle(i / 2, i % 2) == kMovedAway)
        VacateLocked(shard, span, i / 2, i % 2);
    }
    span->isolated = false;
    vacant = DetachIfVacantLocked(shard, span);
    if (!vacant) {
      if (span->Occupied() == 0) {
        frames = TakeIdleLocked(shard, span);
      } else {
        for (uint32_t frame = 0; frame < kFramesPerSpan; ++frame) {
          if ((span->taken >> frame & 1) != 0) RelinkLocked(shard, span, frame);
        }
      }
      LinkOpenLocked(shard, span);
    }
  }
  if (vacant) DiscardSpan(span);
  if (frames != 0) Punch(shard, span, frames);
}

}  // namespace zp
