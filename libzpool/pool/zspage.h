// A zspage: one span of frames that holds objects of one size class.
#pragma once

#include <cstddef>
#include <cstdint>

#include "libzpool/base/units.h"
#include "libzpool/frame/frame_arena.h"

namespace zp {

// The size classes' geometry.
struct SizeClassGeometry {
  static constexpr uint32_t kStepBytes = 16;  // a location counts in granules of 16 bytes
  static constexpr uint32_t kCount = kPageBytes / kStepBytes;

  // For lengths 1..4096.
  static constexpr uint32_t ClassOf(uint32_t length) { return (length - 1) / kStepBytes; }
  static constexpr uint32_t ObjectBytes(uint32_t size_class) { return (size_class + 1) * kStepBytes; }
  static constexpr uint32_t ObjectsPerZspage(uint32_t size_class) {
    return kSpanBytes / ObjectBytes(size_class);
  }
};

// By how full a zspage is. Objects go into the fullest that has room, so that sparse ones empty by
// themselves.
enum class FullnessGroup : uint8_t {
  kQuarter = 0,
  kHalf = 1,
  kThreeQuarters = 2,
  kAlmostFull = 3,
  kFull = 4
};
inline constexpr int kFullnessGroups = 5;

// Layout: objects lie end to end over the span's 256 KiB; one straddles two frames at most. Which exist is
//   a bitmap behind this struct; which frames have memory are masks with one bit per frame. How many
//   objects touch a frame is in the arena's descriptor.
// Cost: 88 bytes and one bit per object: for 2 KiB objects .8 bytes each.
// Threads: everything is guarded by the lock of the size class.
class Zspage {
 public:
  // Null if there is no memory. Delete with Destroy.
  static Zspage* New(FrameArena& arena, uint32_t span, uint32_t size_class);
  static void Destroy(Zspage* zspage);

  uint32_t span() const { return span_; }
  uint32_t size_class() const { return size_class_; }
  uint32_t live() const { return live_; }
  bool is_full() const { return live_ == objects_; }
  FullnessGroup group() const;
  // Whether nothing is in it and no frame of it holds memory.
  bool is_vacant() const { return live_ == 0 && taken_ == 0; }

  // The slot to use next: the lowest with room in a frame that has memory already, else the lowest of all.
  // Slots in frames that are being punched are passed over. -1: none.
  int FindFree() const;
  // The frames (a mask) that `slot` touches.
  uint64_t FramesOf(uint32_t slot) const;
  void Occupy(uint32_t slot);
  void Vacate(uint32_t slot);
  bool is_occupied(uint32_t slot) const { return (used()[slot / 64] >> (slot % 64) & 1) != 0; }
  // Which slot begins at `offset_in_span` bytes; ZP_CHECKs that one does.
  uint32_t SlotAt(uint64_t offset_in_span) const;
  uint64_t OffsetOf(uint32_t slot) const { return span_ * kSpanBytes + uint64_t{slot} * object_bytes_; }

  // Frames taken from the budget; those known to be present; those on their way out; and those taken that no
  // object touches.
  uint64_t taken() const { return taken_; }
  uint64_t present() const { return present_; }
  uint64_t punching() const { return punching_; }
  uint64_t idle() const { return idle_; }
  void MarkTaken(uint64_t frames);
  void MarkPresent(uint64_t frames) { present_ |= frames & taken_; }
  // Claims the idle frames for punching and returns them.
  uint64_t BeginPunch();
  void EndPunch(uint64_t frames);

  // Links of the lists that the size class keeps.
  struct Link {
    Zspage* prev = nullptr;
    Zspage* next = nullptr;
    bool linked = false;
  };
  Link group_link;
  Link idle_link;
  FullnessGroup linked_group = FullnessGroup::kQuarter;  // the list that group_link is in

 private:
  Zspage(FrameArena& arena, uint32_t span, uint32_t size_class);
  uint64_t* used() { return reinterpret_cast<uint64_t*>(this + 1); }
  const uint64_t* used() const { return reinterpret_cast<const uint64_t*>(this + 1); }
  FrameDescriptor& descriptor(uint32_t frame) const {
    return arena_.descriptor(uint64_t{span_} * kFramesPerSpan + frame);
  }
  int FirstFreeIn(uint32_t begin, uint32_t end, uint64_t must_be_taken) const;
  // Slots [first, end) touch `frame`.
  void SlotsOf(uint32_t frame, uint32_t* first, uint32_t* end) const;
  void UpdateOpen(uint64_t frames);

  FrameArena& arena_;
  const uint32_t span_;
  const uint16_t size_class_;
  const uint16_t object_bytes_;
  const uint32_t objects_;
  uint32_t live_ = 0;
  uint64_t taken_ = 0;
  uint64_t present_ = 0;
  uint64_t punching_ = 0;
  uint64_t idle_ = 0;
  uint64_t open_ = 0;  // taken, not being punched, and some slot that touches it is free
};

}  // namespace zp
