// The size-class pool of one node.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

#include "libzpool/base/mapping.h"
#include "libzpool/base/mutex.h"
#include "libzpool/base/result.h"
#include "libzpool/frame/frame_arena.h"
#include "libzpool/pool/zspage.h"
#include "libzpool/pool/zspage_list.h"

namespace zp {

// What one size class holds, as the kernel's zsmalloc/.../classes tells it.
struct SizeClassStats {
  uint32_t object_bytes = 0;  // the class's size
  uint64_t objects = 0;
  uint64_t stored_bytes = 0;  // sum of the objects' own lengths
  uint64_t zspages = 0;
  uint64_t frames = 0;       // taken from the budget, idle ones included
  uint64_t idle_frames = 0;  // of these, without any object
  std::array<uint64_t, kFullnessGroups> zspages_by_group{};
};

// Idea: zsmalloc in user space. Size classes 16 bytes apart; a zspage is a whole span of 64 frames with
//   contiguous addresses, since here addresses are free, and lazily populated, since memory is not. So no
//   object wastes more than 15 bytes, no zspage more than the frame at its end, and a frame goes back to
//   the kernel when its last object does.
// Trade-off: a frame costs a system call when it comes and when it goes. Going is batched: empty frames
//   stay populated (idle) up to a small share of the pool. Coming is not: populating ahead was measured to
//   save a tenth, and small pools pay for it in density.
// Cost: see Zspage, and 8 bytes of address space per span.
// Threads: all methods may be called at any time. The objects' bytes belong to whoever has the offset.
// Locks: one mutex per class, no two at a time, no system call under them; the arena's map of spans is
//   below.
// Failure: kNoMemory from Allocate leaves nothing behind.
// Source: Linux mm/zsmalloc.c for classes and fullness groups.
class ZsmallocPool {
 public:
  static constexpr uint32_t kClassCount = SizeClassGeometry::kCount;

  // `arena` must outlive the pool.
  static Result<std::unique_ptr<ZsmallocPool>> Create(FrameArena& arena);
  // Every object must have been freed; idle frames are given back here.
  ~ZsmallocPool();
  ZsmallocPool(const ZsmallocPool&) = delete;
  ZsmallocPool& operator=(const ZsmallocPool&) = delete;

  // Room for `length` bytes, 1..4096, in populated memory. Returns the offset in the arena, a multiple of 16;
  // it is good until Free. kNoMemory: the budget, the address space or the kernel's memory is exhausted,
  // after idle frames were given back.
  Result<uint64_t> Allocate(uint32_t length);
  // `length` as given to Allocate. The bytes are gone at once.
  void Free(uint64_t offset, uint32_t length);

  std::byte* ObjectAt(uint64_t offset) const { return arena_.At(offset); }

  // Gives all idle frames back. Returns how many. Calls the kernel, so not for the path of a fault.
  uint64_t Trim();

  SizeClassStats class_stats(uint32_t size_class) const;
  // Bytes that zspages and their lists take.
  uint64_t metadata_bytes() const;
  // ZP_CHECKs every invariant of every class. Slow; nobody may be in the pool.
  void DebugVerify() const;

 private:
  using GroupList = ZspageList<&Zspage::group_link>;
  using IdleList = ZspageList<&Zspage::idle_link>;

  struct alignas(64) SizeClass {
    mutable Mutex mu;
    std::array<GroupList, kFullnessGroups> groups ZP_GUARDED_BY(mu);
    IdleList idle ZP_GUARDED_BY(mu);  // zspages that have idle frames
    SizeClassStats stats ZP_GUARDED_BY(mu);
  };

  // What ClaimLocked found.
  enum class ClaimOutcome { kClaimed, kNeedsZspage, kOverBudget };
  struct Claim {
    Zspage* zspage = nullptr;
    uint32_t slot = 0;
    uint64_t populate = 0;  // frames of the zspage that must be populated before use
  };
  // Frames on their way out.
  struct PunchBatch {
    static constexpr int kCapacity = 16;  // bounds the time under the lock, and the stack
    struct Item {
      Zspage* zspage;
      uint64_t frames;
    };
    std::array<Item, kCapacity> items;
    int count = 0;
  };

  ZsmallocPool(FrameArena& arena, Mapping span_table);

  ClaimOutcome ClaimLocked(SizeClass& c, uint32_t length, Claim* claim) ZP_REQUIRES(c.mu);
  void VacateLocked(SizeClass& c, Zspage* zspage, uint32_t slot, uint32_t length) ZP_REQUIRES(c.mu);
  void CountIdleLocked(SizeClass& c, int delta) ZP_REQUIRES(c.mu);
  // Puts the zspage into the lists that fit its state.
  void RelinkLocked(SizeClass& c, Zspage* zspage) ZP_REQUIRES(c.mu);
  void CollectIdleLocked(SizeClass& c, PunchBatch* batch) ZP_REQUIRES(c.mu);
  // If vacant, takes the zspage out of the class; the caller hands it to DiscardZspage after unlocking.
  bool DetachIfVacantLocked(SizeClass& c, Zspage* zspage) ZP_REQUIRES(c.mu);

  Status PopulateClaim(SizeClass& c, const Claim& claim);
  // Punches what CollectIdleLocked gathered. Returns the number of frames.
  uint64_t FinishPunch(SizeClass& c, PunchBatch* batch);
  uint64_t TrimClass(SizeClass& c);
  Result<Zspage*> NewZspage(uint32_t size_class);
  void DiscardZspage(Zspage* zspage);

  FrameArena& arena_;
  Mapping span_table_memory_;
  std::atomic<Zspage*>* const span_table_;  // by span; set while the span is a zspage of this pool
  std::atomic<uint64_t> zspage_bytes_{0};
  std::atomic<uint64_t> idle_frames_{0};  // of all classes
  std::array<SizeClass, kClassCount> classes_;
};

}  // namespace zp
