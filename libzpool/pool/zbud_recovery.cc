// ZbudPool, coming back: spans are made anew from the arena's tags and from what the entries name.
#include <bit>

#include "libzpool/pool/zbud_pool.h"
#include "libzpool/pool/zbud_span.h"

namespace zp {

Status ZbudPool::AdoptSpan(uint32_t number, uint32_t shard_index, uint64_t present) {
  if (shard_index >= kShards) return Error{Errc::kInvalid, 0, "the shard of a span"};
  Span* const span = ZP_TRY(MakeSpan(number, shard_index));
  arena_.AdoptSpan(number, present);
  // NOLINTBEGIN(clang-analyzer-cplusplus.NewDeleteLeaks): the table has it
  const uint64_t count = static_cast<uint64_t>(std::popcount(present));
  Shard& shard = shards_[shard_index];
  MutexLock lock(shard.mu);
  span->taken = present;
  span->present = present;
  shard.frames += count;
  shard.idle_frames += count;
  return OkStatus();
  // NOLINTEND(clang-analyzer-cplusplus.NewDeleteLeaks)
}

AdoptOutcome ZbudPool::AdoptObject(uint64_t offset, uint32_t length, Handle handle) {
  const uint64_t number = offset / kSpanBytes;
  Span* const span = number < arena_.span_count() ? At(static_cast<uint32_t>(number)) : nullptr;
  const uint32_t frame = static_cast<uint32_t>(offset / kPageBytes % kFramesPerSpan);
  const uint32_t buddy = Span::BuddyAt(offset);
  const uint32_t chunks = ChunksOf(length);
  if (span == nullptr || offset != span->OffsetOf(frame, buddy, chunks)) return AdoptOutcome::kBadPlace;
  if ((span->present >> frame & 1) == 0) return AdoptOutcome::kNoMemory;
  if (span->chunks[frame][buddy] != 0 || chunks > span->FreeChunks(frame)) return AdoptOutcome::kOverlaps;
  Shard& shard = ShardOf(*span);
  MutexLock lock(shard.mu);
  if (span->IsEmpty(frame)) --shard.idle_frames;
  span->chunks[frame][buddy] = static_cast<uint8_t>(chunks);
  span->SetHandle(frame, buddy, handle);
  ++shard.objects;
  shard.stored_bytes += length;
  return AdoptOutcome::kAdopted;
}

void ZbudPool::Abandon() {
  for (uint32_t number = 0; number < arena_.span_limit(); ++number) {
    delete At(number);
    span_table_[number].store(0, std::memory_order_relaxed);
  }
  for (Shard& shard : shards_) {
    MutexLock lock(shard.mu);
    shard.lists = {};
    shard.open = nullptr;
    shard.objects = 0;
  }
}

}  // namespace zp
