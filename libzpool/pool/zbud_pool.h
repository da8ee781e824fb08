// The pool of at most two objects per frame.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

#include "libzpool/base/epochs.h"
#include "libzpool/base/mapping.h"
#include "libzpool/base/mutex.h"
#include "libzpool/base/result.h"
#include "libzpool/frame/frame_arena.h"
#include "libzpool/pool/handle_table.h"
#include "libzpool/pool/object_pool.h"

namespace zp {

// Evicts objects for ZbudPool::Reclaim: their owner's part.
class ObjectEvictor {
 public:
  virtual ~ObjectEvictor() = default;
  // Brings the object elsewhere and releases its last reference, if it can. It may be gone by the time this
  // is called.
  virtual bool Evict(Handle handle) = 0;
};

// Idea: a frame holds two buddies at most, one from its start and one that ends at its end, in chunks of 64
//   bytes. Never denser than two to one, and never surprising: to vacate a frame, two objects have to go.
//   Frames with one buddy are found by how many chunks are free in them, best fit first.
// Trade-off: density for bounded work. For pools whose content is written back soon, and where latency
//   counts.
// Cost: 20 bytes per frame.
// Locks: one mutex per shard, no two at a time, no system call under them. A thread stores into its CPU's
//   shard; each has spans of its own.
// Source: Linux mm/zbud.c (chunks, unbuddied lists). The kernel's handles were addresses, so its frames
//   could not move.
class ZbudPool final : public ObjectPool {
 public:
  static constexpr uint32_t kChunkBytes = 64;
  static constexpr uint32_t kChunks = kPageBytes / kChunkBytes;
  static constexpr unsigned kShards = 4;
  static constexpr uint32_t ChunksOf(uint32_t length) { return (length + kChunkBytes - 1) / kChunkBytes; }

  // Both must outlive the pool.
  static Result<std::unique_ptr<ZbudPool>> Create(FrameArena& arena, HandleTable& handles);
  // Every object must have been freed.
  ~ZbudPool() override;
  ZbudPool(const ZbudPool&) = delete;
  ZbudPool& operator=(const ZbudPool&) = delete;

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

  // One step of compaction: of the shard's frames with one buddy up to kCompactObjects lose theirs to others,
  // the largest that has room beside the largest that fits beside it, and are given back. The smaller of two
  // moves, so that 2 KiB are copied at most for a frame. Waits for readers once. Zero objects: there is
  // nothing to gain. Only where the frames with one buddy, were they all pairs, would save more than
  // `waste_permille` thousandths of the shard's.
  static constexpr uint32_t kCompactObjects = 64;
  Compacted Compact(unsigned shard, uint32_t waste_permille, Epochs& epochs);

  // Vacates one frame by evicting the objects in it, at most two, through their owner. kBusy: one of them
  // could not go, or is just being stored, moved or used by I/O; kGone: there is none. Not for the path of a
  // fault.
  Status Reclaim(uint64_t frame, ObjectEvictor& evictor);

 private:
  struct Span;
  // A frame's place in a list: number in the arena; 0 is none, for frame 0 belongs to no pool.
  using FrameNumber = uint32_t;

  struct alignas(64) Shard {
    mutable Mutex mu;
    // Frames with one buddy, by free chunks; [0] is not used. [kChunks]: frames with memory and no object.
    std::array<FrameNumber, kChunks + 1> lists ZP_GUARDED_BY(mu){};
    Span* open ZP_GUARDED_BY(mu) = nullptr;  // spans with frames that are not taken
    uint64_t objects ZP_GUARDED_BY(mu) = 0;
    uint64_t stored_bytes ZP_GUARDED_BY(mu) = 0;
    uint64_t frames ZP_GUARDED_BY(mu) = 0;
    uint64_t idle_frames ZP_GUARDED_BY(mu) = 0;
  };
  struct Claim {
    Span* span = nullptr;
    uint32_t frame = 0;  // in the span
    uint32_t buddy = 0;
    bool populate = false;
  };
  enum class ClaimOutcome { kClaimed, kNeedsSpan, kOverBudget };

  ZbudPool(FrameArena& arena, HandleTable& handles, Mapping span_table);

  Shard& ShardOf(const Span& span);
  Span* SpanOf(uint64_t offset) const;
  // The shard of what is in `span` at the moment, and the span under that shard's lock. Null: none of this
  // pool any more.
  Shard* ShardAt(uint32_t span);
  Span* FindLocked(const Shard& shard, uint32_t span) ZP_REQUIRES(shard.mu);

  ClaimOutcome ClaimLocked(Shard& shard, uint32_t length, Limits limits, Claim* claim) ZP_REQUIRES(shard.mu);
  void VacateLocked(Shard& shard, Span* span, uint32_t frame, uint32_t buddy) ZP_REQUIRES(shard.mu);
  // Puts the frame into the list that fits what is in it, or into none.
  void RelinkLocked(Shard& shard, Span* span, uint32_t frame) ZP_REQUIRES(shard.mu);
  void UnlinkLocked(Shard& shard, Span* span, uint32_t frame) ZP_REQUIRES(shard.mu);
  // Frames without objects that are to be given back; they are out of all lists.
  uint64_t TakeIdleLocked(Shard& shard, Span* span) ZP_REQUIRES(shard.mu);
  uint64_t Punch(Shard& shard, Span* span, uint64_t frames) ZP_EXCLUDES(shard.mu);
  // Two frames with one buddy each, of which one is to have both.
  struct Pair {
    Span* from = nullptr;
    uint32_t from_frame = 0, from_buddy = 0;
    Span* to = nullptr;
    uint32_t to_frame = 0, to_buddy = 0;
    uint32_t chunks = 0;
    uint32_t length = 0;
    Handle handle;
    bool moved = false;
  };
  struct Pairs {
    std::array<Pair, kCompactObjects> items;
    uint32_t count = 0;
  };
  void ChoosePairsLocked(Shard& shard, uint32_t waste_permille, Pairs* pairs) ZP_REQUIRES(shard.mu);
  // Frames of a list that are present, of a span that may be moved. 0: none among the first.
  FrameNumber FindSingleLocked(Shard& shard, uint32_t free, FrameNumber other_than) ZP_REQUIRES(shard.mu);
  // Copies the object and publishes the copy, if its entry still is what it was.
  bool MovePair(Pair& pair);
  void LinkOpenLocked(Shard& shard, Span* span) ZP_REQUIRES(shard.mu);
  // Of at most `most_spans` spans.
  uint64_t TrimShard(Shard& shard, uint64_t most_spans) ZP_EXCLUDES(shard.mu);
  // Takes a span without frames out of circulation; the caller hands it to DiscardSpan after unlocking.
  bool DetachIfVacantLocked(Shard& shard, Span* span) ZP_REQUIRES(shard.mu);
  Result<Span*> NewSpan(unsigned shard);
  // In a span of the arena that is this pool's.
  Result<Span*> MakeSpan(uint32_t number, unsigned shard);
  void DiscardSpan(Span* span);
  Span* SpanOfFrame(FrameNumber frame) const { return At(static_cast<uint32_t>(frame / kFramesPerSpan)); }

  FrameArena& arena_;
  HandleTable& handles_;
  Mapping span_table_memory_;
  // By span: address and, in the low bits, the shard; so that who holds the shard's lock and finds it there
  // has a span that stays: it is taken out under that lock. 0: none.
  std::atomic<uintptr_t>* const span_table_;
  static constexpr uintptr_t kShardMask = kShards - 1;
  Span* At(uint32_t span) const {
    return reinterpret_cast<Span*>(span_table_[span].load(std::memory_order_acquire) & ~kShardMask);
  }
  std::atomic<uint64_t> span_bytes_{0};
  std::array<Shard, kShards> shards_;
};

}  // namespace zp
