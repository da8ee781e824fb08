// The facade: pages in, slots out.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "libzpool/base/epochs.h"
#include "libzpool/base/fd.h"
#include "libzpool/base/result.h"
#include "libzpool/base/units.h"
#include "libzpool/codec/codec.h"
#include "libzpool/codec/scratch.h"
#include "libzpool/frame/frame_arena.h"
#include "libzpool/frame/topology.h"
#include "libzpool/index/slot.h"
#include "libzpool/migrate/migrator.h"
#include "libzpool/pool/handle_table.h"
#include "libzpool/pool/location.h"
#include "libzpool/pool/object_mover.h"
#include "libzpool/pool/zbud_pool.h"
#include "libzpool/pool/zsmalloc_pool.h"
#include "libzpool/store/recovery_stats.h"

namespace zp {

enum class LoadOutcome {
  kLoaded,
  kCorrupt,  // no such object, malformed, not the page that was stored, or not stored for this domain; `out`
             // holds anything
};

// A snapshot; the fields are read one after the other, so they may be out of step by what happens meanwhile.
struct PoolStats {
  uint64_t stored_pages = 0;  // objects; same-filled pages have none
  uint64_t same_filled =
      0;  // Stores that were answered with an inline slot, ever; how many there are the index knows
  uint64_t raw_pages = 0;               // objects that did not shrink
  uint64_t stored_bytes = 0;            // sum of the objects' lengths
  uint64_t pool_bytes = 0;              // memory of the frames, idle ones included
  uint64_t capacity_bytes = 0;          // what pool_bytes may not exceed
  uint64_t metadata_bytes = 0;          // handle table, spans, zspages; without the index
  uint64_t store_failures = 0;          // Stores that found no memory, ever
  std::vector<SizeClassStats> classes;  // zsmalloc's, by size, summed over the nodes
};

// How a page is kept: what it is encoded with, and in which pool.
struct StoreAs {
  CodecId codec = CodecId::kLz4;
  PoolKind pool = PoolKind::kZsmalloc;
  friend constexpr bool operator==(const StoreAs&, const StoreAs&) = default;
};

// What one node holds.
struct NodeStats {
  NodeId node;
  uint64_t pool_bytes = 0;      // memory of its frames
  uint64_t capacity_bytes = 0;  // what it may hold at most; ~0 if nothing but the pool's capacity says so
  bool accepts = true;          // whether new objects may go there
  uint64_t objects = 0;
  uint64_t stored_bytes = 0;
};

// The files that a store lies in, as ForEachMemfd gives them out.
struct StoreFiles {
  UniqueFd handles;
  std::vector<UniqueFd> frames;  // in any order; each says of which node it is
};

// Idea: one coordinator of codec, pool and handle table. A stored page is a Slot: its pattern if it is one,
//   else a handle with one reference. The store knows nothing of who holds slots; an OffsetIndex or a
//   caller does.
// Cost: 22 bytes per object in the table, about five in the pool, beside the object.
// Threads: all methods may be called at any time with a Scratch per thread, under one rule: a slot is
//   loaded, referenced or released only by someone who holds a reference that is not being released. In
//   particular no Load may run while the last reference is released: the frame might be punched, and a read
//   would populate it again, uncounted. (Movers of objects are another matter: a load and a move need no
//   order. Retiring frames by epochs will lift the rule for them.)
// Locks: those of the pools; none is held while bytes are copied, encoded or decoded.
// Failure: kNoMemory from Store leaves nothing behind.
class PageStore {
 public:
  struct Options {
    Topology topology = Topology::SingleNode();
    Bytes capacity;  // of all frames together, over all nodes
    // How pages are kept for which Store is not told.
    CodecId codec = CodecId::kLz4;
    PoolKind pool = PoolKind::kZsmalloc;
  };
  using Scratch = zp::Scratch;
  using Owner = zp::Owner;

  static Result<std::unique_ptr<PageStore>> Create(const Options& options);
  // The store that lies in `files`, whose process is gone: all that it had published, and nothing else. Sizes
  // come from the files; of `options` the capacity is the limit from now on, and a node of the topology that
  // has no file starts empty. A file of a node that the topology lacks is taken as it is, and that node
  // accepts nothing new. What is damaged is dropped and counted. No other process may have the files mapped.
  // Then each slot that survived is adopted (OffsetIndex::Recover does it), then FinishRecovery is called;
  // until then nothing else may be called but Load and what only looks. kUnsupported: a file has another
  // layout version; kInvalid: one is no such file, or there are two of one node; kNoMemory: of the kernel.
  // Nothing is lost then, nor by a crash in the middle: it can be done again, with other descriptors of the
  // same files (these are closed). Slow: some 0.1 us per object.
  static Result<std::unique_ptr<PageStore>> Recover(const Options& options, StoreFiles files,
                                                    RecoveryStats* stats);
  // One more reference to the object of a slot that survived. False: there is no such object, the slot is
  // lost. True for slots that have none.
  [[nodiscard]] bool AdoptReference(Slot slot);
  // Every slot that survived has been adopted: frees the objects that nobody holds. The store is as any other
  // from here on.
  void FinishRecovery(RecoveryStats* stats);
  // Lets go of everything and leaves the files as they are, for a successor that holds their descriptors.
  // Only destroying comes after: of the store, and before it of the indexes over it (see
  // IndexArena::Abandon).
  void Abandon() { stage_ = Stage::kAbandoned; }

  // Every slot must have been released; but in a store that was abandoned, or whose recovery was not
  // finished.
  ~PageStore();
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;

  // Keeps the page; the caller owns the slot's one reference. `page` must not change during the call (copy
  // what others can write to). The object goes to `preferred` or, where that is full, the nearest node that
  // is not. kNoMemory: capacity, handles or the kernel's memory are exhausted; nothing has changed. May call
  // the kernel for frames.
  Result<Slot> Store(PageView page, Owner owner, NodeId preferred, StoreAs as, Scratch& scratch);
  // As the store's options say.
  Result<Slot> Store(PageView page, Owner owner, NodeId preferred, Scratch& scratch) {
    return Store(page, owner, preferred, store_as(), scratch);
  }

  // As Store, for a page that exists nowhere else: no limit refuses it, and if it must be it goes to a node
  // that takes nothing.
  Result<Slot> StoreAlways(PageView page, Owner owner, NodeId preferred, StoreAs as, Scratch& scratch);
  Result<Slot> StoreAlways(PageView page, Owner owner, NodeId preferred, Scratch& scratch) {
    return StoreAlways(page, owner, preferred, store_as(), scratch);
  }

  // Keeps the page as it is, in a frame of its own: for pages that are expected back soon. Otherwise as
  // Store.
  Result<Slot> StoreRaw(PageView page, Owner owner, NodeId preferred);

  // Which pool Store uses from now on where it is not told; what is stored stays where it is.
  void set_pool(PoolKind pool) { pool_.store(pool, std::memory_order_relaxed); }
  PoolKind pool() const { return pool_.load(std::memory_order_relaxed); }
  StoreAs store_as() const { return {options_.codec, pool()}; }

  // Writes the page into `out`. `slot` is same-filled or a handle (any other: kCorrupt). Takes no lock, calls
  // no kernel. `domain` is the one that the owner had at the store: so a slot that came to name another's
  // object, by damage or by a bug, is corrupt and not another's page (but for one in 2^32). A same-filled
  // page is all in its slot, and has no domain.
  LoadOutcome Load(Slot slot, MutablePageView out, Scratch& scratch, uint32_t domain = 0) const;

  // One more reference to a handle slot; other slots have none and always succeed. kNoMemory: 65534 are out
  // already.
  Status Ref(Slot slot);
  // As Ref; an object with too many references is pinned for ever instead.
  void RefOrPin(Slot slot);
  // Gives one reference back; the last frees the object. Slots without handle: nothing happens. May call the
  // kernel to give frames back.
  void Release(Slot slot);

  // Says whose page a handle slot is. No-op for other slots. A relaxed store: for the holder of the slot.
  void SetOwner(Slot slot, Owner owner);
  // Of a handle slot; without the domain.
  Owner GetOwner(Slot slot) const { return handles_->owner(slot.handle()); }
  uint32_t refs(Slot slot) const { return handles_->refs(slot.handle()); }
  // Length of a handle slot's object in bytes; 0 for others.
  uint32_t object_bytes(Slot slot) const;

  // The bytes of a handle slot's object, for I/O: they stay where they are until Unpin. kBusy: it is just
  // being moved, try again. The caller keeps a reference meanwhile.
  Result<std::span<const std::byte>> Pin(Slot slot);
  void Unpin(Slot slot);

  // Moves one object to `node`, if there is room. The caller holds a reference. kBusy: another moved it
  // meanwhile; kNoMemory: no room; nothing has changed then. Waits for readers: not for the path of a fault.
  Status MoveObject(Slot slot, NodeId node);
  NodeId NodeOfObject(Slot slot) const { return Location::Decode(handles_->Lookup(slot.handle())).node; }

  const Topology& topology() const { return options_.topology; }
  // Whether new objects may go to the node. Others take what it refuses.
  void SetNodeAccepts(NodeId node, bool accepts);
  bool NodeAccepts(NodeId node) const { return MustFind(node).accepts->load(std::memory_order_relaxed); }
  // What the node may hold, beside the capacity of all.
  void SetNodeCapacity(NodeId node, Bytes capacity);
  NodeStats node_stats(NodeId node) const;
  // fn(const char* name, int fd) for each persistent file; the descriptors stay the store's. Names are
  // stable: "handles", "frames-<node>".
  template <typename Fn>
  void ForEachMemfd(Fn&& fn) const {
    fn("handles", handles_->fd());
    for (const Node& node : nodes_) fn(node.name, node.arena->fd());
  }

  // Gives idle frames back to the kernel; returns how many. For idle time, and before memory is said to be
  // exhausted.
  uint64_t Trim();
  // Changes the limit. A lower one than what is in use refuses stores until enough was released.
  void SetCapacity(Bytes capacity);

  PoolStats stats() const;
  // The cheap part of stats(), for loops that look often. Bytes.
  uint64_t pool_bytes() const { return budget_.used_frames() * kPageBytes; }
  // Goes up with every object that is freed: whoever packs the pool has something to look at when it has
  // changed.
  uint64_t changes() const { return releases_.load(std::memory_order_relaxed); }
  // ZP_CHECKs the pools' invariants. Slow; nobody may be in the store.
  void DebugVerify() const;

 private:
  friend class PageStoreTestPeer;
  friend class Compactor;

  struct Node {
    char name[16];
    std::unique_ptr<FrameArena> arena;
    std::unique_ptr<ZsmallocPool> zsmalloc;
    std::unique_ptr<ZbudPool> zbud;
    std::unique_ptr<ZsmallocPool> standby;  // whole frames
    std::unique_ptr<std::atomic<bool>> accepts;

    std::array<ObjectPool*, 3> pools() const { return {zsmalloc.get(), zbud.get(), standby.get()}; }
    // The pool that uses spans with this tag; null: none does.
    ObjectPool* OwnerOf(SpanTag tag) const {
      if (tag.owner == FrameOwner::kNone || static_cast<int>(tag.owner) >= kFrameOwners) return nullptr;
      return &PoolOf(tag.owner);
    }
    // Gives idle frames back; how many.
    uint64_t Trim() const {
      uint64_t frames = 0;
      for (ObjectPool* pool : pools()) frames += pool->Trim();
      return frames;
    }
    // ObjectPool::List of the pool that has the span.
    size_t ListObjects(uint32_t span, uint32_t* at, std::span<Handle> out) const {
      const FrameOwner owner = arena->tag(span).owner;
      return owner == FrameOwner::kNone ? 0 : PoolOf(owner).List(span, at, out);
    }
    // The pool that the object at `offset` lies in.
    ObjectPool& PoolAt(uint64_t offset) const {
      return PoolOf(arena->tag(static_cast<uint32_t>(offset / kSpanBytes)).owner);
    }
    ObjectPool& PoolOf(FrameOwner owner) const {
      if (owner == FrameOwner::kZbud) return *zbud;
      return owner == FrameOwner::kStandby ? *standby : *zsmalloc;
    }
  };

  // What the destructor does: only a live store is emptied.
  enum class Stage : uint8_t { kLive, kRecovering, kAbandoned };

  PageStore(const Options& options, uint64_t capacity_frames);
  FrameArena::Options ArenaOptions(NodeId node) const;
  Status AddNode(std::unique_ptr<FrameArena> arena);
  // The parts of Recover: spans by their tags, then what the entries name, then all is in circulation.
  Status AdoptSpans(const Node& node, RecoveryStats* stats);
  void AdoptObjects(RecoveryStats* stats);
  AdoptOutcome AdoptObject(Handle handle, const Location& location) const;
  // The object's place and length, filled with `bytes`.
  Result<Location> Place(std::span<const std::byte> bytes, CodecId codec, FrameOwner pool, NodeId preferred,
                         Limits limits);
  // Places, publishes and binds it.
  Result<Slot> Keep(std::span<const std::byte> bytes, CodecId codec, FrameOwner pool, NodeId preferred,
                    Limits limits, Owner owner, uint32_t checksum);
  Result<Slot> Store(PageView page, Owner owner, NodeId preferred, StoreAs as, Limits limits,
                     Scratch& scratch);
  // Of an object without references.
  void Free(Handle handle);
  // To `target`, in a pool of its kind. Nothing: it was freed just now, and its span with it.
  std::optional<ObjectMove> MoveOf(Handle handle, uint64_t word, const Node& target) const;
  const Node& MustFind(NodeId node) const;
  const Node* NodeOf(NodeId node) const {
    const int index = options_.topology.IndexOf(node);
    return index < 0 ? nullptr : &nodes_[static_cast<size_t>(index)];
  }

  const Options options_;
  FrameBudget budget_;
  mutable Epochs epochs_;
  Migrator migrator_{epochs_};
  std::unique_ptr<HandleTable> handles_;
  std::optional<ObjectMover> mover_;  // set with handles_
  std::vector<Node> nodes_;           // in the order of the topology
  Stage stage_ = Stage::kLive;
  std::atomic<PoolKind> pool_;
  std::atomic<uint64_t> same_filled_{0};
  std::atomic<uint64_t> raw_pages_{0};
  std::atomic<uint64_t> store_failures_{0};
  std::atomic<uint64_t> releases_{0};
};

}  // namespace zp
