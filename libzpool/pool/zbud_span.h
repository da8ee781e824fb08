// What ZbudPool knows of one span. For its own files, not for others.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "libzpool/frame/frame_arena.h"
#include "libzpool/pool/handle.h"
#include "libzpool/pool/zbud_pool.h"

namespace zp {

// 64 frames of two buddies. Guarded by the shard's lock, but for the handles.
struct ZbudPool::Span {
  Span(uint32_t number, unsigned shard_index) : span(number), shard(shard_index) {}

  static constexpr uint32_t kFirst = 0, kLast = 1;
  // A frame's buddy by where it begins.
  static uint32_t BuddyAt(uint64_t offset) { return offset % kPageBytes == 0 ? kFirst : kLast; }
  // Where a buddy of that many chunks begins.
  uint64_t OffsetOf(uint32_t frame, uint32_t buddy, uint32_t size) const {
    const uint64_t base = (uint64_t{span} * kFramesPerSpan + frame) * kPageBytes;
    return buddy == kFirst ? base : base + kPageBytes - uint64_t{size} * kChunkBytes;
  }
  uint32_t FreeChunks(uint32_t frame) const { return kChunks - chunks[frame][kFirst] - chunks[frame][kLast]; }
  bool IsMoving(uint32_t frame) const { return (moving >> frame & 1) != 0; }
  bool IsEmpty(uint32_t frame) const { return chunks[frame][kFirst] == 0 && chunks[frame][kLast] == 0; }
  std::atomic<uint32_t>& handle_word(uint32_t frame, uint32_t buddy) { return handles[frame * 2 + buddy]; }
  Handle handle(uint32_t frame, uint32_t buddy) {
    return Handle(handle_word(frame, buddy).load(std::memory_order_acquire));
  }
  void SetHandle(uint32_t frame, uint32_t buddy, Handle handle) {
    handle_word(frame, buddy).store(handle.value(), std::memory_order_release);
  }
  uint64_t Occupied() const {
    uint64_t mask = 0;
    for (uint32_t frame = 0; frame < kFramesPerSpan; ++frame) mask |= uint64_t{!IsEmpty(frame)} << frame;
    return mask;
  }

  const uint32_t span;
  const unsigned shard;
  bool isolated = true;
  bool is_open = false;  // in the shard's list of spans with frames to take
  uint32_t pins = 0;
  uint64_t taken = 0;
  uint64_t present = 0;
  uint64_t punching = 0;
  uint64_t moving = 0;  // frames whose object Compact has in hand: in no list, and never punched
  Span* open_prev = nullptr;
  Span* open_next = nullptr;
  std::array<std::array<uint8_t, 2>, kFramesPerSpan> chunks{};
  std::array<uint8_t, kFramesPerSpan> list{};  // the list that the frame is in: free chunks; 0: none
  std::array<FrameNumber, kFramesPerSpan> prev{};
  std::array<FrameNumber, kFramesPerSpan> next{};
  std::array<std::atomic<uint32_t>, kFramesPerSpan * 2> handles{};
};

}  // namespace zp
