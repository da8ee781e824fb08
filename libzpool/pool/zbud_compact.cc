// ZbudPool's compaction: two frames with one buddy become one with two.
#include <algorithm>
#include <cstring>
#include <optional>
#include <span>

#include "libzpool/base/pause_point.h"
#include "libzpool/pool/zbud_pool.h"
#include "libzpool/pool/zbud_span.h"

namespace zp {
namespace {

// Frames looked at in a list; the first are those that were lately stored to or freed from.
constexpr int kFramesTried = 4;

}  // namespace

// Its object must have its handle by now, and nobody else may move the span or do I/O on it.
ZbudPool::FrameNumber ZbudPool::FindSingleLocked(Shard& shard, uint32_t free, FrameNumber other_than) {
  FrameNumber number = shard.lists[free];
  for (int tried = 0; number != 0 && tried < kFramesTried; ++tried) {
    Span* const span = SpanOfFrame(number);
    const uint32_t frame = number % kFramesPerSpan;
    const uint32_t buddy = span->chunks[frame][Span::kFirst] != 0 ? Span::kFirst : Span::kLast;
    const bool fit = (span->present >> frame & 1) != 0 && span->pins == 0 && number != other_than &&
                     !span->handle(frame, buddy).is_null();
    if (fit) return number;
    number = span->next[frame];
  }
  return 0;
}

// From here to the end of Compact the frames that lose their object are out of all lists, and the places in
// the others are claimed as a store claims them.
void ZbudPool::ChoosePairsLocked(Shard& shard, uint32_t waste_permille, Pairs* pairs) {
  const uint64_t in_use = shard.frames - shard.idle_frames;
  // Each frame in use has one object or two.
  const uint64_t singles = 2 * in_use - std::min(2 * in_use, shard.objects);
  if (singles < 2 || singles / 2 * 1000 <= shard.frames * waste_permille) return;
  // Lists with a frame that can be had, by free chunks.
  uint64_t lists = 0;
  for (uint32_t free = 1; free < kChunks; ++free) lists |= uint64_t{shard.lists[free] != 0} << free;
  // `room` is what the frame with the larger object has free; the smaller one has at least as much.
  for (uint32_t room = 1; room < kChunks && pairs->count < kCompactObjects;) {
    const FrameNumber into = (lists >> room & 1) != 0 ? FindSingleLocked(shard, room, 0) : 0;
    if (into == 0) {
      ++room;
      continue;
    }
    FrameNumber out_of = 0;
    uint32_t free = std::max(room, kChunks - room);
    for (; free < kChunks && out_of == 0; ++free) {
      if ((lists >> free & 1) == 0) continue;
      out_of = FindSingleLocked(shard, free, into);
      // Not looked at again, unless it is that the only one there is the other of the pair.
      if (out_of == 0 && free != room) lists &= ~(uint64_t{1} << free);
    }
    if (out_of == 0) {
      ++room;  // nothing fits beside objects of this size
      continue;
    }
    Pair pair;
    pair.from = SpanOfFrame(out_of);
    pair.from_frame = out_of % kFramesPerSpan;
    pair.from_buddy = pair.from->chunks[pair.from_frame][Span::kFirst] != 0 ? Span::kFirst : Span::kLast;
    pair.chunks = pair.from->chunks[pair.from_frame][pair.from_buddy];
    pair.handle = pair.from->handle(pair.from_frame, pair.from_buddy);
    pair.to = SpanOfFrame(into);
    pair.to_frame = into % kFramesPerSpan;
    pair.to_buddy = pair.to->chunks[pair.to_frame][Span::kFirst] == 0 ? Span::kFirst : Span::kLast;
    pair.from->moving |= uint64_t{1} << pair.from_frame;
    UnlinkLocked(shard, pair.from, pair.from_frame);
    pair.to->chunks[pair.to_frame][pair.to_buddy] = static_cast<uint8_t>(pair.chunks);
    pair.to->SetHandle(pair.to_frame, pair.to_buddy, Handle());
    UnlinkLocked(shard, pair.to, pair.to_frame);
    pairs->items[pairs->count++] = pair;
  }
}

bool ZbudPool::MovePair(Pair& pair) {
  const uint64_t source = pair.from->OffsetOf(pair.from_frame, pair.from_buddy, pair.chunks);
  const std::optional<uint64_t> word = handles_.LookupAt(pair.handle, arena_.node(), source);
  if (!word.has_value()) return false;
  Location location = Location::Decode(*word);
  pair.length = location.length;
  location.offset = pair.to->OffsetOf(pair.to_frame, pair.to_buddy, pair.chunks);
  arena_.Write(location.offset, {arena_.At(source), location.length});
  // Before it is published: from then on it may be freed, and its place be another's.
  pair.to->SetHandle(pair.to_frame, pair.to_buddy, pair.handle);
  ZP_PAUSE_POINT("compact.copied");
  return handles_.CompareExchangeLocation(pair.handle, *word, location.Encode());
}

Compacted ZbudPool::Compact(unsigned index, uint32_t waste_permille, Epochs& epochs) {
  Shard& shard = shards_[index];
  Pairs pairs;
  {
    MutexLock lock(shard.mu);
    ChoosePairsLocked(shard, waste_permille, &pairs);
  }
  Compacted result;
  if (pairs.count == 0) return result;
  const std::span<Pair> chosen(pairs.items.data(), pairs.count);
  for (Pair& pair : chosen) {
    pair.moved = MovePair(pair);
    if (!pair.moved) continue;
    ++result.objects;
    result.bytes += pair.length;
  }
  ZP_PAUSE_POINT("compact.published");
  epochs.Synchronize();
  {
    MutexLock lock(shard.mu);
    for (const Pair& pair : chosen) {
      // Counts of objects stay: what moved is still there, and what did not was freed by its owner.
      pair.from->moving &= ~(uint64_t{1} << pair.from_frame);
      if (pair.moved) {
        VacateLocked(shard, pair.from, pair.from_frame, pair.from_buddy);
      } else {
        RelinkLocked(shard, pair.from, pair.from_frame);
        VacateLocked(shard, pair.to, pair.to_frame, pair.to_buddy);
      }
    }
  }
  TrimShard(shard, pairs.count);
  return result;
}

}  // namespace zp
