// Keeps a file's pages in a compressed pool, and shows what libzpool does with them: store, index,
// compaction, a node that is emptied. See libzpool/README.md.
//
//   keep_file FILE

#include <array>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <vector>

#include "libzpool/compact/compactor.h"
#include "libzpool/index/index_arena.h"
#include "libzpool/index/offset_index.h"
#include "libzpool/store/page_store.h"

namespace {

// Nodes that this machine need not have. Topology::Detect() gives the real ones.
constexpr zp::NodeId kNear{0}, kFar{1};
// Whose the pages are; a program with several address spaces has an index and a number for each.
constexpr uint32_t kClient = 1;

using Page = std::array<std::byte, zp::kPageBytes>;

std::vector<Page> ReadPages(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  std::vector<Page> pages((bytes.size() + zp::kPageBytes - 1) / zp::kPageBytes, Page{});
  if (!bytes.empty()) std::memcpy(pages.data(), bytes.data(), bytes.size());
  return pages;
}

// What became of it, for people.
void Tell(const char* what, const zp::PageStore& store, const zp::OffsetIndex& index) {
  const zp::PoolStats stats = store.stats();
  std::printf("%-26s %6llu pages in %6llu KiB, objects %llu KiB\n", what,
              static_cast<unsigned long long>(index.stored()),
              static_cast<unsigned long long>(stats.pool_bytes / 1024),
              static_cast<unsigned long long>(stats.stored_bytes / 1024));
}

// Whether every page that the index has is what it was.
bool Verify(const zp::PageStore& store, const zp::OffsetIndex& index, const std::vector<Page>& pages,
            zp::Scratch& scratch) {
  bool good = true;
  index.ForEach(zp::PageIndex(0), zp::PageIndex(pages.size()), [&](zp::PageIndex page, zp::Slot slot) {
    Page out;
    good = good && store.Load(slot, out, scratch) == zp::LoadOutcome::kLoaded && out == pages[page.value()];
  });
  return good;
}

zp::Status Run(const std::vector<Page>& pages) {
  zp::PageStore::Options options;
  options.topology = ZP_TRY(zp::Topology::Made({kNear, kFar}, {{10, 20}, {20, 10}}));
  options.capacity = zp::Bytes(pages.size() * zp::kPageBytes * 2) + zp::MiB(1);
  const std::unique_ptr<zp::PageStore> store = ZP_TRY(zp::PageStore::Create(options));
  const std::unique_ptr<zp::IndexArena> arena = ZP_TRY(zp::IndexArena::Create());
  zp::OffsetIndex index = ZP_TRY(zp::OffsetIndex::Create(*arena, *store));
  const auto scratch = std::make_unique<zp::Scratch>();  // one per thread

  for (uint64_t i = 0; i < pages.size(); ++i) {
    const zp::PageIndex page(i);
    const zp::Slot slot = ZP_TRY(store->Store(pages[i], {kClient, page}, kNear, *scratch));
    // From here on the index has the reference, and gives it back when it goes.
    if (index.CompareExchange(page, zp::Slot::Empty(), slot) != zp::OffsetIndex::Exchange::kDone) {
      store->Release(slot);
      return zp::Error{zp::Errc::kNoMemory, 0, "index"};
    }
  }
  Tell("stored:", *store, index);

  // Three pages of four go; what is left lies thinly.
  std::vector<zp::Slot> dropped;
  for (uint64_t i = 0; i < pages.size(); ++i) {
    if (i % 4 != 0) index.DropRange(zp::PageIndex(i), zp::PageIndex(i + 1), &dropped);
  }
  for (const zp::Slot slot : dropped) store->Release(slot);
  Tell("three of four dropped:", *store, index);

  // Both in steps that copy a bounded number of bytes, so that a program takes them when it has time.
  zp::Compactor compactor(*store, {});
  while (compactor.CompactStep(kNear, zp::MiB(1)) != 0) {
  }
  Tell("compacted:", *store, index);
  store->SetNodeAccepts(kNear, false);
  for (zp::Compactor::Drain step{1, 1}; step.left_bytes != 0;) {
    step = compactor.DrainStep(kNear, zp::MiB(1), zp::MigrateMode::kSync);
    if (step.moved_bytes == 0 && step.left_bytes != 0)
      return zp::Error{zp::Errc::kNoMemory, 0, "the other node"};
  }
  Tell("moved to the other node:", *store, index);
  if (store->node_stats(kNear).objects != 0 || !Verify(*store, index, pages, *scratch))
    return zp::Error{zp::Errc::kCorrupt, 0, "pages of the pool"};

  const uint64_t plain = index.stored() * zp::kPageBytes;
  const uint64_t held = store->stats().pool_bytes;
  std::printf("saved: %llu of %llu KiB\n",
              static_cast<unsigned long long>(plain > held ? (plain - held) / 1024 : 0),
              static_cast<unsigned long long>(plain / 1024));
  return zp::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FILE\n", argv[0]);
    return 2;
  }
  const std::vector<Page> pages = ReadPages(argv[1]);
  if (pages.empty()) {
    std::fprintf(stderr, "%s: empty or not readable\n", argv[1]);
    return 1;
  }
  const zp::Status done = Run(pages);
  if (done.ok()) return 0;
  std::fprintf(stderr, "%s: %s\n", done.error().op, zp::ErrcName(done.error().code));
  return 1;
}
