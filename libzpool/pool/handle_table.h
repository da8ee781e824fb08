// From handle to object: the table that makes objects movable and that is the log of the pool.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "libzpool/base/fd.h"
#include "libzpool/base/memory_file.h"
#include "libzpool/base/mutex.h"
#include "libzpool/base/result.h"
#include "libzpool/pool/handle.h"
#include "libzpool/pool/location.h"

namespace zp {

// The entry's two words, see location.h. Fixed layout: it lies in a memfd.
struct HandleEntry {
  std::atomic<uint64_t> location;
  std::atomic<uint64_t> owner;
};
static_assert(sizeof(HandleEntry) == 16 && std::atomic<uint64_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<uint32_t>) == 4 && std::atomic<uint32_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<uint16_t>) == 2 && std::atomic<uint16_t>::is_always_lock_free);
static_assert(offsetof(HandleEntry, location) == 0 && offsetof(HandleEntry, owner) == 8);

// Idea: a handle is an index; its entry says where the object lies and whose page it is, and one store to
//   the location word publishes the object. After a crash the entries in state live are the truth; free
//   lists and counters are made from them.
// Layout of the file: [ header page | entries, 16 B each | checksums, 4 B each | references, 2 B each ], the
//   arrays reserved at full length and populated in steps, so the table grows without moving. References: how
//   many there are; 65535: the object is pinned for ever.
// Cost: 22 bytes per entry. Entries freed are used again last-in first-out; their memory is kept.
// Threads: everything may be called at any time. Lookup, allocation and freeing are lock-free; growth takes
//   a mutex and makes three system calls every 2048 entries.
// Locks: grow_mu_ is a leaf.
// Failure: a stale handle is met as state free in Lookup, and is a ZP_CHECK in Ref, Unref and Retire.
class HandleTable {
 public:
  // At most `max_entries` live at a time, and never more than Handle::kMax.
  static Result<std::unique_ptr<HandleTable>> Create(uint64_t max_entries);

  // ---- Coming back (PageStore::Recover). Nobody else is in the table until StartAgain.

  // The table that lies in `fd`, whose process is gone; nothing has references yet. Lookup works, for handles
  // below high_water(). Errors: as MemoryFile::Adopt; kInvalid where the size of the table makes no sense.
  static Result<std::unique_ptr<HandleTable>> Recover(UniqueFd fd);
  // One more reference to a live entry, from none on. False: it is not live. (Too many: it is pinned.)
  bool Adopt(Handle handle);
  // Marks a live entry free: its object is not there.
  void Drop(Handle handle) { (void)Retire(handle); }
  // Every entry that is not live can be used again.
  void StartAgain();

  HandleTable(const HandleTable&) = delete;
  HandleTable& operator=(const HandleTable&) = delete;

  // Publishes an object with one reference. Its bytes must be complete. Of `location` node, offset, codec and
  // length are used. kNoMemory: the table is full or cannot grow; nothing has changed.
  Result<Handle> Insert(const Location& location, const Owner& owner, uint32_t checksum);

  // The location word as it is now (Location::Decode). Zero, which is state free, for a handle that never
  // was. Sequentially consistent, like the publication of a move, as Epochs wants it.
  uint64_t Lookup(Handle handle) const {
    return InBounds(handle) ? entries_[handle.value()].location.load(std::memory_order_seq_cst) : 0;
  }
  // The same if it says that the object lies there. Nothing: it was freed, or freed and its handle used
  // again, or moved by another.
  std::optional<uint64_t> LookupAt(Handle handle, NodeId node, uint64_t offset) const {
    const uint64_t word = Lookup(handle);
    const Location location = Location::Decode(word);
    if (!location.is_readable() || location.node != node || location.offset != offset) return std::nullopt;
    return word;
  }
  // Publishes a move if the word still is `expected`; node and offset of `desired` may differ from it. The
  // bytes there must be complete.
  bool CompareExchangeLocation(Handle handle, uint64_t expected, uint64_t desired) {
    return entry(handle).location.compare_exchange_strong(expected, desired, std::memory_order_seq_cst);
  }

  uint32_t checksum(Handle handle) const {
    ZP_CHECK(InBounds(handle), "a handle that never was");
    return checksums_[handle.value()].load(std::memory_order_relaxed);
  }
  uint32_t refs(Handle handle) const { return references(handle).load(std::memory_order_acquire); }
  Owner owner(Handle handle) const {
    return Owner::Decode(entry(handle).owner.load(std::memory_order_relaxed));
  }
  void SetOwner(Handle handle, const Owner& owner) {
    entry(handle).owner.store(owner.Encode(), std::memory_order_relaxed);
  }

  // One more reference. kNoMemory: 65534 are out; nothing has changed.
  Status Ref(Handle handle);
  // As Ref; but where that fails the object is pinned: it is never freed, a leak instead of an error.
  void RefOrPin(Handle handle);
  // One reference less. True for the last: the caller then calls Retire, frees the object's bytes and calls
  // Recycle.
  [[nodiscard]] bool Unref(Handle handle);
  // Marks the entry free and says where the object lay. The handle is stale from here on.
  Location Retire(Handle handle);
  // Lets the handle be used again.
  void Recycle(Handle handle);

  int fd() const { return file_.fd(); }
  // How many objects there may be at a time.
  uint32_t max_entries() const { return max_index_ - 1; }
  // Bytes of memory that the table holds.
  uint64_t metadata_bytes() const;
  // An upper bound of all handles ever made; for scans.
  uint32_t high_water() const { return next_fresh_.load(std::memory_order_acquire); }

 private:
  static constexpr uint16_t kPinnedRefs = 0xffff;
  static constexpr uint16_t kMaxRefs = kPinnedRefs - 1;

  HandleTable(MemoryFile file, uint32_t max_index);

  bool InBounds(Handle handle) const {
    return !handle.is_null() && handle.value() < next_fresh_.load(std::memory_order_acquire);
  }
  HandleEntry& entry(Handle handle) const {
    ZP_CHECK(InBounds(handle), "a handle that never was");
    return entries_[handle.value()];
  }
  std::atomic<uint16_t>& references(Handle handle) const {
    ZP_CHECK(InBounds(handle), "a handle that never was");
    return references_[handle.value()];
  }
  // A free entry in state reserved.
  Result<uint32_t> Take();
  Result<uint32_t> TakeFresh();
  Status GrowFor(uint32_t index) ZP_EXCLUDES(grow_mu_);

  MemoryFile file_;
  HandleEntry* const entries_;
  std::atomic<uint32_t>* const checksums_;
  std::atomic<uint16_t>* const references_;
  const uint32_t max_index_;  // handles are below it

  // {times changed : 32, first free handle : 32}; the count keeps a stale compare-and-swap from succeeding.
  std::atomic<uint64_t> free_head_{0};
  std::atomic<uint32_t> next_fresh_{1};  // entries from here on were never used
  std::atomic<uint32_t> populated_{0};   // entries below are present
  Mutex grow_mu_;
};

}  // namespace zp
