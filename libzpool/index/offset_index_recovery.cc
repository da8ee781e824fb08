// OffsetIndex, coming back: one walk over the tree under a root that survived.
#include <new>
#include <utility>

#include "libzpool/base/pause_point.h"
#include "libzpool/index/offset_index.h"

namespace zp {

struct OffsetIndex::Recovery {
  OffsetIndex& index;
  const Unsettled& unsettled;
  RecoveryStats* stats;

  // What `link` names should stand for the pages from `first_page` on. If it can't, it is cut off.
  void Branch(const Link& link, unsigned level, uint64_t first_page, bool is_named) {
    const uint32_t node = link.node();
    const IndexArena::Reached reached = is_named && first_page < kPageIndexLimit
                                            ? index.arena_->Reach(node, level, first_page)
                                            : IndexArena::Reached::kNever;
    if (reached == IndexArena::Reached::kNever) {
      link.Set(0);
      ++stats->cut_branches;
      ZP_PAUSE_POINT("recover.branch_cut");
      return;
    }
    const bool is_first = reached == IndexArena::Reached::kFirst;
    if (is_first) ++stats->nodes;
    Below(node, level, first_page, is_first);
  }

  // `is_first`: what lies below is not known yet. Else another tree has been here: all is sound, and only
  // this one's slots are to be counted.
  void Below(uint32_t node, unsigned level, uint64_t first_page, bool is_first) {
    std::atomic<uint32_t>* const words = index.arena_->words(node);
    for (unsigned i = 0; i < kIndexFanout; ++i) {
      const uint32_t word = words[i].load(std::memory_order_relaxed);
      if (word == 0) continue;
      const uint64_t page = first_page + i * (PagesBelow(level) / kIndexFanout);
      if (level == 0) {
        const Slot slot = is_first ? Found(words[i], Slot::FromRaw(word)) : Slot::FromRaw(word);
        index.Count(slot, +1);
        if ((slot.is_busy() || slot.is_filling()) && unsettled) unsettled(PageIndex(page), slot);
      } else if (is_first) {
        Branch(Link::Inner(&words[i]), level - 1, page, ChildWord(ChildOf(word)) == word);
      } else {
        Below(ChildOf(word), level - 1, page, false);
      }
    }
  }

  // What a slot is from now on.
  Slot Found(std::atomic<uint32_t>& word, Slot slot) {
    if (!slot.is_valid()) slot = Lose(word, Slot::Lost());
    if (slot.is_busy()) {
      ++stats->busy;
    } else if (slot.is_filling()) {
      ++stats->filling;
      if (!index.store_->AdoptReference(slot.Settled())) slot = Lose(word, Slot::Lost().Filling());
    } else if (!index.store_->AdoptReference(slot)) {
      slot = Lose(word, Slot::Lost());
    } else if (!slot.is_lost()) {
      ++stats->slots;
    }
    return slot;
  }

  Slot Lose(std::atomic<uint32_t>& word, Slot lost) {
    ++stats->lost_slots;
    word.store(lost.raw(), std::memory_order_release);
    ZP_PAUSE_POINT("recover.slot_lost");
    return lost;
  }
};

Result<OffsetIndex> OffsetIndex::Recover(IndexArena& arena, PageStore& store, std::atomic<uint32_t>* root,
                                         const Unsettled& unsettled, RecoveryStats* stats) {
  std::unique_ptr<State> state(new (std::nothrow) State(root));
  if (state == nullptr) return Error{Errc::kNoMemory, 0, "offset index"};
  // Another tree may share nodes with this one.
  state->maybe_shared.store(true, std::memory_order_release);
  OffsetIndex index(arena, store, std::move(state));
  const Link link = Link::Root(index.state_->root);
  if (link.node() != 0) Recovery{index, unsettled, stats}.Branch(link, kLevels - 1, 0, true);
  return index;
}

}  // namespace zp
