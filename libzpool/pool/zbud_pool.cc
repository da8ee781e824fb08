#include "libzpool/pool/zbud_pool.h"

#include <sched.h>

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "libzpool/pool/zbud_span.h"

namespace zp {
namespace {

// Idle frames that a shard keeps: 4, and 1/64 of what it has; see the same of ZsmallocPool.
constexpr uint64_t kIdleFrames = 4;
constexpr uint64_t kIdleShare = 64;
constexpr uint64_t kSpansTrimmed = 4;

}  // namespace

ZbudPool::Shard& ZbudPool::ShardOf(const Span& span) { return shards_[span.shard]; }

Result<std::unique_ptr<ZbudPool>> ZbudPool::Create(FrameArena& arena, HandleTable& handles) {
  Mapping table = ZP_TRY(Mapping::Anonymous(arena.span_count() * sizeof(std::atomic<uintptr_t>)));
  ZbudPool* pool = new (std::nothrow) ZbudPool(arena, handles, std::move(table));
  if (pool == nullptr) return Error{Errc::kNoMemory, 0, "pool"};
  return std::unique_ptr<ZbudPool>(pool);
}

ZbudPool::ZbudPool(FrameArena& arena, HandleTable& handles, Mapping span_table)
    : arena_(arena),
      handles_(handles),
      span_table_memory_(std::move(span_table)),
      span_table_(reinterpret_cast<std::atomic<uintptr_t>*>(span_table_memory_.data())) {}

ZbudPool::~ZbudPool() {
  Trim();
  for (Shard& shard : shards_) {
    MutexLock lock(shard.mu);
    ZP_DCHECK(shard.objects == 0, "a pool is destroyed with objects in it");
  }
}

Result<uint64_t> ZbudPool::Allocate(uint32_t length, Limits limits) {
  ZP_CHECK(length >= 1 && length <= kPageBytes, "length of an object");
  const int cpu = sched_getcpu();
  const unsigned index = cpu < 0 ? 0 : static_cast<unsigned>(cpu) % kShards;
  Shard& shard = shards_[index];
  Claim claim;
  Span* fresh = nullptr;
  for (bool trimmed = false;;) {
    ClaimOutcome outcome = ClaimOutcome::kClaimed;
    Span* vacant = nullptr;
    {
      MutexLock lock(shard.mu);
      if (fresh != nullptr) {
        fresh->isolated = false;
        LinkOpenLocked(shard, fresh);
      }
      outcome = ClaimLocked(shard, length, limits, &claim);
      // Over budget, or another made room meanwhile and the claim went there.
      if (fresh != nullptr && DetachIfVacantLocked(shard, fresh)) vacant = fresh;
      fresh = nullptr;
    }
    if (vacant != nullptr) DiscardSpan(vacant);
    if (outcome == ClaimOutcome::kClaimed) break;
    if (outcome == ClaimOutcome::kNeedsSpan) {
      fresh = ZP_TRY(NewSpan(index));
      continue;
    }
    if (trimmed || Trim() == 0) return Error{Errc::kNoMemory, 0, "pool capacity"};
    trimmed = true;
  }
  Span* const span = claim.span;
  if (claim.populate) {
    const Status populated = arena_.Populate(span->span, uint64_t{1} << claim.frame);
    {
      MutexLock lock(shard.mu);
      if (populated.ok()) {
        span->present |= uint64_t{1} << claim.frame;
      } else {
        --shard.objects;
        shard.stored_bytes -= length;
        VacateLocked(shard, span, claim.frame, claim.buddy);
      }
    }
    if (!populated.ok()) {
      TrimShard(shard, 1);
      return populated.error();
    }
  }
  return span->OffsetOf(claim.frame, claim.buddy, ChunksOf(length));
}

ZbudPool::ClaimOutcome ZbudPool::ClaimLocked(Shard& shard, uint32_t length, Limits limits, Claim* claim) {
  const uint32_t chunks = ChunksOf(length);
  FrameNumber number = 0;
  for (uint32_t free = chunks; free <= kChunks && number == 0; ++free) number = shard.lists[free];
  if (number != 0) {
    claim->span = SpanOfFrame(number);
    claim->frame = number % kFramesPerSpan;
    if (claim->span->IsEmpty(claim->frame)) --shard.idle_frames;
  } else {
    Span* const span = shard.open;
    if (span == nullptr) return ClaimOutcome::kNeedsSpan;
    if (!arena_.TryTake(1, limits)) return ClaimOutcome::kOverBudget;
    claim->span = span;
    claim->frame = static_cast<uint32_t>(std::countr_one(span->taken | span->punching));
    span->taken |= uint64_t{1} << claim->frame;
    ++shard.frames;
    LinkOpenLocked(shard, span);
  }
  Span* const span = claim->span;
  // A whole frame's object begins at its start, as a first buddy does.
  claim->buddy = span->chunks[claim->frame][Span::kFirst] == 0 ? Span::kFirst : Span::kLast;
  span->chunks[claim->frame][claim->buddy] = static_cast<uint8_t>(chunks);
  span->SetHandle(claim->frame, claim->buddy, Handle());
  RelinkLocked(shard, span, claim->frame);
  claim->populate = (span->present >> claim->frame & 1) == 0;
  ++shard.objects;
  shard.stored_bytes += length;
  return ClaimOutcome::kClaimed;
}

ZbudPool::Span* ZbudPool::SpanOf(uint64_t offset) const {
  ZP_CHECK(offset / kSpanBytes < arena_.span_count(), "an object outside of the arena");
  Span* const span = At(static_cast<uint32_t>(offset / kSpanBytes));
  ZP_CHECK(span != nullptr, "what is no object");
  return span;
}

void ZbudPool::Bind(uint64_t offset, Handle handle) {
  SpanOf(offset)->SetHandle(static_cast<uint32_t>(offset / kPageBytes % kFramesPerSpan),
                            Span::BuddyAt(offset), handle);
}

void ZbudPool::Free(uint64_t offset, uint32_t length) {
  Span* const span = SpanOf(offset);
  Shard& shard = ShardOf(*span);
  const uint32_t frame = static_cast<uint32_t>(offset / kPageBytes % kFramesPerSpan);
  const uint32_t buddy = Span::BuddyAt(offset);
  bool trim = false;
  {
    MutexLock lock(shard.mu);
    ZP_CHECK(span->chunks[frame][buddy] == ChunksOf(length), "object freed twice, or of another length");
    --shard.objects;
    shard.stored_bytes -= length;
    VacateLocked(shard, span, frame, buddy);
    trim = shard.lists[kChunks] != 0 && shard.idle_frames > kIdleFrames + shard.frames / kIdleShare;
  }
  // A bounded part: who frees may be answering a fault.
  if (trim) TrimShard(shard, kSpansTrimmed);
}

Status ZbudPool::Pin(uint64_t offset, uint32_t) {
  Span* const span = SpanOf(offset);
  const uint32_t frame = static_cast<uint32_t>(offset / kPageBytes % kFramesPerSpan);
  MutexLock lock(ShardOf(*span).mu);
  if (span->isolated || span->IsMoving(frame)) return Error{Errc::kBusy, 0, "an object that is being moved"};
  ++span->pins;
  return OkStatus();
}

void ZbudPool::Unpin(uint64_t offset, uint32_t) {
  Span* const span = SpanOf(offset);
  MutexLock lock(ShardOf(*span).mu);
  ZP_CHECK(span->pins > 0, "unpinned more often than pinned");
  --span->pins;
}

size_t ZbudPool::List(uint32_t number, uint32_t* at, std::span<Handle> out) {
  Shard* const shard = ShardAt(number);
  if (shard == nullptr) return 0;
  MutexLock lock(shard->mu);
  Span* const span = FindLocked(*shard, number);
  if (span == nullptr || span->isolated) return 0;
  size_t count = 0;
  for (; *at < kFramesPerSpan * 2 && count < out.size(); ++*at) {
    const Handle handle = span->handle(*at / 2, *at % 2);
    const bool there = span->chunks[*at / 2][*at % 2] != 0 && !handle.is_null() && handle != kMovedAway;
    if (there) out[count++] = handle;
  }
  return count;
}

uint64_t ZbudPool::Trim() {
  uint64_t frames = 0;
  for (Shard& shard : shards_) frames += TrimShard(shard, ~uint64_t{0});
  return frames;
}

uint64_t ZbudPool::TrimShard(Shard& shard, uint64_t most_spans) {
  uint64_t total = 0;
  for (uint64_t spans = 0; spans < most_spans; ++spans) {
    Span* span = nullptr;
    uint64_t frames = 0;
    {
      MutexLock lock(shard.mu);
      const FrameNumber number = shard.lists[kChunks];
      if (number == 0) return total;
      span = SpanOfFrame(number);
      frames = TakeIdleLocked(shard, span);
    }
    total += Punch(shard, span, frames);
  }
  return total;
}

ObjectPoolStats ZbudPool::stats() const {
  ObjectPoolStats total;
  total.metadata_bytes = span_bytes_.load(std::memory_order_relaxed) + sizeof(*this);
  for (const Shard& shard : shards_) {
    MutexLock lock(shard.mu);
    total.objects += shard.objects;
    total.stored_bytes += shard.stored_bytes;
    total.frames += shard.frames;
    total.idle_frames += shard.idle_frames;
  }
  return total;
}

void ZbudPool::DebugVerify() const {
  std::array<uint64_t, kShards> objects{};
  std::array<uint64_t, kShards> frames{};
  std::array<uint64_t, kShards> idle{};
  for (uint32_t i = 0; i < arena_.span_limit(); ++i) {
    Span* const span = At(i);
    if (span == nullptr) continue;
    ZP_CHECK(!span->isolated && span->pins == 0 && span->moving == 0, "span out of circulation");
    ZP_CHECK(span->taken != 0, "vacant span kept");
    const bool open = ~(span->taken | span->punching) != 0;
    ZP_CHECK(span->is_open == open, "list of open spans out of step");
    for (uint32_t frame = 0; frame < kFramesPerSpan; ++frame) {
      const bool taken = (span->taken >> frame & 1) != 0;
      const auto& chunks = span->chunks[frame];
      ZP_CHECK(taken || span->IsEmpty(frame), "objects in a frame without memory");
      ZP_CHECK(chunks[0] + chunks[1] <= kChunks, "buddies overlap");
      if (!taken) continue;
      ++frames[span->shard];
      objects[span->shard] += (chunks[0] != 0 ? 1u : 0u) + (chunks[1] != 0 ? 1u : 0u);
      if (span->IsEmpty(frame)) ++idle[span->shard];
      const bool full = chunks[0] != 0 && chunks[1] != 0;
      ZP_CHECK(span->list[frame] == (full ? 0 : span->FreeChunks(frame)), "frame in the wrong list");
    }
  }
  for (unsigned i = 0; i < kShards; ++i) {
    MutexLock lock(shards_[i].mu);
    ZP_CHECK(objects[i] == shards_[i].objects && frames[i] == shards_[i].frames &&
                 idle[i] == shards_[i].idle_frames,
             "shard statistics out of step");
  }
}

void ZbudPool::VacateLocked(Shard& shard, Span* span, uint32_t frame, uint32_t buddy) {
  span->chunks[frame][buddy] = 0;
  if (span->IsEmpty(frame)) ++shard.idle_frames;
  RelinkLocked(shard, span, frame);
}

void ZbudPool::RelinkLocked(Shard& shard, Span* span, uint32_t frame) {
  UnlinkLocked(shard, span, frame);
  const auto& chunks = span->chunks[frame];
  const uint32_t free = chunks[0] != 0 && chunks[1] != 0 ? 0 : span->FreeChunks(frame);
  if (span->isolated || span->IsMoving(frame) || free == 0) return;
  const FrameNumber number = span->span * kFramesPerSpan + frame;
  FrameNumber& head = shard.lists[free];
  span->list[frame] = static_cast<uint8_t>(free);
  span->prev[frame] = 0;
  span->next[frame] = head;
  if (head != 0) SpanOfFrame(head)->prev[head % kFramesPerSpan] = number;
  head = number;
}

void ZbudPool::UnlinkLocked(Shard& shard, Span* span, uint32_t frame) {
  const uint8_t list = span->list[frame];
  if (list == 0) return;
  const FrameNumber prev = span->prev[frame];
  const FrameNumber next = span->next[frame];
  if (prev != 0) {
    SpanOfFrame(prev)->next[prev % kFramesPerSpan] = next;
  } else {
    shard.lists[list] = next;
  }
  if (next != 0) SpanOfFrame(next)->prev[next % kFramesPerSpan] = prev;
  span->list[frame] = 0;
}

void ZbudPool::LinkOpenLocked(Shard& shard, Span* span) {
  const bool open = !span->isolated && ~(span->taken | span->punching) != 0;
  if (open == span->is_open) return;
  span->is_open = open;
  if (open) {
    span->open_prev = nullptr;
    span->open_next = shard.open;
    if (shard.open != nullptr) shard.open->open_prev = span;
    shard.open = span;
    return;
  }
  (span->open_prev != nullptr ? span->open_prev->open_next : shard.open) = span->open_next;
  if (span->open_next != nullptr) span->open_next->open_prev = span->open_prev;
}

uint64_t ZbudPool::TakeIdleLocked(Shard& shard, Span* span) {
  uint64_t frames = 0;
  for (uint32_t frame = 0; frame < kFramesPerSpan; ++frame) {
    if ((span->taken >> frame & 1) == 0 || !span->IsEmpty(frame) || span->IsMoving(frame)) continue;
    UnlinkLocked(shard, span, frame);
    frames |= uint64_t{1} << frame;
  }
  span->taken &= ~frames;
  span->present &= ~frames;
  span->punching |= frames;
  shard.idle_frames -= static_cast<uint64_t>(std::popcount(frames));
  return frames;
}

bool ZbudPool::DetachIfVacantLocked(Shard& shard, Span* span) {
  if (span->isolated || (span->taken | span->punching) != 0) return false;
  span->isolated = true;
  LinkOpenLocked(shard, span);
  span_table_[span->span].store(0, std::memory_order_release);
  return true;
}

// Gives the frames back, which TakeIdleLocked took, and the span if nothing is left of it. They are not none:
// they keep the span.
uint64_t ZbudPool::Punch(Shard& shard, Span* span, uint64_t frames) {
  arena_.Punch(span->span, frames);
  const uint64_t count = static_cast<uint64_t>(std::popcount(frames));
  bool vacant = false;
  {
    MutexLock lock(shard.mu);
    span->punching &= ~frames;
    shard.frames -= count;
    LinkOpenLocked(shard, span);
    vacant = DetachIfVacantLocked(shard, span);
  }
  if (vacant) DiscardSpan(span);
  return count;
}

Result<ZbudPool::Span*> ZbudPool::NewSpan(unsigned shard) {
  const uint32_t number = ZP_TRY(arena_.AllocateSpan({FrameOwner::kZbud, static_cast<uint8_t>(shard)}));
  const Result<Span*> made = MakeSpan(number, shard);
  if (!made.ok()) arena_.FreeSpan(number);
  return made;
}

Result<ZbudPool::Span*> ZbudPool::MakeSpan(uint32_t number, unsigned shard) {
  Span* const span = new (std::nothrow) Span(number, shard);
  if (span == nullptr) return Error{Errc::kNoMemory, 0, "span of zbud"};
  span_bytes_.fetch_add(sizeof(Span), std::memory_order_relaxed);
  static_assert(alignof(Span) > kShardMask);
  span_table_[number].store(reinterpret_cast<uintptr_t>(span) | shard, std::memory_order_release);
  return span;
}

void ZbudPool::DiscardSpan(Span* span) {
  const uint32_t number = span->span;
  span_bytes_.fetch_sub(sizeof(Span), std::memory_order_relaxed);
  delete span;
  arena_.FreeSpan(number);
}

Status ZbudPool::Reclaim(uint64_t frame, ObjectEvictor& evictor) {
  const uint32_t number = static_cast<uint32_t>(frame / kFramesPerSpan);
  const uint32_t in_span = static_cast<uint32_t>(frame % kFramesPerSpan);
  Shard* const shard = ShardAt(number);
  if (shard == nullptr) return Error{Errc::kGone, 0, "a frame of zbud"};
  std::array<Handle, 2> handles;
  {
    MutexLock lock(shard->mu);
    Span* const span = FindLocked(*shard, number);
    if (span == nullptr || span->IsEmpty(in_span)) return Error{Errc::kGone, 0, "objects in the frame"};
    if (span->isolated || span->IsMoving(in_span) || span->pins != 0)
      return Error{Errc::kBusy, 0, "a frame that is being moved or used by I/O"};
    for (uint32_t buddy = 0; buddy < 2; ++buddy) {
      if (span->chunks[in_span][buddy] == 0) continue;
      handles[buddy] = span->handle(in_span, buddy);
      if (handles[buddy].is_null()) return Error{Errc::kBusy, 0, "an object that is being stored"};
    }
  }
  bool all = true;
  for (const Handle handle : handles) {
    if (!handle.is_null() && !evictor.Evict(handle)) all = false;
  }
  if (!all) return Error{Errc::kBusy, 0, "an object that its owner keeps"};
  TrimShard(*shard, ~uint64_t{0});
  return OkStatus();
}

}  // namespace zp
