// A zspage: one span of frames that holds objects of one size class.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "libzpool/base/units.h"
#include "libzpool/frame/frame_arena.h"
#include "libzpool/pool/handle.h"
#include "libzpool/pool/object_pool.h"

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
  static constexpr uint32_t kMostObjects = kSpanBytes / kStepBytes;
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
static_assert(static_cast<int>(FullnessGroup::kFull) + 1 == kFullnessGroups);

// Some slots of one zspage, and the frames that they touch: what a mover gathers without the lock, so that
// marking them takes it for some words and frames only. Up to 16384 slots of the smallest class are 1 us
// then, where one by one they were 150.
struct SlotSet {
  std::array<uint64_t, SizeClassGeometry::kMostObjects / 64> words{};
  uint64_t frames = 0;
  uint32_t count = 0;
};

// Layout: objects lie end to end over the span's 256 KiB; one straddles two frames at most. Which exist is
//   a bitmap behind this struct, and behind that are their handles; which frames have memory are masks with
//   one bit per frame. Whether a frame has an object, or room, the bitmap says: five words at most.
// Cost: 104 bytes and 33 bits per object: for 2 KiB objects 4.9 bytes each.
// Threads: everything is guarded by the lock of the size class, but for the handles, which are atomic.
class Zspage {
 public:
  // Null if there is no memory. It is isolated: nobody's but the caller's. Its address is a multiple of
  // kAlignment. Delete with Destroy.
  static constexpr uint64_t kAlignment = 256;
  static Zspage* New(uint32_t span, uint32_t size_class);
  // What New takes from the heap.
  static uint64_t BytesOf(uint32_t size_class);
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
  // The lowest free slot in frames that are present. -1: none.
  int FindFreePresent() const { return FirstFreeInOpen(open_ & present_, present_); }
  // Slots that lie in the lowest frames of `frames`, which have no gap.
  uint32_t RoomBelow(uint64_t frames) const {
    const uint64_t bytes = static_cast<uint64_t>(std::countr_one(frames)) * kPageBytes;
    return static_cast<uint32_t>(std::min<uint64_t>(bytes / object_bytes_, objects_));
  }
  // The highest slot in use below `limit`, or -1.
  int HighestUsed(uint32_t limit) const;
  // The lowest slot in use from `begin` on, or -1.
  int LowestUsed(uint32_t begin) const;
  // The frames (a mask) that `slot` touches.
  uint64_t FramesOf(uint32_t slot) const;
  void Occupy(uint32_t slot);
  void Vacate(uint32_t slot);
  // The same for all of a set; those to occupy must have handles.
  void OccupyAll(const SlotSet& slots);
  void VacateAll(const SlotSet& slots);
  void Add(uint32_t slot, SlotSet* slots) const;
  bool is_occupied(uint32_t slot) const { return (used()[slot / 64] >> (slot % 64) & 1) != 0; }
  // Whether a slot begins at `offset_in_span` bytes.
  bool HasSlotAt(uint64_t offset_in_span) const {
    return offset_in_span % object_bytes_ == 0 && offset_in_span / object_bytes_ < objects_;
  }
  // Which one it is; ZP_CHECKs that there is one.
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

  // The object's handle; null for one that was just claimed and has none yet, kMovedAway for one whose slot
  // waits for Putback.
  Handle handle(uint32_t slot) const { return Handle(handles()[slot].load(std::memory_order_acquire)); }
  // `handle` is not null. By the one who has the slot.
  void SetHandle(uint32_t slot, Handle handle) {
    std::atomic<uint32_t>& word = handles()[slot];
    const bool was_null = word.load(std::memory_order_relaxed) == 0;
    word.store(handle.value(), std::memory_order_release);
    if (was_null) bound_.fetch_add(1, std::memory_order_release);
  }
  // Of a slot of the caller's that is about to be occupied with OccupyAll.
  void PrepareMovedAway(uint32_t slot) {
    handles()[slot].store(kMovedAway.value(), std::memory_order_relaxed);
  }
  // One bit per slot, 1: in use.
  using UsedWords = std::array<uint64_t, SizeClassGeometry::kMostObjects / 64>;
  UsedWords used_slots() const {
    UsedWords words{};
    std::copy_n(used(), WordsOf(objects_), words.begin());
    return words;
  }
  uint32_t objects() const { return objects_; }
  // Whether some object touches the frame.
  bool HasObject(uint32_t frame) const;
  // Frames that some object touches.
  uint64_t occupied() const { return taken_ & ~idle_ & ~punching_; }
  // Whether an object has no handle yet.
  bool HasUnbound() const { return bound_.load(std::memory_order_acquire) != claimed_; }

  // Links of the lists that the size class keeps. One that is in none is before itself.
  struct Link {
    Zspage* prev;
    Zspage* next = nullptr;
  };
  Link group_link{this};
  Link idle_link{this};
  FullnessGroup linked_group = FullnessGroup::kQuarter;  // the list that group_link is in
  // Out of circulation, see MovableOwner: in no list, so nothing is stored in it, and nothing of it is
  // punched.
  bool isolated = true;
  // I/O in flight on objects in it.
  uint32_t pins = 0;

 private:
  Zspage(uint32_t span, uint32_t size_class);
  uint64_t* used() { return reinterpret_cast<uint64_t*>(this + 1); }
  const uint64_t* used() const { return reinterpret_cast<const uint64_t*>(this + 1); }
  static size_t WordsOf(uint32_t objects) { return (objects + 63) / 64; }
  std::atomic<uint32_t>* handles() const {
    return reinterpret_cast<std::atomic<uint32_t>*>(const_cast<uint64_t*>(used()) + WordsOf(objects_));
  }
  // In frames of `open` that are, all that the slot touches, in `must_be_taken`.
  int FirstFreeInOpen(uint64_t open, uint64_t must_be_taken) const;
  int FirstFreeIn(uint32_t begin, uint32_t end, uint64_t must_be_taken) const;
  // Slots [first, end) touch `frame`.
  void SlotsOf(uint32_t frame, uint32_t* first, uint32_t* end) const;
  // idle_ and open_ of the frames, by what is taken and used.
  void Refresh(uint64_t frames);

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
  // How often a slot became occupied without handle, and how often one got its handle. They are the same when
  // none is without; bound_ goes up without the lock.
  uint32_t claimed_ = 0;
  std::atomic<uint32_t> bound_{0};
};
static_assert(sizeof(Zspage) == 104);

}  // namespace zp
