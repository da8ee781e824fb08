// What every pool of objects offers: one contract, tested for each (tests/libzpool/pool_contract_test.cc).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "libzpool/base/result.h"
#include "libzpool/frame/frame_arena.h"
#include "libzpool/migrate/movable_owner.h"
#include "libzpool/pool/handle.h"

namespace zp {

// Which pool objects go to.
enum class PoolKind : uint8_t { kZsmalloc, kZbud };
inline constexpr int kPoolKinds = 2;
inline constexpr const char* kPoolNames[kPoolKinds] = {"zsmalloc", "zbud"};
constexpr std::optional<PoolKind> FindPool(std::string_view name) {
  for (int i = 0; i < kPoolKinds; ++i) {
    if (name == kPoolNames[i]) return static_cast<PoolKind>(i);
  }
  return std::nullopt;
}

// Stands for the handle of an object that moved away, until Putback vacates its slot.
inline constexpr Handle kMovedAway{~uint32_t{0}};

// By how full a zspage is, in quarters; the last is full.
inline constexpr int kFullnessGroups = 5;

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

// What a step of compaction moved.
struct Compacted {
  uint32_t objects = 0;
  uint64_t bytes = 0;
};

// A pool's totals. The counts of objects may be off by those that are just moving between nodes; their sum
// over the nodes is right.
struct ObjectPoolStats {
  uint64_t objects = 0;
  uint64_t stored_bytes = 0;  // sum of the objects' lengths
  uint64_t frames = 0;        // taken from the budget, idle ones included
  uint64_t idle_frames = 0;
  uint64_t metadata_bytes = 0;  // on the heap
};

// What became of an object that an entry of a recovered handle table names.
enum class AdoptOutcome : uint8_t {
  kAdopted,
  kBadPlace,  // no object of that length can begin there
  kNoMemory,  // a frame of it is a hole
  kOverlaps,  // another object lies there
};

// Idea: room for objects of 1..4096 bytes in the frames of one node. An object is named by its offset until
//   its handle is bound to it, and can move from then on. So the offset given to Free and Pin is the one that
//   the handle's entry has, now.
// Threads: all methods may be called at any time. An object's bytes belong to whoever has it.
// Failure: kNoMemory from Allocate leaves nothing behind.
class ObjectPool : public MovableOwner {
 public:
  // Room for `length` bytes in populated memory. Returns the offset in the arena, a multiple of 16.
  // kNoMemory: the budget, the address space or the kernel's memory is exhausted, after idle frames were
  // given back.
  virtual Result<uint64_t> Allocate(uint32_t length, Limits limits) = 0;
  Result<uint64_t> Allocate(uint32_t length) { return Allocate(length, Limits::kKept); }
  // Says whose the object is. Its entry must be published, or what it will move from.
  virtual void Bind(uint64_t offset, Handle handle) = 0;
  // `length` as given to Allocate. The bytes are gone at once.
  virtual void Free(uint64_t offset, uint32_t length) = 0;

  // The handles of what lies in `span`, from place *at on (0: the first), which is advanced: as many as `out`
  // has room for, fewer only at the end. Objects without handle are passed over, and spans that are isolated,
  // or not this pool's, have none. All of it may be otherwise by the time that it is looked at.
  virtual size_t List(uint32_t span, uint32_t* at, std::span<Handle> out) = 0;

  // Keeps the object where it is, for I/O on its bytes. kBusy: it is just being moved; look it up again.
  virtual Status Pin(uint64_t offset, uint32_t length) = 0;
  virtual void Unpin(uint64_t offset, uint32_t length) = 0;

  // Gives all idle frames back. Returns how many. Calls the kernel, so not for the path of a fault.
  virtual uint64_t Trim() = 0;

  // ---- Coming back (PageStore::Recover). Nobody else is in the pool meanwhile.

  // Takes over a span of the arena whose tag names this pool and `size_class`, with memory in the frames
  // `present`, one at least. It is empty and isolated, until Putback. kInvalid: there is no such class;
  // kNoMemory: of the heap. Nothing has changed then.
  virtual Status AdoptSpan(uint32_t span, uint32_t size_class, uint64_t present) = 0;
  // Takes over an object, if it can lie there, in a span that was adopted. It is bound to `handle`.
  virtual AdoptOutcome AdoptObject(uint64_t offset, uint32_t length, Handle handle) = 0;
  // Forgets everything and leaves the frames as they are, for a successor. Only destroying comes after.
  virtual void Abandon() = 0;

  virtual ObjectPoolStats stats() const = 0;
  // ZP_CHECKs every invariant. Slow; nobody may be in the pool.
  virtual void DebugVerify() const = 0;
};

}  // namespace zp
