// Pages of a source in a store of their own: what the measurements of the pool begin with.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "libzpool/compact/compactor.h"
#include "libzpool/store/page_store.h"
#include "tools/bench/page_source.h"
#include "tools/bench/random.h"

namespace uzswap::bench {

// Idea: a store, its slots, and which page each holds, so that everything can be verified.
// Threads: one changes it; Load may be called by others meanwhile, each with a Scratch of its own.
// Failure: BenchError where the store has no memory or a page comes back wrong.
class StoredPages {
 public:
  // Room for twice `pages` pages.
  StoredPages(const PageSource& source, uint64_t pages, uint64_t seed,
              zp::PoolKind pool = zp::PoolKind::kZsmalloc,
              zp::Topology topology = zp::Topology::SingleNode());
  ~StoredPages();
  StoredPages(const StoredPages&) = delete;
  StoredPages& operator=(const StoredPages&) = delete;

  zp::PageStore& store() { return *store_; }
  uint64_t size() const { return held_.size(); }

  void Add(uint64_t pages);
  // Releases `pages` of them at random and stores as many others. Returns how many objects went.
  uint64_t Replace(uint64_t pages);
  // Releases pages at random until `pages` are left.
  void ShrinkTo(uint64_t pages);
  // Compacts `node` until there is nothing to gain. Returns how many objects were copied.
  uint64_t Compact(zp::NodeId node);

  // Stored bytes / pool's bytes.
  double Density() const;
  // Loads page `i`, without verifying it but by its checksum.
  void Load(uint64_t i, zp::MutablePageView out, zp::Scratch& scratch) const;
  // Compares all of them with the source.
  void Verify();

 private:
  struct Held {
    zp::Slot slot;
    uint64_t tile = 0;
  };

  Held StoreNext();
  void Shuffle(uint64_t first_few);

  const PageSource& source_;
  std::unique_ptr<zp::PageStore> store_;
  std::unique_ptr<zp::Scratch> scratch_;
  Random random_;
  std::vector<Held> held_;
  uint64_t next_tile_ = 0;
};

// The 4096 bytes at `page`.
inline zp::PageView ViewOf(const uint8_t* page) {
  return zp::PageView(reinterpret_cast<const std::byte*>(page), kPageBytes);
}

}  // namespace uzswap::bench
