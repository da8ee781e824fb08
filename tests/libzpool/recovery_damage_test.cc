// Damaged files of a store and its indexes: what is damaged is dropped, or told to be lost; the rest comes
// back.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/libzpool/mortal.h"

namespace zp {
namespace {

using testing::Content;
using testing::ExpectAllComesBack;
using testing::ExpectNothingDropped;
using testing::ExpectPages;
using testing::kDomain;
using testing::kFar;
using testing::kKinds;
using testing::kLarge;
using testing::kNarrow;
using testing::kNear;
using testing::kRaw;
using testing::kSmall;
using testing::kStandbyKind;
using testing::kZbudKind;
using testing::Model;
using testing::PageBuffer;
using testing::Process;
using testing::Remains;
using testing::Revive;
using testing::Revived;
using testing::TryRevive;
using testing::TwoNodes;
using Exchange = OffsetIndex::Exchange;

template <typename T>
T Get(const UniqueFd& fd, uint64_t at) {
  T value{};
  EXPECT_EQ(pread(fd.get(), &value, sizeof(value), static_cast<off_t>(at)),
            static_cast<ssize_t>(sizeof(value)));
  return value;
}
template <typename T>
void Put(const UniqueFd& fd, uint64_t at, T value) {
  EXPECT_EQ(pwrite(fd.get(), &value, sizeof(value), static_cast<off_t>(at)),
            static_cast<ssize_t>(sizeof(value)));
}
void PunchHole(const UniqueFd& fd, uint64_t at, uint64_t bytes) {
  EXPECT_EQ(fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at),
                      static_cast<off_t>(bytes)),
            0);
}
uint64_t BytesHeld(int fd) {
  struct stat st {};
  EXPECT_EQ(fstat(fd, &st), 0);
  return static_cast<uint64_t>(st.st_blocks) * 512;
}

// Where things are in the files, see DESIGN.md, "The bits".
uint64_t EntryAt(Slot slot) { return kPageBytes + slot.Settled().handle().value() * sizeof(HandleEntry); }
uint64_t TagAt(uint64_t span) { return kPageBytes + span * sizeof(uint16_t); }
uint64_t NodeAt(const Remains& remains, uint32_t node) {
  const uint64_t nodes = Get<uint64_t>(remains.index, offsetof(FileHeader, params));
  return kPageBytes + nodes * sizeof(uint64_t) + node * kIndexNodeBytes;
}
Location LocationOf(const Remains& remains, Slot slot) {
  return Location::Decode(Get<uint64_t>(remains.files.handles, EntryAt(slot)));
}
void Relocate(Remains& remains, Slot slot, const Location& location) {
  Put(remains.files.handles, EntryAt(slot), location.Encode());
}
// Where the word for `page` lies, in the node of that level on the way to it.
uint64_t WordAt(const Remains& remains, size_t root, uint64_t page, unsigned level) {
  uint32_t node = (*remains.roots)[root];
  for (unsigned at = 7;; --at) {
    const uint64_t word = NodeAt(remains, node) + (page >> (6 * at) & 63) * sizeof(uint32_t);
    if (at == level) return word;
    node = Get<uint32_t>(remains.index, word) >> 3;
  }
}

// A store with 20 pages of each kind under root 0, page n of content n.
struct Damaged {
  Damaged() {
    for (uint64_t n = 0; n < 20 * kKinds; ++n) {
      p.Put(0, n, n);
      model[n] = n;
    }
  }
  Slot SlotOf(uint64_t page) const { return p.indexes[0].Get(PageIndex(page)); }

  // What comes back, all of which must be right, but for pages that are lost; how many.
  uint64_t ExpectRestIsRight(Revived& r) {
    std::vector<uint64_t> lost;
    r.index(0).ForEach(PageIndex(0), PageIndex(kPageIndexLimit), [&](PageIndex page, Slot slot) {
      if (slot.is_lost()) lost.push_back(page.value());
    });
    PageBuffer out;
    for (const uint64_t page : lost) {
      model.erase(page);
      EXPECT_EQ(r.store->Load(r.index(0).Get(PageIndex(page)), out, *p.scratch, kDomain),
                LoadOutcome::kCorrupt);
      EXPECT_EQ(r.index(0).CompareExchange(PageIndex(page), Slot::Lost(), Slot::Empty()), Exchange::kDone);
    }
    EXPECT_EQ(r.index(0).counts().lost, 0u);
    ExpectPages(r, 0, model);
    return lost.size();
  }

  Process p;
  Model model;
};

TEST(RecoveryOfDamage, EntriesThatMakeNoSenseAreDropped) {
  using Reason = uint64_t RecoveryStats::*;
  struct Case {
    const char* what;
    uint64_t kind;
    std::function<void(Location*)> damage;
    Reason reason;
  };
  const Case cases[] = {
      {"unknown node", kSmall, [](Location* l) { l->node = NodeId(63); }, &RecoveryStats::bad_location},
      {"outside of the arena", kSmall, [](Location* l) { l->offset = uint64_t{1} << 39; },
       &RecoveryStats::bad_location},
      {"in the header", kSmall, [](Location* l) { l->offset = 64; }, &RecoveryStats::bad_location},
      {"a span of nobody", kLarge, [](Location* l) { l->offset += 100 * kSpanBytes; },
       &RecoveryStats::bad_location},
      {"between two slots", kLarge, [](Location* l) { l->offset += 16; }, &RecoveryStats::bad_location},
      {"another class", kLarge, [](Location* l) { l->length += 16; }, &RecoveryStats::bad_location},
      {"no frame there", kLarge, [](Location* l) { l->offset += (l->length + 15) / 16 * 16 * 60; },
       &RecoveryStats::no_memory},
      {"unknown codec", kLarge, [](Location* l) { l->codec = static_cast<CodecId>(9); },
       &RecoveryStats::bad_location},
      {"raw and short", kLarge, [](Location* l) { l->codec = CodecId::kRaw; }, &RecoveryStats::bad_location},
      {"encoded and long", kRaw, [](Location* l) { l->codec = CodecId::kLz4; }, &RecoveryStats::bad_location},
      {"encoded and standby", kStandbyKind, [](Location* l) { l->codec = CodecId::kLz4; },
       &RecoveryStats::bad_location},
      {"between two buddies", kZbudKind, [](Location* l) { l->offset += 64; }, &RecoveryStats::bad_location},
      {"no frame of zbud there", kZbudKind,
       [](Location* l) { l->offset = (l->offset / kSpanBytes + 1) * kSpanBytes - kPageBytes; },
       &RecoveryStats::no_memory},
      {"free", kSmall, [](Location* l) { l->state = EntryState::kFree; }, nullptr},
      {"reserved", kSmall, [](Location* l) { l->state = EntryState::kReserved; }, nullptr},
      {"no state", kSmall, [](Location* l) { l->state = static_cast<EntryState>(3); }, nullptr},
  };
  for (const Case& damage : cases) {
    SCOPED_TRACE(damage.what);
    Damaged d;
    Remains remains = d.p.Die();
    const Slot slot = d.SlotOf(damage.kind);
    Location location = LocationOf(remains, slot);
    damage.damage(&location);
    Relocate(remains, slot, location);
    Revived r = Revive(d.p.options, std::move(remains));
    EXPECT_EQ(r.stats.dropped(), damage.reason == nullptr ? 0u : 1u);
    if (damage.reason != nullptr) {
      EXPECT_EQ(r.stats.*damage.reason, 1u);
    }
    EXPECT_EQ(r.stats.lost_slots, 1u);
    EXPECT_EQ(d.ExpectRestIsRight(r), 1u);
    ExpectAllComesBack(r);
  }
}

TEST(RecoveryOfDamage, TwoObjectsAtOnePlaceAreOne) {
  for (const uint64_t kind : {kSmall, kZbudKind, kStandbyKind}) {
    Damaged d;
    Remains remains = d.p.Die();
    const Location of_first = LocationOf(remains, d.SlotOf(kind));
    Location location = of_first;
    location.generation = LocationOf(remains, d.SlotOf(kind + kKinds)).generation;
    Relocate(remains, d.SlotOf(kind + kKinds), location);
    Revived r = Revive(d.p.options, std::move(remains));
    EXPECT_EQ(r.stats.overlaps, 1u);
    EXPECT_EQ(d.ExpectRestIsRight(r), 1u);
    ExpectAllComesBack(r);
  }
}

// A first buddy that reaches into the last one.
TEST(RecoveryOfDamage, BuddiesThatOverlapAreOne) {
  Damaged d;
  Remains remains = d.p.Die();
  std::map<uint64_t, std::vector<Slot>> by_frame;
  for (uint64_t page = kZbudKind; page < 20 * kKinds; page += kKinds)
    by_frame[LocationOf(remains, d.SlotOf(page)).offset / kPageBytes].push_back(d.SlotOf(page));
  bool damaged = false;
  for (const auto& [frame, slots] : by_frame) {
    if (slots.size() != 2 || damaged) continue;
    Location first = LocationOf(remains, slots[0]);
    Location last = LocationOf(remains, slots[1]);
    const bool swapped = first.offset % kPageBytes != 0;
    if (swapped) std::swap(first, last);
    if (last.length <= kPageBytes - kMaxEncodedBytes) continue;
    first.length = kMaxEncodedBytes;
    Relocate(remains, slots[swapped ? 1 : 0], first);
    damaged = true;
  }
  ASSERT_TRUE(damaged);
  Revived r = Revive(d.p.options, std::move(remains));
  EXPECT_EQ(r.stats.overlaps, 1u);
  EXPECT_EQ(r.stats.lost_slots, 1u);
  r.store->DebugVerify();
  ExpectAllComesBack(r);
}

TEST(RecoveryOfDamage, FramesThatAreGoneTakeTheirObjectsAlong) {
  Damaged d;
  Remains remains = d.p.Die();
  const uint64_t frame = LocationOf(remains, d.SlotOf(kSmall)).offset / kPageBytes;
  uint64_t gone = 0;
  for (uint64_t page = 0; page < 20 * kKinds; ++page) {
    if (!d.SlotOf(page).is_handle()) continue;
    const Location location = LocationOf(remains, d.SlotOf(page));
    if (location.offset / kPageBytes <= frame &&
        (location.offset + location.length - 1) / kPageBytes >= frame)
      ++gone;
  }
  ASSERT_GT(gone, 0u);
  PunchHole(remains.files.frames[0], frame * kPageBytes, kPageBytes);
  Revived r = Revive(d.p.options, std::move(remains));
  // Where nothing else is in the span it is given back whole.
  EXPECT_EQ(r.stats.dropped(), gone);
  EXPECT_EQ(d.ExpectRestIsRight(r), gone);
  ExpectAllComesBack(r);
}

TEST(RecoveryOfDamage, TagsThatLieTakeTheirSpanAlong) {
  for (const uint16_t tag : {0x0000, 0x0401, 0xff01, 0x0003, 0x0402, 0x0004, 0x00ff}) {
    SCOPED_TRACE(tag);
    Damaged d;
    Remains remains = d.p.Die();
    const uint64_t span = LocationOf(remains, d.SlotOf(kLarge)).offset / kSpanBytes;
    uint64_t gone = 0;
    for (uint64_t page = 0; page < 20 * kKinds; ++page) {
      if (d.SlotOf(page).is_handle() && LocationOf(remains, d.SlotOf(page)).offset / kSpanBytes == span)
        ++gone;
    }
    Put(remains.files.frames[0], TagAt(span), tag);
    Revived r = Revive(d.p.options, std::move(remains));
    EXPECT_EQ(r.stats.bad_location, gone);
    EXPECT_EQ(d.ExpectRestIsRight(r), gone);
    ExpectAllComesBack(r);
  }
}

// Memory that no tag speaks for, and tags of spans without memory: what a crash in AllocateSpan, Populate,
// Punch or FreeSpan leaves.
TEST(RecoveryOfDamage, SpansWithoutObjectsAreGivenBack) {
  Damaged d;
  Remains remains = d.p.Die();
  const uint64_t spans =
      Get<uint64_t>(remains.files.frames[0], offsetof(FileHeader, file_bytes)) / kSpanBytes;
  const UniqueFd& frames = remains.files.frames[0];
  Put<uint64_t>(frames, 100 * kSpanBytes + 5 * kPageBytes, 1);  // memory without tag
  Put<uint64_t>(frames, (spans - 1) * kSpanBytes + 63 * kPageBytes, 1);
  Put<uint16_t>(frames, TagAt(101), 0x0101);  // tag without memory
  Put<uint16_t>(frames, TagAt(102), 0x0101);  // both, and no object
  Put<uint64_t>(frames, 102 * kSpanBytes, 1);
  Put<uint16_t>(frames, TagAt(103), 0x0302);
  Put<uint64_t>(frames, 103 * kSpanBytes, 1);
  Put<uint16_t>(frames, TagAt(0), 0x0101);  // where no span is
  const int fd = remains.files.frames[0].get();
  Revived r = Revive(d.p.options, std::move(remains));
  ExpectNothingDropped(r.stats);
  EXPECT_EQ(d.ExpectRestIsRight(r), 0u);
  const uint64_t tag_bytes = (spans * sizeof(uint16_t) + kPageBytes - 1) / kPageBytes * kPageBytes;
  EXPECT_EQ(BytesHeld(fd), kPageBytes + tag_bytes + r.store->pool_bytes());
  ExpectAllComesBack(r);
}

TEST(RecoveryOfDamage, AGrowthThatWasNotFinishedIsUndone) {
  Damaged d;
  Remains remains = d.p.Die();
  // The step's entries have memory, their checksums and references do not; and words, but half of the nodes.
  const std::vector<std::byte> zeros(64 << 10);
  constexpr uint64_t kStepEntries = 2048, kStepNodes = 512;
  const int handles = remains.files.handles.get();
  const int index = remains.index.get();
  const uint64_t before = BytesHeld(handles);
  const uint64_t index_before = BytesHeld(index);
  ASSERT_EQ(pwrite(handles, zeros.data(), zeros.size(),
                   static_cast<off_t>(kPageBytes + kStepEntries * sizeof(HandleEntry))),
            static_cast<ssize_t>(zeros.size()));
  ASSERT_EQ(pwrite(index, zeros.data(), kPageBytes, static_cast<off_t>(2 * kPageBytes)),
            static_cast<ssize_t>(kPageBytes));
  ASSERT_EQ(pwrite(index, zeros.data(), zeros.size(), static_cast<off_t>(NodeAt(remains, kStepNodes))),
            static_cast<ssize_t>(zeros.size()));
  Revived r = Revive(d.p.options, std::move(remains));
  EXPECT_EQ(BytesHeld(handles), before);
  EXPECT_EQ(BytesHeld(index), index_before);
  ExpectNothingDropped(r.stats);
  EXPECT_EQ(d.ExpectRestIsRight(r), 0u);
  ExpectAllComesBack(r);
}

TEST(RecoveryOfDamage, SlotsThatMakeNoSenseAreLost) {
  struct Case {
    const char* what;
    uint32_t word;
  };
  const Case cases[] = {{"an inner word", 5 << 3 | 7},
                        {"an empty slot that is not empty", 1 << 3},
                        {"a pattern in the wrong form", 0 << 3 | 5},
                        {"a handle that never was", 3000 << 3 | 2},
                        {"the last handle", ~7u | 2}};
  for (const Case& damage : cases) {
    SCOPED_TRACE(damage.what);
    Damaged d;
    Remains remains = d.p.Die();
    Put(remains.index, WordAt(remains, 0, kLarge, 0), damage.word);
    Revived r = Revive(d.p.options, std::move(remains));
    EXPECT_EQ(r.stats.lost_slots, 1u);
    EXPECT_EQ(r.stats.orphans, 1u);
    EXPECT_TRUE(r.index(0).Get(PageIndex(kLarge)).is_lost());
    EXPECT_EQ(d.ExpectRestIsRight(r), 1u);
    ExpectAllComesBack(r);
  }
}

// The page may be home already: its owner finds out, and must be told.
TEST(RecoveryOfDamage, AFillingSlotThatIsLostStaysFilling) {
  Damaged d;
  Remains remains = d.p.Die();
  Put(remains.index, WordAt(remains, 0, kLarge, 0), Slot::FromHandle(Handle(3000)).Filling().raw());
  Revived r = Revive(d.p.options, std::move(remains));
  ASSERT_EQ(r.unsettled.size(), 1u);
  EXPECT_EQ(r.unsettled[0].slot, Slot::Lost().Filling());
  EXPECT_EQ(r.index(0).Get(PageIndex(kLarge)), Slot::Lost().Filling());
  EXPECT_EQ(r.index(0).CompareExchange(PageIndex(kLarge), Slot::Lost().Filling(), Slot::Lost()),
            Exchange::kDone);
  EXPECT_EQ(d.ExpectRestIsRight(r), 1u);
  ExpectAllComesBack(r);
}

// There are none, by contract. If there are, each tree has its own from the first change on.
TEST(RecoveryOfDamage, UnsettledSlotsInSharedLeavesAreEachTreesOwn) {
  Damaged d;
  d.p.Clone(0);
  Remains remains = d.p.Die();
  const Slot slot = d.SlotOf(kLarge);
  const Slot busy = Slot::Busy(1, 1);
  Put(remains.index, WordAt(remains, 0, kLarge, 0), slot.Filling().raw());
  Put(remains.index, WordAt(remains, 0, kNarrow, 0), busy.raw());
  Revived r = Revive(d.p.options, std::move(remains));
  EXPECT_EQ(r.stats.busy, 1u);
  EXPECT_EQ(r.stats.filling, 1u);
  ASSERT_EQ(r.unsettled.size(), 4u);
  for (const size_t root : {0, 1}) {
    ASSERT_EQ(r.index(root).CompareExchange(PageIndex(kLarge), slot.Filling(), slot), Exchange::kDone);
    ASSERT_EQ(r.index(root).CompareExchange(PageIndex(kNarrow), busy, Slot::Lost()), Exchange::kDone);
  }
  EXPECT_EQ(r.store->refs(slot), 2u);
  EXPECT_EQ(r.index(1).counts().lost, 1u);
  r.indexes[1].reset();
  EXPECT_EQ(r.store->refs(slot), 1u);
  EXPECT_EQ(d.ExpectRestIsRight(r), 1u);
  ExpectAllComesBack(r);
}

TEST(RecoveryOfDamage, BranchesThatMakeNoSenseAreCutOff) {
  constexpr uint64_t kFarPage = uint64_t{1} << 30;
  struct Case {
    const char* what;
    unsigned level;  // of the node in which the word lies
    std::function<uint32_t(const Remains&)> word;
  };
  const auto child = [](uint32_t node) { return node << 3 | 7; };
  const Case cases[] = {
      {"a slot", 1, [](const Remains&) { return Slot::FromHandle(Handle(1)).raw(); }},
      {"a node that never was", 3, [&](const Remains&) { return child(400); }},
      {"a node beyond the arena", 1, [&](const Remains&) { return child((1u << 29) - 1); }},
      {"no node", 1, [&](const Remains&) { return child(0); }},
      {"the root", 3, [&](const Remains& r) { return child((*r.roots)[0]); }},
      {"itself", 4, [&](const Remains& r) { return Get<uint32_t>(r.index, WordAt(r, 0, kFarPage, 5)); }},
      {"another's place at the same level", 1,
       [&](const Remains& r) { return Get<uint32_t>(r.index, WordAt(r, 0, 0, 1)); }},
      {"a leaf where an inner node belongs", 2,
       [&](const Remains& r) { return Get<uint32_t>(r.index, WordAt(r, 0, 0, 1)); }},
  };
  for (const Case& damage : cases) {
    SCOPED_TRACE(damage.what);
    Damaged d;
    d.p.Put(0, kFarPage, kLarge);
    Remains remains = d.p.Die();
    Put(remains.index, WordAt(remains, 0, kFarPage, damage.level), damage.word(remains));
    Revived r = Revive(d.p.options, std::move(remains));
    // A node that was never used is one of zeros: an empty branch.
    EXPECT_EQ(r.stats.cut_branches, std::string(damage.what) == "a node that never was" ? 0u : 1u);
    EXPECT_EQ(r.stats.orphans, 1u);
    EXPECT_EQ(d.ExpectRestIsRight(r), 0u);
    ExpectAllComesBack(r);
  }
}

TEST(RecoveryOfDamage, RootsThatMakeNoSenseAreEmptyTrees) {
  for (const uint32_t root : {400u, 1u << 20, ~0u}) {
    Damaged d;
    Remains remains = d.p.Die();
    (*remains.roots)[1] = root;
    Revived r = Revive(d.p.options, std::move(remains));
    EXPECT_EQ(r.index(1).stored(), 0u);
    EXPECT_TRUE(r.index(1).Get(PageIndex(0)).is_empty());
    const Slot slot = *Slot::SameFilled(1);
    EXPECT_EQ(r.index(1).CompareExchange(PageIndex(7), Slot::Empty(), slot), Exchange::kDone);
    EXPECT_EQ(r.index(1).Get(PageIndex(7)), slot);
    EXPECT_NE((*r.roots)[1].load(), 0u);
    EXPECT_EQ(d.ExpectRestIsRight(r), 0u);
    ExpectAllComesBack(r);
  }
}

// A word of the root behind the last page that there can be.
TEST(RecoveryOfDamage, PagesBeyondTheAddressSpaceAreCutOff) {
  Damaged d;
  Remains remains = d.p.Die();
  Put(remains.index, NodeAt(remains, (*remains.roots)[0]) + 8 * sizeof(uint32_t), 400u << 3 | 7);
  Revived r = Revive(d.p.options, std::move(remains));
  EXPECT_EQ(r.stats.cut_branches, 1u);
  EXPECT_EQ(d.ExpectRestIsRight(r), 0u);
  ExpectAllComesBack(r);
}

TEST(RecoveryOfDamage, AnotherDomainsObjectIsCorrupt) {
  Damaged d;
  PageBuffer page;
  Content(kLarge, &page);
  const Slot others = d.p.store->Store(page, {2, PageIndex(3), kDomain + 1}, NodeId(0), *d.p.scratch).value();
  Remains remains = d.p.Die();
  Put(remains.index, WordAt(remains, 0, kLarge, 0), others.raw());
  Revived r = Revive(d.p.options, std::move(remains));
  EXPECT_EQ(r.index(0).Get(PageIndex(kLarge)), others);
  PageBuffer out;
  EXPECT_EQ(r.store->Load(others, out, *d.p.scratch, kDomain), LoadOutcome::kCorrupt);
  EXPECT_EQ(r.store->Load(others, out, *d.p.scratch, kDomain + 1), LoadOutcome::kLoaded);
  ExpectAllComesBack(r);
  d.p.store->Release(others);
}

TEST(RecoveryOfDamage, FilesThatAreNoneAreRefusedAndLeftAlone) {
  struct Case {
    const char* what;
    std::function<void(Remains*)> damage;
    Errc code;
  };
  constexpr uint64_t kVersion = offsetof(FileHeader, layout_version), kMagic = offsetof(FileHeader, magic);
  constexpr uint64_t kParams = offsetof(FileHeader, params);
  const Case cases[] = {
      {"handles of a later version", [](Remains* r) { Put(r->files.handles, kVersion, 99u); },
       Errc::kUnsupported},
      {"handles of the first version", [](Remains* r) { Put(r->files.handles, kVersion, 1u); },
       Errc::kUnsupported},
      {"frames of another version", [](Remains* r) { Put(r->files.frames[1], kVersion, 99u); },
       Errc::kUnsupported},
      {"index of another version", [](Remains* r) { Put(r->index, kVersion, 2u); }, Errc::kUnsupported},
      {"no handles", [](Remains* r) { Put(r->files.handles, kMagic, uint64_t{1}); }, Errc::kInvalid},
      {"no frames", [](Remains* r) { Put(r->files.frames[0], kMagic, uint64_t{1}); }, Errc::kInvalid},
      {"no index", [](Remains* r) { Put(r->index, kMagic, uint64_t{1}); }, Errc::kInvalid},
      {"header of handles punched", [](Remains* r) { PunchHole(r->files.handles, 0, kPageBytes); },
       Errc::kInvalid},
      {"number of handles", [](Remains* r) { Put(r->files.handles, kParams, uint64_t{4096}); },
       Errc::kInvalid},
      {"handles beyond number", [](Remains* r) { Put(r->files.handles, kParams, ~uint64_t{0} << 12); },
       Errc::kInvalid},
      {"number of nodes", [](Remains* r) { Put(r->index, kParams, uint64_t{512}); }, Errc::kInvalid},
      {"nodes beyond number", [](Remains* r) { Put(r->index, kParams, ~uint64_t{0} << 9); }, Errc::kInvalid},
      {"node of frames", [](Remains* r) { Put(r->files.frames[0], kParams, uint64_t{64}); }, Errc::kInvalid},
      {"two files of a node", [](Remains* r) { Put(r->files.frames[1], kParams, uint64_t{0}); },
       Errc::kInvalid},
      {"size of spans", [](Remains* r) { Put(r->files.frames[0], kParams + 8, uint64_t{4096}); },
       Errc::kInvalid},
      {"place of tags", [](Remains* r) { Put(r->files.frames[0], kParams + 16, uint64_t{0}); },
       Errc::kInvalid},
      {"handles cut short", [](Remains* r) { EXPECT_EQ(ftruncate(r->files.handles.get(), 1 << 20), 0); },
       Errc::kInvalid},
      {"frames cut short", [](Remains* r) { EXPECT_EQ(ftruncate(r->files.frames[0].get(), 1 << 20), 0); },
       Errc::kInvalid},
      {"files exchanged", [](Remains* r) { std::swap(r->files.handles, r->index); }, Errc::kInvalid},
      {"no descriptor", [](Remains* r) { r->files.handles.reset(); }, Errc::kSystem},
  };
  Process p(TwoNodes());
  Model model;
  for (uint64_t n = 0; n < 100; ++n) {
    p.Put(0, n, n, n % 2 == 0 ? kNear : kFar);
    model[n] = n;
  }
  for (const Case& damage : cases) {
    SCOPED_TRACE(damage.what);
    Remains remains = p.Die();
    const Remains untouched = p.Die();
    damage.damage(&remains);
    RecoveryStats stats;
    const Remains shared = remains.Share();
    const auto store = PageStore::Recover(p.options, std::move(remains.files), &stats);
    const auto arena = IndexArena::Recover(std::move(remains.index));
    ASSERT_FALSE(store.ok() && arena.ok());
    EXPECT_EQ((store.ok() ? arena.error() : store.error()).code, damage.code);
  }
  // A refusal changed nothing: the same files without the damage.
  Remains remains = p.Die();
  const Remains shared = remains.Share();
  const uint32_t version = Get<uint32_t>(remains.index, kVersion);
  Put(remains.index, kVersion, 99u);
  EXPECT_EQ(TryRevive(p.options, std::move(remains)), nullptr);
  Put(shared.index, kVersion, version);
  Revived r = Revive(p.options, shared.Share());
  ExpectNothingDropped(r.stats);
  ExpectPages(r, 0, model);
  ExpectAllComesBack(r);
}

}  // namespace
}  // namespace zp
