#include "tools/bench/stored_pages.h"

#include <cstring>
#include <string>
#include <utility>

#include "tools/bench/error.h"
#include "tools/bench/interrupt.h"

namespace uzswap::bench {

StoredPages::StoredPages(const PageSource& source, uint64_t pages, uint64_t seed, zp::PoolKind pool,
                         zp::Topology topology)
    : source_(source), scratch_(std::make_unique<zp::Scratch>()), random_(seed) {
  auto store = zp::PageStore::Create({.topology = std::move(topology),
                                      .capacity = zp::Bytes(pages * kPageBytes * 2),
                                      .codec = zp::CodecId::kLz4,
                                      .pool = pool});
  if (!store.ok()) throw BenchError("the pool cannot be made: no memory");
  store_ = std::move(store).value();
  Add(pages);
}

StoredPages::~StoredPages() {
  for (const Held& held : held_) store_->Release(held.slot);
}

StoredPages::Held StoredPages::StoreNext() {
  const uint64_t tile = next_tile_++;
  if (tile % 4096 == 0) CheckInterrupted();
  const zp::NodeId node = store_->topology().nodes().front();
  const auto slot = store_->Store(ViewOf(source_.TilePage(tile)), {1, zp::PageIndex(tile)}, node, *scratch_);
  if (!slot.ok()) throw BenchError("the pool took only " + std::to_string(held_.size()) + " pages");
  return {*slot, tile};
}

void StoredPages::Add(uint64_t pages) {
  for (uint64_t i = 0; i < pages; ++i) held_.push_back(StoreNext());
}

void StoredPages::Shuffle(uint64_t first_few) {
  for (uint64_t i = 0; i < first_few; ++i) std::swap(held_[i], held_[i + random_.Below(held_.size() - i)]);
}

uint64_t StoredPages::Replace(uint64_t pages) {
  Shuffle(pages);
  uint64_t objects = 0;
  for (uint64_t i = 0; i < pages; ++i) {
    if (held_[i].slot.is_handle()) ++objects;
    store_->Release(std::exchange(held_[i].slot, zp::Slot::Empty()));
  }
  for (uint64_t i = 0; i < pages; ++i) held_[i] = StoreNext();
  return objects;
}

void StoredPages::ShrinkTo(uint64_t pages) {
  Shuffle(pages);
  for (uint64_t i = pages; i < held_.size(); ++i) store_->Release(held_[i].slot);
  held_.resize(pages);
}

uint64_t StoredPages::Compact(zp::NodeId node) {
  zp::Compactor compactor(*store_, {});
  while (compactor.CompactStep(node, zp::MiB(4)) != 0) CheckInterrupted();
  return compactor.stats().objects;
}

double StoredPages::Density() const {
  const zp::PoolStats stats = store_->stats();
  return static_cast<double>(stats.stored_bytes) / static_cast<double>(stats.pool_bytes);
}

void StoredPages::Load(uint64_t i, zp::MutablePageView out, zp::Scratch& scratch) const {
  if (store_->Load(held_[i].slot, out, scratch) != zp::LoadOutcome::kLoaded)
    throw BenchError("a page came back corrupt");
}

void StoredPages::Verify() {
  alignas(64) std::byte out[kPageBytes];
  for (uint64_t i = 0; i < held_.size(); ++i) {
    Load(i, out, *scratch_);
    if (std::memcmp(out, source_.TilePage(held_[i].tile), kPageBytes) != 0)
      throw BenchError("a page came back WRONG");
  }
}

}  // namespace uzswap::bench
