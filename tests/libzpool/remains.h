// What is left of a process that was killed, and the process that comes after, for tests.
#pragma once

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "libzpool/base/fd.h"
#include "libzpool/index/index_arena.h"
#include "libzpool/index/offset_index.h"
#include "libzpool/store/page_store.h"

namespace zp::testing {

// A file with the same bytes and the same holes.
UniqueFd CopyOf(int fd);
// Another descriptor of the same file.
UniqueFd Again(int fd);

inline constexpr size_t kMostRoots = 16;
using Roots = std::array<std::atomic<uint32_t>, kMostRoots>;

// The files, and the roots' words, which a daemon has in a file of its own.
struct Remains {
  StoreFiles files;
  UniqueFd index;
  std::shared_ptr<Roots> roots = std::make_shared<Roots>();

  // The same files once more, for one more recovery from what the last one left behind; the roots are a copy.
  Remains Share() const;
};

// The same files, for a successor: with `roots`, wherever they lie.
Remains ShareRemains(const PageStore& store, const IndexArena& arena, std::shared_ptr<Roots> roots);
// Copies all of it as it is now: what a SIGKILL at this moment would leave. May be called at a pause point.
Remains CopyRemains(const PageStore& store, const IndexArena& arena, const Roots& roots);

struct UnsettledPage {
  size_t root;
  PageIndex page;
  Slot slot;
};

// A store and indexes that came back, one for each root that is not 0.
struct Revived {
  std::shared_ptr<Roots> roots;
  std::unique_ptr<PageStore> store;
  std::unique_ptr<IndexArena> arena;
  std::vector<std::unique_ptr<OffsetIndex>> indexes;  // by root; null where there was none
  std::vector<UnsettledPage> unsettled;
  RecoveryStats stats;

  OffsetIndex& index(size_t root) { return *indexes.at(root); }
  // Leaves the files as they are; then it is empty.
  void Abandon();
};

// Ends the test's process where something is refused.
Revived Revive(const PageStore::Options& options, Remains remains);
// The same; null where something is refused.
std::unique_ptr<Revived> TryRevive(const PageStore::Options& options, Remains remains);

}  // namespace zp::testing
