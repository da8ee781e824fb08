#include "libzpool/migrate/migrator.h"

#include <algorithm>
#include <thread>

#include "libzpool/base/check.h"
#include "libzpool/base/pause_point.h"

namespace zp {
namespace {

constexpr std::chrono::microseconds kPause{100};

bool Passes(MigrateOutcome outcome, MigrateMode mode) {
  if (outcome == MigrateOutcome::kBusy) return mode != MigrateMode::kAsync;
  return outcome == MigrateOutcome::kPinned && mode == MigrateMode::kSync;
}

}  // namespace

void Migrator::Register(FrameArena& arena, FrameOwner kind, MovableOwner& owner) {
  Node& node = nodes_[arena.node().value()];
  ZP_CHECK(node.arena == nullptr || node.arena == &arena, "two arenas for one node");
  node.arena = &arena;
  node.owners[static_cast<size_t>(kind)] = &owner;
}

// Finds who moves it, and room for it.
void Migrator::Reserve(Item& item, const Node& from, const Node& to) const {
  const size_t kind = static_cast<size_t>(from.arena->tag(item.span).owner);
  item.owner = kind < from.owners.size() ? from.owners[kind] : nullptr;
  item.target_owner = kind < to.owners.size() ? to.owners[kind] : nullptr;
  item.outcome = MigrateOutcome::kGone;
  if (item.owner == nullptr) return;
  const std::optional<SpanShape> shape = item.owner->ShapeOf(item.span);
  item.outcome = MigrateOutcome::kBusy;  // another has it, or it just goes
  if (!shape.has_value()) return;
  item.shape = *shape;
  item.outcome = MigrateOutcome::kNoTarget;
  if (item.target_owner == nullptr) return;
  const Result<uint32_t> target = item.target_owner->Reserve(item.shape);
  if (!target.ok()) return;
  item.target = *target;
  item.reserved = true;
}

void Migrator::MoveBatch(std::span<Item> batch, const Node& from, const Node& to,
                         const std::atomic<bool>* abort, MigrateStats* stats) {
  for (Item& item : batch) Reserve(item, from, to);
  for (Item& item : batch) {
    if (!item.reserved) continue;
    item.outcome = item.owner->Isolate(item.span, item.shape);
    item.isolated = item.outcome == MigrateOutcome::kMoved;
  }
  for (Item& item : batch) {
    if (!item.isolated) continue;
    const MigratedSpan moved = item.owner->Migrate(item.span, *item.target_owner, item.target, abort);
    item.outcome = moved.outcome;
    stats->objects += moved.objects;
    stats->bytes += moved.bytes;
  }
  ZP_PAUSE_POINT("migrate.published");
  // Nobody reads the old places any more, nor those that were published and taken back.
  epochs_.Synchronize();
  for (Item& item : batch) {
    if (item.isolated) item.owner->Putback(item.span);
    if (item.reserved) item.target_owner->Putback(item.target);
  }
}

MigrateStats Migrator::Move(std::span<const uint32_t> spans, NodeId from, NodeId to, MigrateMode mode,
                            const std::atomic<bool>* abort) {
  MigrateStats stats;
  const Node& source = nodes_[from.value()];
  const Node& target = nodes_[to.value()];
  const auto count = [&](MigrateOutcome outcome) { ++stats.spans[static_cast<size_t>(outcome)]; };
  const auto aborted = [&] { return abort != nullptr && abort->load(std::memory_order_relaxed); };
  for (size_t begin = 0; begin < spans.size(); begin += kBatch) {
    std::array<Item, kBatch> items;
    const std::span<Item> batch(items.data(), std::min(kBatch, spans.size() - begin));
    if (source.arena == nullptr || aborted()) {
      for (size_t i = 0; i < batch.size(); ++i)
        count(source.arena == nullptr ? MigrateOutcome::kGone : MigrateOutcome::kAborted);
      continue;
    }
    for (size_t i = 0; i < batch.size(); ++i) batch[i].span = spans[begin + i];
    MoveBatch(batch, source, target, abort, &stats);
    for (Item& item : batch) {
      const auto deadline = std::chrono::steady_clock::now() + kSyncPatience;
      for (int tries = 0; Passes(item.outcome, mode) && !aborted(); ++tries) {
        if (mode == MigrateMode::kSyncLight ? tries >= kLightTries
                                            : std::chrono::steady_clock::now() > deadline)
          break;
        if (mode == MigrateMode::kSyncLight) {
          std::this_thread::yield();
        } else {
          std::this_thread::sleep_for(kPause);
        }
        Item again;
        again.span = item.span;
        MoveBatch(std::span(&again, 1), source, target, abort, &stats);
        item.outcome = again.outcome;
      }
      count(item.outcome);
    }
  }
  return stats;
}

}  // namespace zp
