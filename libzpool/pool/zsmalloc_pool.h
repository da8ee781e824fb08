// The size-class pool of one node.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

#include "libzpool/base/epochs.h"
#include "libzpool/base/mapping.h"
#include "libzpool/base/mutex.h"
#include "libzpool/base/result.h"
#include "libzpool/frame/frame_arena.h"
#include "libzpool/pool/handle_table.h"
#include "libzpool/pool/object_pool.h"
#include "libzpool/pool/zspage.h"
#include "libzpool/pool/zspage_list.h"

namespace zp {

// Idea: zsmalloc in user space. Size classes 16 bytes apart; a zspage is a whole span of 64 frames with
//   contiguous addresses, since here addresses are free, and lazily populated, since memory is not. So no
//   object wastes more than 15 bytes, no zspage more than the frame at its end, and a frame goes back to
//   the kernel when its last object does.
// Trade-off: a frame costs a system call when it comes and when it goes. Going is batched: empty frames
//   stay populated (idle) up to a small share of the pool. Coming is not: populating ahead was measured to
//   save a tenth, and small pools pay for it in density.
// Cost: see Zspage, and 8 bytes of address space per span.
// Locks: one mutex per class, no two at a time, no system call under them; the arena's map of spans is
//   below.
// Source: Linux mm/zsmalloc.c for classes and fullness groups.
class ZsmallocPool final : public ObjectPool {
 public:
  static constexpr uint32_t kClassCount = SizeClassGeometry::kCount;

  // Both must outlive the pool. `owner` is what its spans are tagged with: standby pages, which are whole
  // frames, have a pool of their own.
  static Result<std::unique_ptr<ZsmallocPool>> Create(FrameArena& arena, HandleTable& handles,
                                                      FrameOwner owner = FrameOwner::kZsmalloc);
  // Every object must have been freed; idle frames are given back here.
  ~ZsmallocPool() override;
  ZsmallocPool(const ZsmallocPool&) = delete;
  ZsmallocPool& operator=(const ZsmallocPool&) = delete;

  using ObjectPool::Allocate;
  Result<uint64_t> Allocate(uint32_t length, Limits limits) override;
  void Bind(uint64_t offset, Handle handle) override;
  void Free(uint64_t offset, uint32_t length) override;
  size_t List(uint32_t span, uint32_t* at, std::span<Handle> out) override;
  Status Pin(uint64_t offset, uint32_t length) override;
  void Unpin(uint64_t offset, uint32_t length) override;
  uint64_t Trim() override;
  Status AdoptSpan(uint32_t span, uint32_t size_class, uint64_t present) override;
  AdoptOutcome AdoptObject(uint64_t offset, uint32_t length, Handle handle) override;
  void Abandon() override;
  ObjectPoolStats stats() const override;
  void DebugVerify() const override;

  std::optional<SpanShape> ShapeOf(uint32_t span) override;
  Result<uint32_t> Reserve(const SpanShape& shape) override;
  MigrateOutcome Isolate(uint32_t span, const SpanShape& shape) override;
  MigratedSpan Migrate(uint32_t span, MovableOwner& target, uint32_t target_span,
                       const std::atomic<bool>* abort) override;
  void Putback(uint32_t span) override;

  // One step of compaction. Either moves up to kCompactObjects objects of the class's sparsest zspage into
  // holes of almost full ones, in frames that are present; or, where there is no room for that, moves several
  // sparse zspages, packed, to a new one. Waits for readers once. Zero objects: there is nothing to gain.
  static constexpr uint32_t kCompactObjects = 128;
  // Only where more than `waste_permille` thousandths of the class's frames are to gain, and one at least.
  Compacted Compact(uint32_t size_class, uint32_t waste_permille, Epochs& epochs);

  SizeClassStats class_stats(uint32_t size_class) const;

 private:
  using GroupList = ZspageList<&Zspage::group_link>;
  using IdleList = ZspageList<&Zspage::idle_link>;

  struct alignas(64) SizeClass {
    mutable Mutex mu;
    std::array<GroupList, kFullnessGroups> groups ZP_GUARDED_BY(mu);
    IdleList idle ZP_GUARDED_BY(mu);  // zspages that have idle frames
    SizeClassStats stats
        ZP_GUARDED_BY(mu);  // without objects and stored_bytes, which movers change without the lock
    std::atomic<uint64_t> objects{0};
    std::atomic<uint64_t> stored_bytes{0};
    void Count(int64_t count, int64_t bytes) {
      objects.fetch_add(static_cast<uint64_t>(count), std::memory_order_relaxed);
      stored_bytes.fetch_add(static_cast<uint64_t>(bytes), std::memory_order_relaxed);
    }
  };

  // The classes that the pool has, by number: all of them, or, for standby, the last alone.
  class Classes {
   public:
    explicit Classes(uint32_t first)
        : first_(first), list_(new (std::nothrow) SizeClass[kClassCount - first]) {}
    bool ok() const { return list_ != nullptr; }
    uint32_t first() const { return first_; }
    uint64_t bytes() const { return (kClassCount - first_) * sizeof(SizeClass); }
    SizeClass& operator[](uint32_t size_class) { return list_[size_class - first_]; }
    const SizeClass& operator[](uint32_t size_class) const { return list_[size_class - first_]; }
    SizeClass* begin() { return list_.get(); }
    SizeClass* end() { return list_.get() + kClassCount - first_; }
    const SizeClass* begin() const { return list_.get(); }
    const SizeClass* end() const { return list_.get() + kClassCount - first_; }
    uint32_t NumberOf(const SizeClass& c) const { return first_ + static_cast<uint32_t>(&c - list_.get()); }

   private:
    const uint32_t first_;
    const std::unique_ptr<SizeClass[]> list_;
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

  static constexpr uint32_t kMergeSpans = 16;
  // An object that Compact is moving.
  struct Moving {
    Handle handle;
    uint64_t word;  // its location
    uint32_t slot;
    Claim to;
    bool moved = false;
  };
  struct CompactBatch {
    std::array<Moving, kCompactObjects> objects;
    uint32_t count = 0;
  };

  ZsmallocPool(FrameArena& arena, HandleTable& handles, FrameOwner owner, Mapping span_table);

  // The zspage of an object that the caller has.
  Zspage* ZspageOf(uint64_t offset, uint32_t length) const;
  // Address and size class in one word, so that who holds the class's lock and finds it there has a zspage
  // that stays: it is taken out under that lock. 0: none.
  struct TableWord {
    uintptr_t word = 0;
    TableWord() = default;
    explicit TableWord(uintptr_t value) : word(value) {}
    explicit TableWord(const Zspage* zspage)
        : word(reinterpret_cast<uintptr_t>(zspage) | zspage->size_class()) {}
    Zspage* zspage() const { return reinterpret_cast<Zspage*>(word & ~(Zspage::kAlignment - 1)); }
    uint32_t size_class() const { return static_cast<uint32_t>(word & (Zspage::kAlignment - 1)); }
  };
  static_assert(kClassCount <= Zspage::kAlignment);
  TableWord At(uint32_t span) const { return TableWord(span_table_[span].load(std::memory_order_acquire)); }
  // The class of what is in `span` at the moment, and the zspage under that class's lock. Null: none of this
  // pool any more.
  SizeClass* ClassOf(uint32_t span);
  Zspage* FindLocked(SizeClass& c, uint32_t span) ZP_REQUIRES(c.mu);

  // `holes`: only in almost full zspages, and in frames that are present.
  ClaimOutcome ClaimLocked(SizeClass& c, bool holes, Limits limits, Claim* claim) ZP_REQUIRES(c.mu);
  void VacateLocked(SizeClass& c, Zspage* zspage, uint32_t slot) ZP_REQUIRES(c.mu);
  void UnlinkLocked(SizeClass& c, Zspage* zspage) ZP_REQUIRES(c.mu);
  // Copies the object and publishes the copy, if the entry still says `word`.
  bool MoveObject(Zspage* from, uint32_t slot, ZsmallocPool& pool, Zspage* to, uint32_t to_slot,
                  Handle handle, uint64_t word);
  // What to compact. With objects in `batch`: they have targets, and `from` is isolated. With `spans`: they
  // fit into `frames` frames of one zspage.
  struct Choice {
    Zspage* from = nullptr;
    std::array<uint32_t, kMergeSpans> spans;
    uint32_t count = 0;
    uint64_t frames = 0;
  };
  Choice ChooseLocked(SizeClass& c, uint32_t waste_permille, CompactBatch* batch) ZP_REQUIRES(c.mu);
  bool ChooseHolesLocked(SizeClass& c, Zspage* from, CompactBatch* batch) ZP_REQUIRES(c.mu);
  Compacted Merge(SizeClass& c, const Choice& choice, Epochs& epochs);
  // To the same slots of `target_span`, or, `packed`, to those from *packed on, which is advanced, as many as
  // have room in its frames.
  MigratedSpan MoveSpan(uint32_t span, ZsmallocPool& pool, uint32_t target_span, uint32_t* packed,
                        const std::atomic<bool>* abort);
  Zspage::UsedWords CopyUsed(const Zspage* zspage);
  bool AddMoving(Zspage* from, uint32_t slot, const Claim& to, CompactBatch* batch) const;
  void ClaimSlotLocked(SizeClass& c, Zspage* zspage, uint32_t slot) ZP_REQUIRES(c.mu);
  void CountIdleLocked(SizeClass& c, int delta) ZP_REQUIRES(c.mu);
  // Puts the zspage into the lists that fit its state.
  void RelinkLocked(SizeClass& c, Zspage* zspage) ZP_REQUIRES(c.mu);
  void TakeIdleLocked(SizeClass& c, Zspage* zspage, PunchBatch* batch) ZP_REQUIRES(c.mu);
  void CollectIdleLocked(SizeClass& c, PunchBatch* batch) ZP_REQUIRES(c.mu);
  // If vacant, takes the zspage out of the class; the caller hands it to DiscardZspage after unlocking.
  bool DetachIfVacantLocked(SizeClass& c, Zspage* zspage) ZP_REQUIRES(c.mu);

  Status PopulateClaim(SizeClass& c, const Claim& claim);
  // Punches what CollectIdleLocked gathered. Returns the number of frames.
  uint64_t FinishPunch(SizeClass& c, PunchBatch* batch);
  uint64_t TrimClass(SizeClass& c);
  Result<Zspage*> NewZspage(uint32_t size_class);
  // In a span that is this pool's.
  Result<Zspage*> MakeZspage(uint32_t span, uint32_t size_class);
  void DiscardZspage(Zspage* zspage);

  FrameArena& arena_;
  HandleTable& handles_;
  const FrameOwner owner_;
  Mapping span_table_memory_;
  std::atomic<uintptr_t>* const
      span_table_;  // TableWords by span; set while the span is a zspage of this pool
  std::atomic<uint64_t> zspage_bytes_{0};
  std::atomic<uint64_t> idle_frames_{0};  // of all classes
  Classes classes_;
};

}  // namespace zp
