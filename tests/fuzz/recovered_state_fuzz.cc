// Damaged files of a store and its indexes: recovery refuses them, or what comes back gives no page that its
// domain did not store, and works.
//
// Input: a byte that chooses one of a few small valid states, then patches: {kind, a (2), b, length, bytes}.
// The patches reach everything but the checksums: those are what vouches for a page, and whoever can write
// them can make any page a good one.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "libzpool/base/check.h"
#include "libzpool/compact/compactor.h"
#include "tests/libzpool/pages.h"
#include "tests/libzpool/remains.h"

namespace zp {
namespace {

using testing::CopyOf;
using testing::MakePage;
using testing::PageBuffer;
using testing::Remains;
using testing::Revived;
using testing::Roots;
using Exchange = OffsetIndex::Exchange;

// Two programs with secrets of their own; the first has forked.
constexpr uint32_t kDomains[] = {0x0a0a5eed, 0xb0b0b0b1};
constexpr size_t kParent = 0, kChild = 1, kOther = 2, kLater = 3;  // roots
constexpr uint32_t DomainOf(size_t root) { return kDomains[root == kOther ? 1 : 0]; }

// What a domain has stored, by checksum.
class Stored {
 public:
  void Add(const PageBuffer& page) { pages_[PageChecksum(page)] = std::make_shared<PageBuffer>(page); }
  bool Has(const PageBuffer& page) const {
    const auto found = pages_.find(PageChecksum(page));
    return found != pages_.end() && std::memcmp(found->second->data(), page.data(), kPageBytes) == 0;
  }

 private:
  std::map<uint32_t, std::shared_ptr<const PageBuffer>> pages_;
};

// A state to start from; made once.
struct State {
  PageStore::Options options;
  Remains remains;
  std::array<Stored, 2> stored;
};

struct Maker {
  explicit Maker(unsigned which, State* out) : state(out) {
    const bool two_nodes = which == 2;
    state->options.topology = two_nodes ? Topology::Made({NodeId(0), NodeId(7)}, {{10, 20}, {20, 10}}).value()
                                        : Topology::SingleNode();
    state->options.capacity = MiB(2);
    state->options.pool = which == 1 ? PoolKind::kZbud : PoolKind::kZsmalloc;
    store = PageStore::Create(state->options).value();
    arena = IndexArena::Create(200).value();
    auto parent = OffsetIndex::Create(*arena, *store, &roots[kParent]).value();
    auto other = OffsetIndex::Create(*arena, *store, &roots[kOther]).value();
    for (uint64_t n = 0; n < 24; ++n) {
      const uint64_t page = n % 3 == 0 ? n : (uint64_t{1} << 30) + n * 9;
      Put(parent, kParent, page, n);
      Put(other, kOther, page + n % 2, 100 + n);
    }
    auto child = parent.Clone(&roots[kChild]).value();
    for (uint64_t n = 0; n < 6; ++n) Put(child, kChild, n * 3, 50 + n);
    if (which == 2) {
      Compactor compactor(*store, {});
      for (uint64_t n = 0; n < 24; n += 6) {
        if (const Slot slot = parent.Get(PageIndex(n)); slot.is_handle())
          ZP_CHECK(store->MoveObject(slot, NodeId(7)).ok(), "an object moves");
      }
    }
    if (which == 3) {
      // Holes, and pages on their way.
      for (uint64_t n = 0; n < 24; n += 6) Replace(parent, n, Slot::Empty());
      const Slot slot = parent.Get(PageIndex(3));
      ZP_CHECK(parent.CompareExchange(PageIndex(3), slot, slot.Filling()) == Exchange::kDone, "filling");
      Replace(other, 5000, Slot::Busy(2, 9));
    }
    state->remains = testing::CopyRemains(*store, *arena, roots);
    arena->Abandon();
    store->Abandon();
  }

  void Put(OffsetIndex& index, size_t root, uint64_t page, uint64_t content) {
    PageBuffer buffer;
    // Of a few lengths, so that objects of both domains are neighbours; one in six is raw.
    MakePage(content, root, content % 6 == 5 ? 512 : 20 + 40 * static_cast<unsigned>(content % 3), &buffer);
    if (content % 8 == 7) FillPage(content, buffer);
    state->stored[root == kOther ? 1 : 0].Add(buffer);
    const Owner owner{static_cast<uint32_t>(root), PageIndex(page), DomainOf(root)};
    Replace(index, page,
            content % 12 == 4 ? store->StoreRaw(buffer, owner, NodeId(0)).value()
                              : store->Store(buffer, owner, NodeId(0), *scratch).value());
  }
  void Replace(OffsetIndex& index, uint64_t page, Slot slot) {
    const Slot before = index.Get(PageIndex(page));
    ZP_CHECK(index.CompareExchange(PageIndex(page), before, slot) == Exchange::kDone, "a page is replaced");
    store->Release(before);
  }

  State* state;
  Roots roots{};
  std::unique_ptr<PageStore> store;
  std::unique_ptr<IndexArena> arena;
  std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();
};

constexpr unsigned kStates = 4;
const State& StateOf(unsigned which) {
  static std::array<std::unique_ptr<State>, kStates> states;
  if (states[which] == nullptr) {
    states[which] = std::make_unique<State>();
    const Maker maker(which, states[which].get());
  }
  return *states[which];
}

struct Input {
  const uint8_t* data;
  size_t size;
  uint32_t Take(size_t bytes) {
    uint32_t value = 0;
    for (size_t i = 0; i < bytes && size > 0; ++i, ++data, --size) value |= uint32_t{*data} << (8 * i);
    return value;
  }
};

uint64_t ParamOf(int fd, unsigned n) {
  FileHeader header{};
  return ::pread(fd, &header, sizeof(header), 0) == static_cast<ssize_t>(sizeof(header)) ? header.params[n]
                                                                                         : 0;
}
uint64_t SizeOf(int fd) {
  struct stat st {};
  ZP_CHECK(::fstat(fd, &st) == 0, "fstat");
  return static_cast<uint64_t>(st.st_size);
}

// Damages what is left.
class Damage {
 public:
  explicit Damage(Remains* remains)
      : remains_(*remains),
        entries_(ParamOf(handles(), 0)),
        nodes_(ParamOf(index(), 0)),
        first_span_(FrameArena::FirstSpan(SizeOf(frames(0)))) {}

  void Apply(Input* input) {
    const uint32_t kind = input->Take(1) % 13;
    const uint32_t a = input->Take(2);
    const uint32_t b = input->Take(1);
    const uint32_t length = input->Take(1) % 8 + 1;
    std::array<uint8_t, 8> bytes{};
    const auto write = [&](int fd, uint64_t at, uint32_t most = 8) {
      const uint32_t count = std::min(length, most);
      for (uint32_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(input->Take(1));
      if (at + count <= SizeOf(fd)) (void)!::pwrite(fd, bytes.data(), count, static_cast<off_t>(at));
    };
    switch (kind) {
      case 0:
        return write(File(a), b % sizeof(FileHeader));
      case 1:
        return write(handles(), EntryAt(a) + b % 16);
      case 2:  // references, not the checksum
        return write(handles(), kPageBytes + entries_ * (sizeof(HandleEntry) + 4) + a % 200 * 2 + b % 2,
                     2 - b % 2);
      case 3:
        return write(frames(a), kPageBytes + (first_span_ + b % 64) * sizeof(uint16_t), 2);
      case 4:
        return write(index(), WordAt(a, b), 4);
      case 5:
        return write(index(), kPageBytes + a % 300 * sizeof(uint64_t));
      case 6: {
        (*remains_.roots)[a % 4] = input->Take(4);
        return;
      }
      case 7:
        return write(frames(b), (first_span_ + b / 2 % 8) * kSpanBytes + a * 16 % kSpanBytes);
      case 8:
        return Punch(File(b), b % 4 < 2 ? a % 64 : (first_span_ * kSpanBytes / kPageBytes) + a % 1024);
      case 9:
        return Copy(handles(), EntryAt(a), EntryAt(b), 8);
      case 10:
        return Copy(index(), WordAt(a, b), WordAt(input->Take(2), input->Take(1)), 4);
      case 11:
        (void)!::ftruncate(
            File(a), static_cast<off_t>(SizeOf(File(a)) / kPageBytes * kPageBytes + b % 3 * kPageBytes));
        return;
      default:
        return write(File(b), uint64_t{a} * kPageBytes + (File(b) == handles() ? 0 : length));
    }
  }

 private:
  int handles() const { return remains_.files.handles.get(); }
  int index() const { return remains_.index.get(); }
  int frames(uint32_t n) const { return remains_.files.frames[n % remains_.files.frames.size()].get(); }
  int File(uint32_t n) const {
    const uint32_t count = static_cast<uint32_t>(remains_.files.frames.size());
    n %= count + 2;
    return n < count ? frames(n) : n == count ? handles() : index();
  }
  static uint64_t EntryAt(uint32_t n) { return kPageBytes + n % 200 * sizeof(HandleEntry); }
  uint64_t WordAt(uint32_t node, uint32_t word) const {
    return kPageBytes + nodes_ * sizeof(uint64_t) + node % 400 * kIndexNodeBytes +
           word % 64 * sizeof(uint32_t);
  }
  static void Punch(int fd, uint64_t page) {
    if ((page + 1) * kPageBytes > SizeOf(fd)) return;
    (void)!::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(page * kPageBytes),
                       static_cast<off_t>(kPageBytes));
  }
  static void Copy(int fd, uint64_t from, uint64_t to, size_t bytes) {
    std::array<std::byte, 8> word{};
    if (::pread(fd, word.data(), bytes, static_cast<off_t>(from)) == static_cast<ssize_t>(bytes))
      (void)!::pwrite(fd, word.data(), bytes, static_cast<off_t>(to));
  }

  Remains& remains_;
  const uint64_t entries_, nodes_;
  const uint64_t first_span_;
};

// Every page is one that the domain stored, or is said to be corrupt. (A same-filled page is all in its slot,
// whatever that says.)
void ExpectOwnPages(Revived& revived, const std::array<Stored, 2>& stored, Scratch& scratch) {
  PageBuffer page;
  for (size_t root = 0; root < revived.indexes.size(); ++root) {
    if (revived.indexes[root] == nullptr) continue;
    const uint32_t domain = DomainOf(root);
    revived.index(root).ForEach(PageIndex(0), PageIndex(kPageIndexLimit), [&](PageIndex, Slot found) {
      ZP_CHECK(found.is_valid(), "a slot that makes no sense");
      const Slot slot = found.Settled();
      if (slot.is_same_filled()) return;
      if (revived.store->Load(slot, page, scratch, domain) != LoadOutcome::kLoaded) return;
      ZP_CHECK(stored[domain == kDomains[0] ? 0 : 1].Has(page), "a page that this domain did not store");
    });
  }
}

// All that can be done with a store.
void GoOn(Revived& revived, std::array<Stored, 2>* stored, Scratch& scratch) {
  PageStore& store = *revived.store;
  for (const testing::UnsettledPage& page : revived.unsettled) {
    const Slot settled = page.slot.is_busy() ? Slot::Lost() : page.slot.Settled();
    ZP_CHECK(revived.index(page.root).CompareExchange(page.page, page.slot, settled) == Exchange::kDone,
             "a page is settled");
  }
  PageBuffer page;
  const auto replace = [&](OffsetIndex& index, PageIndex at, Slot slot) {
    const Slot before = index.Get(at);
    store.Release(index.CompareExchange(at, before, slot) == Exchange::kDone ? before : slot);
  };
  for (size_t root : {kParent, kChild, kOther}) {
    if (revived.indexes[root] == nullptr) continue;
    for (uint64_t n = 0; n < 12; ++n) {
      MakePage(n, 7 + root, 20 + 40 * static_cast<unsigned>(n % 4), &page);
      (*stored)[root == kOther ? 1 : 0].Add(page);
      store.set_pool(n % 2 == 0 ? PoolKind::kZsmalloc : PoolKind::kZbud);
      const Owner owner{static_cast<uint32_t>(root), PageIndex(n), DomainOf(root)};
      const Result<Slot> slot = store.Store(page, owner, NodeId(0), scratch);
      if (slot.ok()) replace(revived.index(root), PageIndex(n * 5), *slot);
    }
  }
  ExpectOwnPages(revived, *stored, scratch);
  if (revived.indexes[kParent] != nullptr && revived.indexes[kLater] == nullptr) {
    Result<OffsetIndex> clone = revived.index(kParent).Clone(&(*revived.roots)[kLater]);
    ZP_CHECK(clone.ok(), "an index is cloned");
    revived.indexes[kLater] = std::make_unique<OffsetIndex>(std::move(*clone));
    std::vector<Slot> dropped;
    revived.index(kLater).DropRange(PageIndex(100), PageIndex(200), &dropped);
    (void)revived.index(kLater).Rekey(PageIndex(0), PageIndex(100), PageCount(50));
    revived.index(kParent).DropRange(PageIndex(7), PageIndex((uint64_t{1} << 30) + 40), &dropped);
    for (const Slot slot : dropped) store.Release(slot);
  }
  Compactor compactor(store, {});
  for (const NodeId node : store.topology().nodes()) {
    compactor.CompactStep(node, MiB(1));
    compactor.EmptyBlocksStep(node, MiB(1));
    compactor.DrainStep(node, MiB(1), MigrateMode::kAsync);
  }
  store.DebugVerify();
  ExpectOwnPages(revived, *stored, scratch);
  revived.indexes.clear();
  store.Trim();
  store.DebugVerify();
  ZP_CHECK(revived.arena->nodes_in_use() == 0, "nodes that nobody holds");
  ZP_CHECK(store.stats().stored_pages == 0, "objects that nobody holds");
  ZP_CHECK(store.pool_bytes() == 0, "frames that nobody holds");
}

}  // namespace
}  // namespace zp

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace zp;
  static const auto scratch = std::make_unique<Scratch>();
  Input input{data, size};
  const State& state = StateOf(input.Take(1) % kStates);
  Remains remains;
  remains.files.handles = CopyOf(state.remains.files.handles.get());
  for (const UniqueFd& fd : state.remains.files.frames) remains.files.frames.push_back(CopyOf(fd.get()));
  remains.index = CopyOf(state.remains.index.get());
  for (size_t i = 0; i < remains.roots->size(); ++i) (*remains.roots)[i] = (*state.remains.roots)[i].load();
  Damage damage(&remains);
  for (int patches = 0; patches < 16 && input.size > 0; ++patches) damage.Apply(&input);
  const std::unique_ptr<Revived> revived = testing::TryRevive(state.options, std::move(remains));
  if (revived == nullptr) return 0;
  std::array<Stored, 2> stored = state.stored;
  revived->store->DebugVerify();
  ExpectOwnPages(*revived, stored, *scratch);
  GoOn(*revived, &stored, *scratch);
  return 0;
}
