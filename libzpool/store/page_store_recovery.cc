// PageStore, coming back from its files. See DESIGN.md, "A crash, and coming back".
//
// The entries in state live are the truth. Tags say which pool a span belongs to, the files' extents which
// frames have memory; what neither an entry nor a tag speaks for is given back. Nothing that is written here,
// in this order, is more than a crash in between, and the same once more, can bear.
#include <array>
#include <bit>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "libzpool/base/pause_point.h"
#include "libzpool/store/page_store.h"

namespace zp {

Result<std::unique_ptr<PageStore>> PageStore::Recover(const Options& options, StoreFiles files,
                                                      RecoveryStats* stats) {
  const uint64_t capacity_frames = options.capacity.value() / kPageBytes;
  if (capacity_frames == 0) return Error{Errc::kInvalid, 0, "capacity of the pool"};
  // Everything is looked at before anything is changed.
  Options all = options;
  std::array<std::optional<MemoryFile>, kMaxNodes> found;
  for (UniqueFd& fd : files.frames) {
    MemoryFile file = ZP_TRY(FrameArena::AdoptFile(std::move(fd)));
    const NodeId node = FrameArena::NodeOf(file);
    if (found[node.value()].has_value()) return Error{Errc::kInvalid, 0, "two files of frames of one node"};
    found[node.value()] = std::move(file);
    if (all.topology.IndexOf(node) < 0) all.topology = all.topology.With(node);
  }
  std::unique_ptr<PageStore> store(new (std::nothrow) PageStore(all, capacity_frames));
  if (store == nullptr) return Error{Errc::kNoMemory, 0, "page store"};
  store->stage_ = Stage::kRecovering;
  store->handles_ = ZP_TRY(HandleTable::Recover(std::move(files.handles)));
  store->mover_.emplace(*store->handles_, store->epochs_);
  for (const NodeId node : all.topology.nodes()) {
    const bool is_gone = options.topology.IndexOf(node) < 0;
    FrameArena::Options arena_options = store->ArenaOptions(node);
    if (is_gone) arena_options.bind = false;
    std::optional<MemoryFile>& file = found[node.value()];
    std::unique_ptr<FrameArena> arena =
        file.has_value() ? ZP_TRY(FrameArena::Recover(std::move(*file), arena_options.bind, store->budget_))
                         : ZP_TRY(FrameArena::Create(arena_options, store->budget_));
    ZP_TRY(store->AddNode(std::move(arena)));
    if (is_gone) store->SetNodeAccepts(node, false);
  }
  for (const Node& node : store->nodes_) ZP_TRY(store->AdoptSpans(node, stats));
  store->AdoptObjects(stats);
  return store;
}

Status PageStore::AdoptSpans(const Node& node, RecoveryStats* stats) {
  FrameArena& arena = *node.arena;
  return arena.ForEachFound([&](uint32_t span, SpanTag tag, uint64_t present) -> Status {
    ObjectPool* const pool = node.OwnerOf(tag);
    if (pool != nullptr && present != 0) {
      const Status adopted = pool->AdoptSpan(span, tag.size_class, present);
      if (adopted.ok()) stats->frames += static_cast<uint64_t>(std::popcount(present));
      if (adopted.ok() || adopted.error().code != Errc::kInvalid) return adopted;
    }
    arena.ClearSpan(span, present);
    ZP_PAUSE_POINT("recover.span_cleared");
    return OkStatus();
  });
}

void PageStore::AdoptObjects(RecoveryStats* stats) {
  for (uint32_t i = 1; i < handles_->high_water(); ++i) {
    const Handle handle(i);
    const Location location = Location::Decode(handles_->Lookup(handle));
    if (!location.is_readable()) continue;
    const AdoptOutcome outcome = AdoptObject(handle, location);
    if (outcome == AdoptOutcome::kAdopted) {
      ++stats->objects;
      if (location.codec == CodecId::kRaw) raw_pages_.fetch_add(1, std::memory_order_relaxed);
      continue;
    }
    ++(outcome == AdoptOutcome::kNoMemory   ? stats->no_memory
       : outcome == AdoptOutcome::kOverlaps ? stats->overlaps
                                            : stats->bad_location);
    handles_->Drop(handle);
    ZP_PAUSE_POINT("recover.entry_dropped");
  }
  for (const Node& node : nodes_) {
    for (uint32_t span = 0; span < node.arena->span_limit(); ++span) {
      if (ObjectPool* const pool = node.OwnerOf(node.arena->tag(span)); pool != nullptr) pool->Putback(span);
    }
  }
  handles_->StartAgain();
}

AdoptOutcome PageStore::AdoptObject(Handle handle, const Location& location) const {
  const Node* const node = NodeOf(location.node);
  const uint64_t span = location.offset / kSpanBytes;
  if (node == nullptr || span >= node->arena->span_count() || !CanBeObject(location.codec, location.length))
    return AdoptOutcome::kBadPlace;
  const SpanTag tag = node->arena->tag(static_cast<uint32_t>(span));
  ObjectPool* const pool = node->OwnerOf(tag);
  if (pool == nullptr) return AdoptOutcome::kBadPlace;
  return pool->AdoptObject(location.offset, location.length, handle);
}

bool PageStore::AdoptReference(Slot slot) { return !slot.is_handle() || handles_->Adopt(slot.handle()); }

void PageStore::FinishRecovery(RecoveryStats* stats) {
  ZP_CHECK(stage_ == Stage::kRecovering, "recovery of a store is finished once");
  for (uint32_t i = 1; i < handles_->high_water(); ++i) {
    const Handle handle(i);
    if (handles_->refs(handle) != 0 || !Location::Decode(handles_->Lookup(handle)).is_readable()) continue;
    ++stats->orphans;
    Free(handle);
    ZP_PAUSE_POINT("recover.orphan_freed");
  }
  Trim();
  stage_ = Stage::kLive;
}

}  // namespace zp
