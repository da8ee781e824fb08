// The memory of all offset indexes: radix nodes addressed by number, in a memfd.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "libzpool/base/fd.h"
#include "libzpool/base/mapping.h"
#include "libzpool/base/memory_file.h"
#include "libzpool/base/mutex.h"
#include "libzpool/base/result.h"

namespace zp {

// With 128 (nodes of 512 B) lookups are a tenth faster and full trees 2 % smaller, but un-sharing a leaf
// takes twice as long, and trees of pages far apart take up to twice the memory; figures in
// libzpool/DESIGN.md.
inline constexpr unsigned kIndexFanoutBits = 6;
inline constexpr unsigned kIndexFanout = 1u << kIndexFanoutBits;
inline constexpr uint64_t kIndexNodeBytes = kIndexFanout * sizeof(uint32_t);
// A node's number stands beside a tag in its parent's word, see OffsetIndex.
inline constexpr unsigned kIndexNodeBits = 29;

// Idea: nodes are named by 29-bit numbers and not by addresses, so that they can be mapped anywhere, by a
//   successor too, together with the handle table. Each has a reference count: clones share nodes.
// Layout of the file: [ header page | one word per node: {references : 32, next free : 32} | nodes, 256 B
//   each ], reserved at full length, populated in steps of 512 nodes. Number 0 is no node.
// Cost: 264 bytes per node; 4.2 per page where all 64 slots of a leaf are used.
// Threads: everything may be called at any time; allocation is lock-free but for growth and the reserve.
// Locks: mu_ is a leaf.
class IndexArena {
 public:
  // 2^24 nodes: a billion pages (4 TiB) where leaves are full. Address space only.
  static constexpr uint32_t kDefaultMaxNodes = uint32_t{1} << 24;
  // Nodes kept back for operations that cannot fail, see AllocateReserved: 64 KiB.
  static constexpr uint32_t kReservedNodes = 256;

  // kInvalid: more nodes than can be numbered.
  static Result<std::unique_ptr<IndexArena>> Create(uint32_t max_nodes = kDefaultMaxNodes);
  // The nodes that lie in `fd`, whose process is gone. Then each tree is recovered (OffsetIndex::Recover),
  // then FinishRecovery is called; until then nothing else may be done with the arena or the trees but to
  // read them. Errors: as MemoryFile::Adopt; kInvalid where the number of nodes makes no sense.
  static Result<std::unique_ptr<IndexArena>> Recover(UniqueFd fd);
  // Lets the nodes be used again that no recovered tree has reached.
  void FinishRecovery();
  // Leaves the file as it is, for a successor that holds its descriptor. The trees are then not emptied when
  // they are destroyed, and only destroying comes after. An arena whose recovery was not finished is as if
  // this had been called.
  void Abandon() { keeps_trees_ = true; }
  bool keeps_trees() const { return keeps_trees_; }

  // While it is being recovered: counts one reference to `node`, as found in a word of a tree. A node is at
  // one level, and stands for the pages from one page on, in every tree that shares it: kNever where this one
  // is known to be elsewhere or cannot be at all, and nothing is counted then.
  enum class Reached { kFirst, kAgain, kNever };
  Reached Reach(uint32_t node, unsigned level, uint64_t first_page);

  IndexArena(const IndexArena&) = delete;
  IndexArena& operator=(const IndexArena&) = delete;

  // A node of zeros with one reference. kNoMemory: nothing has changed.
  Result<uint32_t> Allocate();
  // The same, from the reserve where all else fails. DropRange needs at most 15 nodes at a time (two edges of
  // eight levels), so the reserve serves 17 of them at once on a machine without memory; ZP_CHECK beyond.
  // Nodes freed fill it up first.
  uint32_t AllocateReserved() ZP_EXCLUDES(mu_);
  // Lets a node without references be used again.
  void Recycle(uint32_t node) ZP_EXCLUDES(mu_);

  // Its 64 words. Valid as long as the arena: memory of nodes is never given back, so that a reader that is
  // late reads garbage at worst (and finds out, see OffsetIndex), not a fault.
  std::atomic<uint32_t>* words(uint32_t node) const { return nodes_ + uint64_t{node} * kIndexFanout; }
  // Whether `node` was ever allocated: what a late reader has to ask.
  bool InBounds(uint32_t node) const {
    return node != 0 && node < next_fresh_.load(std::memory_order_acquire);
  }

  void AddRef(uint32_t node) { meta_[node].fetch_add(kOneRef, std::memory_order_relaxed); }
  // True for the last reference; the caller then drops what the node refers to and recycles it.
  [[nodiscard]] bool DropRef(uint32_t node) {
    return meta_[node].fetch_sub(kOneRef, std::memory_order_acq_rel) >> 32 == 1;
  }
  uint32_t refs(uint32_t node) const {
    return static_cast<uint32_t>(meta_[node].load(std::memory_order_acquire) >> 32);
  }
  // As refs(), but as a read-modify-write: who later reads the count that this one's successor wrote also
  // sees what the caller wrote before. See OffsetIndex::MakePrivate.
  uint32_t OrderedRefs(uint32_t node) {
    return static_cast<uint32_t>(meta_[node].fetch_add(0, std::memory_order_acq_rel) >> 32);
  }

  // Nodes with references.
  uint64_t nodes_in_use() const { return in_use_.load(std::memory_order_relaxed); }
  // Bytes of memory held, free nodes included.
  uint64_t metadata_bytes() const;
  int fd() const { return file_.fd(); }
  // fn(const char* name, int fd), as PageStore::ForEachMemfd.
  template <typename Fn>
  void ForEachMemfd(Fn&& fn) const {
    fn("index", file_.fd());
  }

 private:
  static constexpr uint64_t kOneRef = uint64_t{1} << 32;

  IndexArena(MemoryFile file, uint32_t max_nodes);
  Result<uint32_t> Take();
  Result<uint32_t> TakeFresh();
  Status GrowFor(uint32_t node) ZP_EXCLUDES(mu_);
  void Clear(uint32_t node);

  MemoryFile file_;
  Mapping places_;  // while it is being recovered: by node, where it was reached, see Reach
  bool keeps_trees_ = false;
  std::atomic<uint64_t>* const meta_;
  std::atomic<uint32_t>* const nodes_;
  const uint32_t max_nodes_;

  std::atomic<uint64_t> free_head_{0};  // {times changed : 32, first free node : 32}
  std::atomic<uint32_t> next_fresh_{1};
  std::atomic<uint32_t> populated_{0};
  std::atomic<uint64_t> in_use_{0};
  std::atomic<uint32_t> reserve_missing_{0};  // kReservedNodes - reserve_.size(), to look at without the lock

  Mutex mu_;
  std::vector<uint32_t> reserve_ ZP_GUARDED_BY(mu_);
};

}  // namespace zp
