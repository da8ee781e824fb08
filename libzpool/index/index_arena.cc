#include "libzpool/index/index_arena.h"

#include <algorithm>
#include <new>
#include <utility>

namespace zp {
namespace {

// 3: slots that are filling. (2: words of 32 bits, 1: of 64.)
constexpr uint32_t kIndexLayoutVersion = 3;
// 512 nodes are 128 KiB, and exactly a page of words about them.
constexpr uint32_t kGrowNodes = 512;
static_assert(kGrowNodes * sizeof(uint64_t) == kPageBytes && kGrowNodes * kIndexNodeBytes % kPageBytes == 0);

uint64_t NodesOffset(uint64_t nodes) { return kPageBytes + nodes * sizeof(uint64_t); }

}  // namespace

Result<std::unique_ptr<IndexArena>> IndexArena::Create(uint32_t max_nodes) {
  const uint64_t wanted = uint64_t{max_nodes} + kReservedNodes + 1;
  const uint64_t nodes = (wanted + kGrowNodes - 1) / kGrowNodes * kGrowNodes;
  if (nodes > uint64_t{1} << kIndexNodeBits) return Error{Errc::kInvalid, 0, "nodes of the index"};
  MemoryFile file = ZP_TRY(MemoryFile::Create("uzswap-index", FileKind::kIndexNodes, kIndexLayoutVersion,
                                              NodesOffset(nodes) + nodes * kIndexNodeBytes));
  file.header().params[0] = nodes;
  std::unique_ptr<IndexArena> arena(new (std::nothrow)
                                        IndexArena(std::move(file), static_cast<uint32_t>(wanted)));
  if (arena == nullptr) return Error{Errc::kNoMemory, 0, "index arena"};
  for (uint32_t i = 0; i < kReservedNodes; ++i) {
    const uint32_t node = ZP_TRY(arena->TakeFresh());
    MutexLock lock(arena->mu_);
    arena->reserve_.push_back(node);
  }
  return arena;
}

IndexArena::IndexArena(MemoryFile file, uint32_t max_nodes)
    : file_(std::move(file)),
      meta_(reinterpret_cast<std::atomic<uint64_t>*>(file_.data() + kPageBytes)),
      nodes_(reinterpret_cast<std::atomic<uint32_t>*>(file_.data() + NodesOffset(file_.header().params[0]))),
      max_nodes_(max_nodes) {
  MutexLock lock(mu_);
  reserve_.reserve(kReservedNodes);
}

Result<std::unique_ptr<IndexArena>> IndexArena::Recover(UniqueFd fd) {
  MemoryFile file = ZP_TRY(MemoryFile::Adopt(std::move(fd), FileKind::kIndexNodes, kIndexLayoutVersion));
  const uint64_t nodes = file.header().params[0];
  if (nodes == 0 || nodes % kGrowNodes != 0 || nodes > uint64_t{1} << kIndexNodeBits ||
      file.size() != NodesOffset(nodes) + nodes * kIndexNodeBytes)
    return Error{Errc::kInvalid, 0, "the number of nodes of an index"};
  const uint64_t populated = ZP_TRY(file.KeepWholeSteps(
      {{kPageBytes, sizeof(uint64_t)}, {NodesOffset(nodes), kIndexNodeBytes}}, nodes, kGrowNodes));
  std::unique_ptr<IndexArena> arena(new (std::nothrow)
                                        IndexArena(std::move(file), static_cast<uint32_t>(nodes)));
  if (arena == nullptr) return Error{Errc::kNoMemory, 0, "index arena"};
  arena->keeps_trees_ = true;
  arena->places_ = ZP_TRY(Mapping::Anonymous((populated + 1) * sizeof(uint64_t)));
  arena->populated_.store(static_cast<uint32_t>(populated), std::memory_order_release);
  for (uint64_t node = 0; node < populated; ++node) arena->meta_[node].store(0, std::memory_order_relaxed);
  return arena;
}

IndexArena::Reached IndexArena::Reach(uint32_t node, unsigned level, uint64_t first_page) {
  ZP_CHECK(places_.valid(), "a node is reached while the arena is recovered");
  if (node == 0 || node >= populated_.load(std::memory_order_relaxed)) return Reached::kNever;
  const uint64_t here = (first_page << 4) | (level + 1);
  uint64_t& place = reinterpret_cast<uint64_t*>(places_.data())[node];
  if (place != 0 && place != here) return Reached::kNever;
  meta_[node].fetch_add(kOneRef, std::memory_order_relaxed);
  if (place == here) return Reached::kAgain;
  place = here;
  in_use_.fetch_add(1, std::memory_order_relaxed);
  // Readers ask for it (InBounds).
  if (node >= next_fresh_.load(std::memory_order_relaxed))
    next_fresh_.store(node + 1, std::memory_order_release);
  return Reached::kFirst;
}

void IndexArena::FinishRecovery() {
  ZP_CHECK(places_.valid(), "recovery of an index arena is finished once");
  uint32_t first = 0;
  for (uint32_t node = next_fresh_.load(std::memory_order_relaxed); node-- > 1;) {
    if (reinterpret_cast<const uint64_t*>(places_.data())[node] != 0) continue;
    meta_[node].store(first, std::memory_order_relaxed);
    first = node;
  }
  free_head_.store(first, std::memory_order_release);
  places_ = Mapping();
  keeps_trees_ = false;
  uint32_t missing = kReservedNodes;
  for (; missing != 0; --missing) {
    const Result<uint32_t> node = Take();
    if (!node.ok()) break;  // those that are freed fill it up
    MutexLock lock(mu_);
    reserve_.push_back(*node);
  }
  reserve_missing_.store(missing, std::memory_order_relaxed);
}

Result<uint32_t> IndexArena::Allocate() {
  const uint32_t node = ZP_TRY(Take());
  Clear(node);
  return node;
}

uint32_t IndexArena::AllocateReserved() {
  const Result<uint32_t> taken = Take();
  uint32_t node = 0;
  if (taken.ok()) {
    node = *taken;
  } else {
    MutexLock lock(mu_);
    ZP_CHECK(!reserve_.empty(), "the reserve of index nodes is exhausted");
    node = reserve_.back();
    reserve_.pop_back();
    reserve_missing_.fetch_add(1, std::memory_order_relaxed);
  }
  Clear(node);
  return node;
}

void IndexArena::Recycle(uint32_t node) {
  in_use_.fetch_sub(1, std::memory_order_relaxed);
  if (reserve_missing_.load(std::memory_order_relaxed) != 0) {
    MutexLock lock(mu_);
    if (reserve_.size() < kReservedNodes) {
      reserve_.push_back(node);
      reserve_missing_.fetch_sub(1, std::memory_order_relaxed);
      return;
    }
  }
  uint64_t head = free_head_.load(std::memory_order_relaxed);
  uint64_t desired = 0;
  do {
    meta_[node].store(static_cast<uint32_t>(head), std::memory_order_relaxed);  // no references
    desired = (((head >> 32) + 1) << 32) | node;
  } while (
      !free_head_.compare_exchange_weak(head, desired, std::memory_order_release, std::memory_order_relaxed));
}

uint64_t IndexArena::metadata_bytes() const {
  return kPageBytes +
         uint64_t{populated_.load(std::memory_order_relaxed)} * (kIndexNodeBytes + sizeof(uint64_t));
}

Result<uint32_t> IndexArena::Take() {
  uint64_t head = free_head_.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(head) != 0) {
    const uint32_t node = static_cast<uint32_t>(head);
    // Another thread may have taken `node`: then this is nonsense, and the exchange fails by the count.
    const uint32_t next = static_cast<uint32_t>(meta_[node].load(std::memory_order_relaxed));
    const uint64_t desired = (((head >> 32) + 1) << 32) | next;
    if (free_head_.compare_exchange_weak(head, desired, std::memory_order_acquire, std::memory_order_acquire))
      return node;
  }
  return TakeFresh();
}

Result<uint32_t> IndexArena::TakeFresh() {
  uint32_t node = next_fresh_.load(std::memory_order_relaxed);
  for (;;) {
    if (node >= max_nodes_) return Error{Errc::kNoMemory, 0, "index arena"};
    if (node >= populated_.load(std::memory_order_acquire)) ZP_TRY(GrowFor(node));
    if (next_fresh_.compare_exchange_weak(node, node + 1, std::memory_order_acq_rel,
                                          std::memory_order_relaxed))
      return node;
  }
}

Status IndexArena::GrowFor(uint32_t node) {
  MutexLock lock(mu_);
  const uint64_t present = populated_.load(std::memory_order_relaxed);
  if (node < present) return OkStatus();
  ZP_TRY(file_.Populate(kPageBytes + present * sizeof(uint64_t), kGrowNodes * sizeof(uint64_t)));
  ZP_TRY(file_.Populate(NodesOffset(file_.header().params[0]) + present * kIndexNodeBytes,
                        kGrowNodes * kIndexNodeBytes));
  populated_.store(static_cast<uint32_t>(present) + kGrowNodes, std::memory_order_release);
  return OkStatus();
}

void IndexArena::Clear(uint32_t node) {
  // Release: a late reader that sees these zeros also sees why it is late (OffsetIndex::Get).
  for (unsigned i = 0; i < kIndexFanout; ++i) words(node)[i].store(0, std::memory_order_release);
  meta_[node].store(kOneRef, std::memory_order_release);
  in_use_.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace zp
