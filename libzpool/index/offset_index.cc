#include "libzpool/index/offset_index.h"

#include <algorithm>
#include <new>
#include <utility>

#include "libzpool/base/pause_point.h"

namespace zp {

struct OffsetIndex::Sink {
  std::vector<Slot>* collected;  // null: released at once
  PageStore* store;

  void Take(Slot slot) const {
    slot = slot.Settled();
    if (collected != nullptr) {
      collected->push_back(slot);
    } else {
      store->Release(slot);
    }
  }
};

Result<OffsetIndex> OffsetIndex::Create(IndexArena& arena, PageStore& store, std::atomic<uint32_t>* root) {
  std::unique_ptr<State> state(new (std::nothrow) State(root));
  if (state == nullptr) return Error{Errc::kNoMemory, 0, "offset index"};
  state->root->store(ZP_TRY(arena.Allocate()), std::memory_order_release);
  return OffsetIndex(arena, store, std::move(state));
}

OffsetIndex::OffsetIndex(IndexArena& arena, PageStore& store, std::unique_ptr<State> state)
    : arena_(&arena), store_(&store), state_(std::move(state)) {}

OffsetIndex::~OffsetIndex() {
  if (state_ == nullptr || arena_->keeps_trees()) return;
  const uint32_t node = state_->root->load(std::memory_order_acquire);
  if (node == 0) return;
  state_->root->store(0, std::memory_order_release);
  ZP_PAUSE_POINT("index.unlinked");
  DropSubtree(node, kLevels - 1, Sink{nullptr, store_});
}

OffsetIndex::OffsetIndex(OffsetIndex&&) noexcept = default;

OffsetIndex& OffsetIndex::operator=(OffsetIndex&& other) noexcept {
  if (this != &other) {
    OffsetIndex old(std::move(*this));
    arena_ = other.arena_;
    store_ = other.store_;
    state_ = std::move(other.state_);
  }
  return *this;
}

Slot OffsetIndex::Get(PageIndex page) const {
  if (page.value() >= kPageIndexLimit) return Slot::Empty();
  for (;;) {
    const uint64_t sequence = state_->sequence.load(std::memory_order_acquire);
    uint32_t node = state_->root->load(std::memory_order_acquire);
    uint32_t word = 0;
    bool sane = true;
    for (unsigned level = node == 0 ? 0 : kLevels; level-- > 0;) {
      sane = arena_->InBounds(node);
      if (!sane) break;
      word = arena_->words(node)[IndexAt(page.value(), level)].load(std::memory_order_acquire);
      if (word == 0) break;
      node = ChildOf(word);
    }
    if (state_->sequence.load(std::memory_order_acquire) != sequence) continue;
    ZP_CHECK(sane, "the offset index is corrupt");
    return Slot::FromRaw(word);
  }
}

Status OffsetIndex::Ensure(PageIndex page) {
  if (PrivateLeafFast(page.value()) != nullptr) return OkStatus();
  ZP_TRY(PrivateLeaf(page.value(), Memory::kMayFail));
  return OkStatus();
}

OffsetIndex::Exchange OffsetIndex::CompareExchange(PageIndex page, Slot expected, Slot desired) {
  std::atomic<uint32_t>* leaf = PrivateLeafFast(page.value());
  if (leaf == nullptr) {
    if (Get(page) != expected) return Exchange::kChanged;
    const Result<std::atomic<uint32_t>*> made = PrivateLeaf(page.value(), Memory::kMayFail);
    if (!made.ok()) return Exchange::kNoMemory;
    leaf = *made;
  }
  // Private once means private until the next Clone, and that needs the caller out: the leaf is ours to
  // write.
  uint32_t word = expected.raw();
  if (!leaf[IndexAt(page.value(), 0)].compare_exchange_strong(word, desired.raw(), std::memory_order_acq_rel,
                                                              std::memory_order_acquire)) {
    return Exchange::kChanged;
  }
  Count(expected, -1);
  Count(desired, +1);
  return Exchange::kDone;
}

void OffsetIndex::DropRange(PageIndex begin, PageIndex end, std::vector<Slot>* dropped) {
  DropRangeTo(begin.value(), std::min(end.value(), kPageIndexLimit), Sink{dropped, store_});
}

Status OffsetIndex::Rekey(PageIndex from, PageIndex to, PageCount n) {
  const uint64_t source_end = (from + n).value();
  ZP_CHECK(source_end <= kPageIndexLimit && (to + n).value() <= kPageIndexLimit,
           "rekey beyond the address space");
  ZP_CHECK(source_end <= to.value() || (to + n) <= from, "rekey of ranges that overlap");
  // First everything that may fail: paths of both sides, a leaf at a time. A source leaf's slots go to two
  // leaves at most.
  Leaf leaf;
  for (uint64_t at = from.value(); at < source_end && NextLeaf(at, source_end, &leaf);
       at = leaf.base + kIndexFanout) {
    const uint64_t first = std::max(leaf.base, from.value());
    const uint64_t last = std::min(leaf.base + kIndexFanout, source_end) - 1;
    ZP_TRY(Ensure(PageIndex(first)));
    ZP_TRY(Ensure(to + (PageIndex(first) - from)));
    ZP_TRY(Ensure(to + (PageIndex(last) - from)));
  }
  for (uint64_t at = from.value(); at < source_end && NextLeaf(at, source_end, &leaf);
       at = leaf.base + kIndexFanout) {
    for (unsigned i = 0; i < kIndexFanout; ++i) {
      const PageIndex page(leaf.base + i);
      const Slot slot = leaf.slots[i];
      if (page < from || page.value() >= source_end || slot.is_empty()) continue;
      const PageIndex target = to + (page - from);
      // The counts do not change, so this goes past CompareExchange.
      std::atomic<uint32_t>* const target_leaf = PrivateLeafFast(target.value());
      std::atomic<uint32_t>* const source_leaf = PrivateLeafFast(page.value());
      ZP_CHECK(target_leaf != nullptr && source_leaf != nullptr, "a path made for rekey is gone");
      uint32_t there = 0;
      const bool moves = target_leaf[IndexAt(target.value(), 0)].compare_exchange_strong(
          there, slot.raw(), std::memory_order_acq_rel);
      ZP_CHECK(moves || there == slot.raw(), "rekey onto a page that is there");
      ZP_PAUSE_POINT("rekey.published");
      source_leaf[IndexAt(page.value(), 0)].store(0, std::memory_order_release);
      if (!moves) {  // it had arrived before a crash, and is counted twice
        Count(slot, -1);
        store_->Release(slot.Settled());
      }
      if (slot.is_handle() && store_->refs(slot) == 1) {
        store_->SetOwner(slot, Owner{store_->GetOwner(slot).client, target});
      }
    }
  }
  // Nothing is in it any more; this frees the nodes.
  DropRangeTo(from.value(), source_end, Sink{nullptr, store_});
  return OkStatus();
}

Result<OffsetIndex> OffsetIndex::Clone(std::atomic<uint32_t>* root) {
  ZP_DCHECK(counts().busy == 0, "a clone of an index with busy slots");
  std::unique_ptr<State> state(new (std::nothrow) State(root));
  if (state == nullptr) return Error{Errc::kNoMemory, 0, "offset index"};
  state->maybe_shared.store(true, std::memory_order_release);
  state_->maybe_shared.store(true, std::memory_order_release);
  for (unsigned kind = 0; kind < kKinds; ++kind) {
    state->counts[kind].store(state_->counts[kind].load(std::memory_order_relaxed),
                              std::memory_order_relaxed);
  }
  const uint32_t node = state_->root->load(std::memory_order_acquire);
  if (node != 0) arena_->AddRef(node);
  ZP_PAUSE_POINT("index.clone");
  state->root->store(node, std::memory_order_release);
  return OffsetIndex(*arena_, *store_, std::move(state));
}

OffsetIndex::Counts OffsetIndex::counts() const {
  const auto count = [this](unsigned kind) { return state_->counts[kind].load(std::memory_order_relaxed); };
  return Counts{count(2), count(1), count(3), count(4)};
}

uint64_t OffsetIndex::stored() const {
  const Counts now = counts();
  return now.handles + now.same_filled + now.lost;
}

unsigned OffsetIndex::KindOf(Slot slot) {
  if (slot.is_busy()) return 4;
  slot = slot.Settled();
  if (slot.is_same_filled()) return 1;
  if (slot.is_handle()) return 2;
  return slot.is_lost() ? 3 : 0;
}

void OffsetIndex::Count(Slot slot, int64_t delta) {
  const unsigned kind = KindOf(slot);
  if (kind != 0) state_->counts[kind].fetch_add(static_cast<uint64_t>(delta), std::memory_order_relaxed);
}

std::atomic<uint32_t>* OffsetIndex::PrivateLeafFast(uint64_t page) const {
  ZP_CHECK(page < kPageIndexLimit, "page beyond the address space");
  const bool maybe_shared = state_->maybe_shared.load(std::memory_order_acquire);
  const uint64_t sequence = state_->sequence.load(std::memory_order_acquire);
  if ((sequence & 1) != 0) return nullptr;
  uint32_t node = state_->root->load(std::memory_order_acquire);
  for (unsigned level = kLevels; level-- > 0;) {
    if (!arena_->InBounds(node)) return nullptr;
    if (maybe_shared && arena_->refs(node) != 1) return nullptr;
    if (level == 0) break;
    const uint32_t word = arena_->words(node)[IndexAt(page, level)].load(std::memory_order_acquire);
    if (word == 0) return nullptr;
    node = ChildOf(word);
  }
  // A count of one may be another index's: of a node that was taken out of this one meanwhile. Then the
  // sequence tells.
  if (state_->sequence.load(std::memory_order_acquire) != sequence) return nullptr;
  return arena_->words(node);
}

Result<std::atomic<uint32_t>*> OffsetIndex::PrivateLeaf(uint64_t page, Memory memory) {
  Retired retired;
  Result<uint32_t> leaf = Error{};
  {
    MutexLock lock(state_->structure_mu);
    const bool maybe_shared = state_->maybe_shared.load(std::memory_order_acquire);
    // Before any count is looked at: a fast path that saw the path private before us has seen it for good,
    // one that comes after sees the odd sequence and waits for the lock.
    if (maybe_shared) state_->sequence.fetch_add(1, std::memory_order_acq_rel);
    leaf = MakePrivate(page, memory, &retired);
    if (maybe_shared) state_->sequence.fetch_add(1, std::memory_order_acq_rel);
  }
  // Only now, see the class comment; and without the lock, since objects may be freed.
  for (unsigned i = 0; i < retired.count; ++i)
    DropSubtree(retired.nodes[i], retired.levels[i], Sink{nullptr, store_});
  if (!leaf.ok()) return leaf.error();
  return arena_->words(*leaf);
}

Result<uint32_t> OffsetIndex::MakePrivate(uint64_t page, Memory memory, Retired* retired) {
  Link link = Link::Root(state_->root);
  for (unsigned level = kLevels; level-- > 0;) {
    const uint32_t node = link.node();
    uint32_t ours = node;
    if (node == 0) {
      ours = ZP_TRY(AllocateNode(memory));
    } else if (arena_->OrderedRefs(node) != 1) {
      ours = ZP_TRY(CopyNode(node, level, memory));
      retired->levels[retired->count] = static_cast<uint8_t>(level);
      retired->nodes[retired->count++] = node;
    }
    if (ours != node) {
      ZP_PAUSE_POINT("index.node_made");
      link.Set(ours);
      ZP_PAUSE_POINT("index.node_linked");
    }
    if (level == 0) return ours;
    link = Link::Inner(&arena_->words(ours)[IndexAt(page, level)]);
  }
  __builtin_unreachable();
}

Result<uint32_t> OffsetIndex::CopyNode(uint32_t node, unsigned level, Memory memory) {
  const uint32_t copy = ZP_TRY(AllocateNode(memory));
  std::atomic<uint32_t>* const from = arena_->words(node);
  std::atomic<uint32_t>* const to = arena_->words(copy);
  for (unsigned i = 0; i < kIndexFanout; ++i) {
    const uint32_t word = from[i].load(std::memory_order_acquire);
    if (word == 0) continue;
    if (level > 0) {
      arena_->AddRef(ChildOf(word));
    } else {
      const Slot slot = Slot::FromRaw(word).Settled();
      if (memory == Memory::kReserved) {
        store_->RefOrPin(slot);
      } else if (const Status status = store_->Ref(slot); !status.ok()) {
        // Never the last references: the leaf that we copy from has its own.
        for (unsigned j = 0; j < i; ++j)
          store_->Release(Slot::FromRaw(to[j].load(std::memory_order_relaxed)).Settled());
        if (arena_->DropRef(copy)) arena_->Recycle(copy);
        return status.error();
      }
    }
    to[i].store(word, std::memory_order_release);
  }
  return copy;
}

Result<uint32_t> OffsetIndex::AllocateNode(Memory memory) {
  if (memory == Memory::kReserved) return arena_->AllocateReserved();
  return arena_->Allocate();
}

bool OffsetIndex::NextLeaf(uint64_t from, uint64_t end, Leaf* leaf) const {
  end = std::min(end, kPageIndexLimit);
  for (uint64_t page = from; page < end;) {
    const uint64_t sequence = state_->sequence.load(std::memory_order_acquire);
    uint32_t node = state_->root->load(std::memory_order_acquire);
    if (node == 0) return false;
    uint64_t next = page;
    bool sane = true;
    for (unsigned level = kLevels; level-- > 0;) {
      sane = arena_->InBounds(node);
      if (!sane) break;
      if (level == 0) {
        leaf->base = page & ~uint64_t{kIndexFanout - 1};
        for (unsigned i = 0; i < kIndexFanout; ++i) {
          leaf->slots[i] = Slot::FromRaw(arena_->words(node)[i].load(std::memory_order_acquire));
        }
        break;
      }
      const uint32_t word = arena_->words(node)[IndexAt(page, level)].load(std::memory_order_acquire);
      if (word == 0) {
        const uint64_t absent = PagesBelow(level - 1);
        next = (page / absent + 1) * absent;
        break;
      }
      node = ChildOf(word);
    }
    if (state_->sequence.load(std::memory_order_acquire) != sequence) continue;
    ZP_CHECK(sane, "the offset index is corrupt");
    if (next == page) return true;
    page = next;
  }
  return false;
}

void OffsetIndex::DropSubtree(uint32_t node, unsigned level, const Sink& sink) {
  if (!arena_->DropRef(node)) return;
  std::atomic<uint32_t>* const words = arena_->words(node);
  for (unsigned i = 0; i < kIndexFanout; ++i) {
    const uint32_t word = words[i].load(std::memory_order_acquire);
    if (word == 0) continue;
    if (level > 0) {
      DropSubtree(ChildOf(word), level - 1, sink);
    } else {
      sink.Take(Slot::FromRaw(word));
    }
  }
  arena_->Recycle(node);
}

void OffsetIndex::CountSubtree(uint32_t node, unsigned level, int64_t delta) {
  std::atomic<uint32_t>* const words = arena_->words(node);
  for (unsigned i = 0; i < kIndexFanout; ++i) {
    const uint32_t word = words[i].load(std::memory_order_acquire);
    if (word == 0) continue;
    if (level > 0) {
      CountSubtree(ChildOf(word), level - 1, delta);
    } else {
      Count(Slot::FromRaw(word), delta);
    }
  }
}

// A link is changed before what it named is given up: who gives up a node's last reference lets others use
// it.
void OffsetIndex::DropWithin(const Link& link, unsigned level, uint64_t base, uint64_t begin, uint64_t end,
                             const Sink& sink) {
  const uint32_t node = link.node();
  const uint64_t pages = PagesBelow(level);
  // The root stays, whatever is dropped.
  const bool is_root = level == kLevels - 1;
  if (begin <= base && end >= base + pages && !is_root) {
    link.Set(0);
    ZP_PAUSE_POINT("index.unlinked");
    CountSubtree(node, level, -1);
    DropSubtree(node, level, sink);
    return;
  }
  uint32_t ours = node;
  if (arena_->OrderedRefs(node) != 1) {
    ours = CopyNode(node, level, Memory::kReserved).value();
    ZP_PAUSE_POINT("index.node_made");
    link.Set(ours);
    ZP_PAUSE_POINT("index.node_linked");
    DropSubtree(node, level, sink);
  }
  std::atomic<uint32_t>* const words = arena_->words(ours);
  const uint64_t step = pages / kIndexFanout;
  const uint64_t first = begin <= base ? 0 : (begin - base) / step;
  const uint64_t last = std::min<uint64_t>((end - 1 - base) / step, kIndexFanout - 1);
  for (uint64_t i = first; i <= last; ++i) {
    const uint32_t word = words[i].load(std::memory_order_acquire);
    if (word == 0) continue;
    if (level == 0) {
      const Slot slot = Slot::FromRaw(word);
      words[i].store(0, std::memory_order_release);
      ZP_PAUSE_POINT("index.slot_dropped");
      Count(slot, -1);
      sink.Take(slot);
      continue;
    }
    DropWithin(Link::Inner(&words[i]), level - 1, base + i * step, begin, end, sink);
  }
  if (is_root) return;
  for (unsigned i = 0; i < kIndexFanout; ++i) {
    if (words[i].load(std::memory_order_relaxed) != 0) return;
  }
  link.Set(0);
  ZP_PAUSE_POINT("index.unlinked");
  DropSubtree(ours, level, sink);
}

void OffsetIndex::DropRangeTo(uint64_t begin, uint64_t end, const Sink& sink) {
  const Link root = Link::Root(state_->root);
  if (begin >= end || root.node() == 0) return;
  DropWithin(root, kLevels - 1, 0, begin, end, sink);
}

}  // namespace zp
