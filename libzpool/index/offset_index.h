// From a client's page to what is known about it: a radix tree of tagged words that clones in constant time.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#include "libzpool/base/mutex.h"
#include "libzpool/base/result.h"
#include "libzpool/base/units.h"
#include "libzpool/index/index_arena.h"
#include "libzpool/index/slot.h"
#include "libzpool/store/page_store.h"
#include "libzpool/store/recovery_stats.h"

namespace zp {

// Idea: eight levels of 64 words; the leaves' words are Slots, the inner ones' are numbers of nodes. A
//   clone shares the root; whoever writes below a shared node copies the path to its leaf first. A copied
//   leaf takes one more reference to each object in it.
// Layout: a page number's bits, six to a level; the root uses three.
//
//    44   42 41   36 35   30 29   24 23   18 17   12 11    6 5     0
//   +-------+-------+-------+-------+-------+-------+-------+-------+
//   | root  |       |       |       |       |       |       | leaf  |
//   +-------+-------+-------+-------+-------+-------+-------+-------+
//
//   Words have 32 bits. Inner word: node number (29) << 3 | 7, or 0. A node is *private* when every node from
//   the root to it has one reference.
// Cost: 4.2 bytes per page in full leaves; a lookup is eight loads, the upper ones in the cache.
// Threads: Get, CompareExchange, Ensure, ForEach and the counters may run at the same time from any threads
//   (the caller holds its client's lock shared). DropRange, Rekey, Clone, moving and destroying need
//   everybody else out (held exclusively). Indexes that share nodes need no lock between them.
// Locks: structure_mu, taken where a path is made or un-shared; below it only the arena's and the store's
//   Ref, which are leaves. No object is freed under it.
// Ownership: a handle slot in the tree, filling or not, is one reference to its object. CompareExchange moves
//   references: `desired`'s goes into the tree, `expected`'s comes out to the caller.
// A crash, at any instruction, leaves a tree that Recover can read, since the word that names a node, or the
//   root, is written before what it named is given up, and after what it names is complete. References are
//   not read then, but counted anew.
// Failure: kNoMemory leaves every slot as it was; empty nodes may have been added.
//
// How a lookup can do without locks though nodes are un-shared and freed: un-sharing makes `sequence` odd,
// replaces the path, makes it even, and only then gives up the old nodes. Only by that giving up can another
// index come to write to them, or free them. So whoever has read a word that was written after it must see
// the changed sequence too, and starts again.
class OffsetIndex {
 public:
  enum class Exchange {
    kDone,      // the slot was `expected` and is `desired`
    kChanged,   // it was something else and still is
    kNoMemory,  // it is unchanged; the path could not be made or un-shared
  };

  // An empty index. Arena and store must outlive it. `root`, if not null, is where the number of the root's
  // node is kept, by which a successor finds the tree: a word of 0 in memory that outlives the process, and
  // outlives the index; it is 0 again when the index is destroyed. kNoMemory: nothing was made.
  static Result<OffsetIndex> Create(IndexArena& arena, PageStore& store,
                                    std::atomic<uint32_t>* root = nullptr);

  // The tree under *root, which survived the process that made it; an empty one if the word is 0. Arena and
  // store are being recovered, and one tree after the other. Counts the tree's references to nodes and
  // objects. What makes no sense, which a crash alone does not leave, is dropped: a slot whose object is gone
  // or that is none becomes Slot::Lost(), or its filling form if it was filling. A branch that is none is cut
  // off: what it held is not known, and its pages are empty. So where `stats` counts such, it is for the
  // caller to see to it that nobody takes the tree's empty pages for fresh ones. unsettled(page, slot), if
  // given, for each slot that is filling or busy, in order: the caller settles them by CompareExchange when
  // the recovery is finished. It must not change the index. kNoMemory: of the kernel. Then, and after a crash
  // in the middle, all is recovered anew from the files.
  using Unsettled = std::function<void(PageIndex page, Slot slot)>;
  static Result<OffsetIndex> Recover(IndexArena& arena, PageStore& store, std::atomic<uint32_t>* root,
                                     const Unsettled& unsettled, RecoveryStats* stats);

  // Releases all that is in it, unless the arena keeps its trees. Busy slots are forgotten: their owner
  // settles them before.
  ~OffsetIndex();
  OffsetIndex(OffsetIndex&&) noexcept;
  OffsetIndex& operator=(OffsetIndex&&) noexcept;

  // The slot of `page`; empty where nothing is. Lock-free. A handle in it is good as long as the caller can
  // rule out that someone takes it out of the tree and releases it.
  Slot Get(PageIndex page) const;

  // Makes the path to `page` exist and private, so that the next CompareExchange there cannot say kNoMemory.
  // May allocate.
  Status Ensure(PageIndex page);

  // Replaces the slot if it is `expected`; makes and un-shares the path where needed. Nothing is allocated
  // for kChanged.
  Exchange CompareExchange(PageIndex page, Slot expected, Slot desired);

  // Empties [begin, end) and appends what was in it and is the caller's now: one entry per slot that no clone
  // shares, filling ones as what they are filled from, to be given to PageStore::Release when locks are
  // dropped. Subtrees that are absent cost nothing; nodes that become empty are freed. Cannot fail (see
  // IndexArena::AllocateReserved), but for the vector. After a crash in the middle it is called again.
  void DropRange(PageIndex begin, PageIndex end, std::vector<Slot>* dropped);

  // Moves the slots of [from, from+n) to [to, to+n), which must be empty and must not overlap the source.
  // Objects that nobody else shares have the page in their owner word changed. Busy and filling slots move as
  // they are; their owner follows. kNoMemory: every slot is at its old place; empty nodes may be left behind.
  // After a crash in the middle the same call is made again, when the recovery is finished and before
  // anything else is done to either range: a slot may then be at both places, and the target's stays. (Each
  // is published at the target before it is cleared at the source. Recovery has counted a reference for both;
  // one is given back.)
  Status Rekey(PageIndex from, PageIndex to, PageCount n);

  // A second index with the same content, in constant time. There must be no busy (checked in debug builds)
  // and no filling slot, since those belong to one thread of one index. Owner words keep naming this index's
  // client. `root` as for Create: it is written last, and with that the clone exists.
  Result<OffsetIndex> Clone(std::atomic<uint32_t>* root = nullptr);

  // fn(PageIndex, Slot) for each slot of [begin, end) that is not empty, in order. fn returns nothing, or a
  // bool: false ends the walk. Each leaf is one consistent look; fn is called without locks and may change
  // the index.
  template <typename Fn>
  void ForEach(PageIndex begin, PageIndex end, Fn&& fn) const {
    using Answer = std::invoke_result_t<Fn&, PageIndex, Slot>;
    static_assert(std::is_void_v<Answer> || std::is_same_v<Answer, bool>);
    Leaf leaf;
    for (uint64_t at = begin.value(); at < end.value() && NextLeaf(at, end.value(), &leaf);
         at = leaf.base + kIndexFanout) {
      for (unsigned i = 0; i < kIndexFanout; ++i) {
        const uint64_t page = leaf.base + i;
        if (page < begin.value() || page >= end.value() || leaf.slots[i].is_empty()) continue;
        if constexpr (std::is_void_v<Answer>) {
          fn(PageIndex(page), leaf.slots[i]);
        } else if (!fn(PageIndex(page), leaf.slots[i])) {
          return;
        }
      }
    }
  }

  // Slots by what they hold; a filling one counts as what it is filled from.
  struct Counts {
    uint64_t handles = 0;
    uint64_t same_filled = 0;
    uint64_t lost = 0;
    uint64_t busy = 0;
  };
  Counts counts() const;
  // Pages whose bytes are with the store, or should be: all but busy ones.
  uint64_t stored() const;

 private:
  static constexpr unsigned kLevels = 8;
  static_assert(kLevels * kIndexFanoutBits >= kPageIndexBits &&
                (kLevels - 1) * kIndexFanoutBits < kPageIndexBits);
  static constexpr uint32_t kChildTag = 7;
  static_assert(kIndexNodeBits == Slot::kNumberBits && !Slot::FromRaw(kChildTag).is_valid());
  static_assert(std::atomic<uint32_t>::is_always_lock_free);
  static constexpr unsigned kKinds = 5;

  // Apart, so that the index can be moved.
  struct State {
    explicit State(std::atomic<uint32_t>* its_root) : root(its_root != nullptr ? its_root : &own_root) {}
    // The root's node number; 0: there is none yet, and nothing is in the index.
    std::atomic<uint32_t>* const root;
    std::atomic<uint32_t> own_root{0};
    // Odd while a path is being un-shared.
    std::atomic<uint64_t> sequence{0};
    // Whether a node may be shared at all: false until the first clone, and then all checks for it are
    // skipped. Written by Clone.
    std::atomic<bool> maybe_shared{false};
    Mutex structure_mu;
    // By kind, see KindOf; [0] is not used.
    std::array<std::atomic<uint64_t>, kKinds> counts{};
  };
  struct Leaf {
    uint64_t base = 0;
    std::array<Slot, kIndexFanout> slots;
  };
  // Nodes replaced by copies, to be given up when the sequence is even again.
  struct Retired {
    std::array<uint32_t, kLevels> nodes;
    std::array<uint8_t, kLevels> levels;
    unsigned count = 0;
  };
  // What DropRange and the destructor do with a slot that they own.
  struct Sink;
  struct Recovery;
  enum class Memory { kMayFail, kReserved };
  // The word that names a node: a number in a root, a tagged one in a parent.
  class Link {
   public:
    static Link Root(std::atomic<uint32_t>* word) { return Link(word, 0, 0); }
    static Link Inner(std::atomic<uint32_t>* word) { return Link(word, Slot::kTagBits, kChildTag); }
    uint32_t node() const { return word_->load(std::memory_order_acquire) >> shift_; }
    // 0: none.
    void Set(uint32_t node) const {
      word_->store(node == 0 ? 0 : (node << shift_) | tag_, std::memory_order_release);
    }

   private:
    Link(std::atomic<uint32_t>* word, unsigned shift, uint32_t tag) : word_(word), shift_(shift), tag_(tag) {}
    std::atomic<uint32_t>* word_;
    unsigned shift_;
    uint32_t tag_;
  };

  OffsetIndex(IndexArena& arena, PageStore& store, std::unique_ptr<State> state);

  static unsigned IndexAt(uint64_t page, unsigned level) {
    return (page >> (level * kIndexFanoutBits)) & (kIndexFanout - 1);
  }
  static uint64_t PagesBelow(unsigned level) { return uint64_t{1} << ((level + 1) * kIndexFanoutBits); }
  static uint32_t ChildWord(uint32_t node) { return (node << Slot::kTagBits) | kChildTag; }
  static uint32_t ChildOf(uint32_t word) { return word >> Slot::kTagBits; }
  static unsigned KindOf(Slot slot);
  void Count(Slot slot, int64_t delta);

  // The leaf of `page` if it is there and private; null where PrivateLeaf is needed.
  std::atomic<uint32_t>* PrivateLeafFast(uint64_t page) const;
  // Makes it so.
  Result<std::atomic<uint32_t>*> PrivateLeaf(uint64_t page, Memory memory);
  Result<uint32_t> MakePrivate(uint64_t page, Memory memory, Retired* retired)
      ZP_REQUIRES(state_->structure_mu);
  // A private copy of `node`, with references to all that is in it.
  Result<uint32_t> CopyNode(uint32_t node, unsigned level, Memory memory);
  Result<uint32_t> AllocateNode(Memory memory);

  bool NextLeaf(uint64_t from, uint64_t end, Leaf* leaf) const;
  // Gives up one reference to a subtree; what was in nodes that are freed goes to the sink.
  void DropSubtree(uint32_t node, unsigned level, const Sink& sink);
  void CountSubtree(uint32_t node, unsigned level, int64_t delta);
  // Empties the part of [begin, end) that lies under the node that `link` names. The link then names the
  // node, a private copy of it, or, if nothing is left, none.
  void DropWithin(const Link& link, unsigned level, uint64_t base, uint64_t begin, uint64_t end,
                  const Sink& sink);
  void DropRangeTo(uint64_t begin, uint64_t end, const Sink& sink);

  IndexArena* arena_;
  PageStore* store_;
  std::unique_ptr<State> state_;  // null when moved from
};

}  // namespace zp
