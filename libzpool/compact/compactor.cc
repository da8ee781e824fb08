#include "libzpool/compact/compactor.h"

#include <algorithm>
#include <chrono>

namespace zp {
namespace {

// What unused allowance adds up to.
constexpr std::chrono::microseconds kBurst{100'000};

}  // namespace

Compactor::Compactor(PageStore& store, Options options) : store_(store), options_(std::move(options)) {}

uint64_t Compactor::Allowed(Bytes budget) {
  if (options_.bytes_per_second == 0) return budget.value();
  MutexLock lock(mu_);
  const auto now = std::chrono::steady_clock::now();
  const auto bytes_in = [&](std::chrono::microseconds time) {
    return static_cast<int64_t>(options_.bytes_per_second * static_cast<uint64_t>(time.count()) / 1'000'000);
  };
  const auto passed = std::chrono::duration_cast<std::chrono::microseconds>(now - allowance_at_);
  allowance_ = std::min(bytes_in(kBurst), allowance_ + bytes_in(std::min(passed, kBurst)));
  allowance_at_ = now;
  return allowance_ <= 0 ? 0 : std::min(budget.value(), static_cast<uint64_t>(allowance_));
}

void Compactor::Spent(uint64_t bytes) {
  if (options_.bytes_per_second == 0) return;
  MutexLock lock(mu_);
  allowance_ -= static_cast<int64_t>(bytes);
}

CompactorStats Compactor::stats() const {
  MutexLock lock(mu_);
  return stats_;
}

uint64_t Compactor::CompactStep(NodeId id, Bytes budget) {
  const PageStore::Node& node = store_.MustFind(id);
  const uint64_t allowed = Allowed(budget);
  uint64_t bytes = 0;
  std::atomic<uint32_t>& hand = part_hand_[id.value()];
  // Zsmalloc's classes, the one of standby, zbud's shards.
  constexpr uint32_t kStandby = ZsmallocPool::kClassCount;
  constexpr uint32_t kZbud = kStandby + 1;
  constexpr uint32_t kAll = kZbud + ZbudPool::kShards;
  const auto compact = [&](uint32_t part) {
    if (part >= kZbud) return node.zbud->Compact(part - kZbud, options_.waste_permille, store_.epochs_);
    return part == kStandby
               ? node.standby->Compact(ZsmallocPool::kClassCount - 1, options_.waste_permille, store_.epochs_)
               : node.zsmalloc->Compact(part, options_.waste_permille, store_.epochs_);
  };
  // Once around all of them, or until the budget is used up in the middle of one.
  for (uint32_t seen = 0; seen < kAll && bytes < allowed; ++seen) {
    const uint32_t at = hand.load(std::memory_order_relaxed) % kAll;
    while (bytes < allowed) {
      const Compacted done = compact(at);
      if (done.objects == 0) break;
      bytes += done.bytes;
      MutexLock lock(mu_);
      stats_.objects += done.objects;
      stats_.bytes += done.bytes;
    }
    if (bytes < allowed) hand.store(at + 1, std::memory_order_relaxed);
  }
  Spent(bytes);
  return bytes;
}

uint64_t Compactor::EmptyBlocksStep(NodeId id, Bytes budget) {
  const PageStore::Node& node = store_.MustFind(id);
  const uint64_t allowed = Allowed(budget);
  MigrateStats total;
  for (uint32_t span = node.arena->span_limit(); span-- > 0 && total.bytes < allowed;) {
    if (node.arena->tag(span).owner == FrameOwner::kNone) continue;
    if (node.arena->lowest_free_span() / kSpansPerBlock >= span / kSpansPerBlock) break;
    const MigrateStats moved = store_.migrator_.Move(std::span(&span, 1), id, id, MigrateMode::kAsync);
    total.Add(moved);
    if (moved.of(MigrateOutcome::kNoTarget) != 0) break;
  }
  Spent(total.bytes);
  MutexLock lock(mu_);
  stats_.blocks.Add(total);
  return total.bytes;
}

MigrateStats Compactor::MoveSome(const PageStore::Node& from, const std::vector<NodeId>& targets,
                                 uint64_t bytes, MigrateMode mode, const std::atomic<bool>* abort) {
  MigrateStats total;
  FrameArena& arena = *from.arena;
  std::atomic<uint32_t>& hand = span_hand_[arena.node().value()];
  const uint32_t limit = arena.span_limit();
  size_t target = 0;
  for (uint32_t seen = 0; seen < limit && total.bytes < bytes && target < targets.size();) {
    std::array<uint32_t, Migrator::kBatch> batch;
    size_t count = 0;
    // No more spans than the budget has room for.
    const size_t most = std::clamp<size_t>((bytes - total.bytes) / kSpanBytes, 1, batch.size());
    for (; seen < limit && count < most; ++seen) {
      const uint32_t span = hand.fetch_add(1, std::memory_order_relaxed) % limit;
      if (arena.tag(span).owner != FrameOwner::kNone) batch[count++] = span;
    }
    while (count > 0 && target < targets.size()) {
      const MigrateStats moved =
          store_.migrator_.Move(std::span(batch.data(), count), arena.node(), targets[target], mode, abort);
      const bool full = moved.of(MigrateOutcome::kNoTarget) != 0;
      total.Add(moved);
      if (!full) break;
      // Those that moved are gone at the next try.
      ++target;
    }
    if (abort != nullptr && abort->load(std::memory_order_relaxed)) break;
  }
  return total;
}

Compactor::Drain Compactor::DrainStep(NodeId id, Bytes budget, MigrateMode mode,
                                      const std::atomic<bool>* abort) {
  const PageStore::Node& node = store_.MustFind(id);
  std::vector<NodeId> targets;
  for (const uint8_t index : store_.topology().FallbackOrder(id)) {
    const PageStore::Node& other = store_.nodes_[index];
    if (&other != &node && other.accepts->load(std::memory_order_relaxed))
      targets.push_back(other.arena->node());
  }
  const MigrateStats moved = MoveSome(node, targets, Allowed(budget), mode, abort);
  Spent(moved.bytes);
  // Frames that nothing lies in.
  node.Trim();
  MutexLock lock(mu_);
  stats_.drained.Add(moved);
  return {moved.bytes, node.arena->frames_in_use() * kPageBytes};
}

uint64_t Compactor::MostFrames(const PageStore::Node& node) const {
  return std::min(node.arena->limit_frames(), store_.budget_.limit_frames());
}

uint64_t Compactor::FillPermille(const PageStore::Node& node) const {
  const uint64_t limit = MostFrames(node);
  return limit == 0 ? 1000 : node.arena->frames_in_use() * 1000 / limit;
}

uint64_t Compactor::Relieve(bool demote, Bytes budget, MigrateStats CompactorStats::*counter) {
  const uint64_t allowed = Allowed(budget);
  MigrateStats total;
  for (const PageStore::Node& node : store_.nodes_) {
    if (FillPermille(node) <= options_.high_permille) continue;
    const NodeId id = node.arena->node();
    std::vector<NodeId> order;
    const std::vector<NodeId>& demotion = options_.demotion_order;
    if (demote) {
      const auto place = std::find(demotion.begin(), demotion.end(), id);
      if (place != demotion.end()) order.assign(place + 1, demotion.end());
    } else {
      for (const uint8_t index : store_.topology().FallbackOrder(id))
        order.push_back(store_.nodes_[index].arena->node());
    }
    std::erase_if(order, [&](NodeId other) {
      const PageStore::Node* target = store_.NodeOf(other);
      return target == nullptr || target == &node || !target->accepts->load(std::memory_order_relaxed) ||
             FillPermille(*target) >= options_.low_permille;
    });
    // Down to the low watermark.
    const uint64_t used = node.arena->frames_in_use();
    const uint64_t low = MostFrames(node) * options_.low_permille / 1000;
    const uint64_t excess = used > low ? (used - low) * kPageBytes : 0;
    total.Add(MoveSome(node, order, std::min(allowed - std::min(allowed, total.bytes), excess),
                       MigrateMode::kAsync, nullptr));
  }
  Spent(total.bytes);
  MutexLock lock(mu_);
  (stats_.*counter).Add(total);
  return total.bytes;
}

bool Compactor::TakesBack(const PageStore::Node& node) const {
  return node.accepts->load(std::memory_order_relaxed) && FillPermille(node) < options_.return_permille;
}

Compactor::Locality Compactor::LocalityStep(NodeId id, const HomeOf& home, Bytes budget) {
  const PageStore::Node& node = store_.MustFind(id);
  const uint64_t allowed = Allowed(budget);
  Locality result;
  if (allowed == 0) return result;
  std::array<bool, kMaxNodes> takes{};
  for (const PageStore::Node& other : store_.nodes_)
    takes[other.arena->node().value()] = &other != &node && TakesBack(other);
  std::array<ObjectMove, ObjectMover::kBatch> batch;
  size_t count = 0;
  uint64_t batch_bytes = 0;
  uint64_t moved_objects = 0;
  std::array<uint64_t, kMaxNodes> moved_bytes{};
  const auto move_batch = [&] {
    store_.mover_->Move(std::span(batch.data(), count));
    for (size_t i = 0; i < count; ++i) {
      const NodeId to = batch[i].to_arena->node();
      if (batch[i].outcome == ObjectMove::Outcome::kMoved) {
        ++moved_objects;
        moved_bytes[to.value()] += Location::Decode(batch[i].word).length;
        result.moved_bytes += Location::Decode(batch[i].word).length;
      }
      // Not asked again in this step: each time would cost calls of the kernel.
      if (batch[i].outcome == ObjectMove::Outcome::kNoRoom || !TakesBack(store_.MustFind(to)))
        takes[to.value()] = false;
    }
    count = 0;
    batch_bytes = 0;
  };
  // Takes the object along if it should be elsewhere.
  const auto consider = [&](Handle handle, uint32_t span) {
    const uint64_t word = store_.handles_->Lookup(handle);
    const Location location = Location::Decode(word);
    // It may have been freed or moved since it was listed.
    if (!location.is_readable() || location.node != id || location.offset / kSpanBytes != span) return;
    const std::optional<NodeId> to = home(store_.handles_->owner(handle).client);
    if (!to.has_value() || to->value() >= kMaxNodes || !takes[to->value()]) return;
    const std::optional<ObjectMove> move = store_.MoveOf(handle, word, store_.MustFind(*to));
    if (!move.has_value()) return;
    batch[count++] = *move;
    batch_bytes += location.length;
  };

  std::atomic<uint64_t>& hand = object_hand_[id.value()];
  const uint64_t begin = hand.load(std::memory_order_relaxed);
  uint32_t span = static_cast<uint32_t>(begin >> 32);
  uint32_t place = static_cast<uint32_t>(begin);
  const uint32_t limit = node.arena->span_limit();
  // A span is a look, too: most may be empty.
  for (uint64_t looks = 0; span < limit && looks < kLooksPerStep; ++looks) {
    std::array<Handle, ObjectMover::kBatch> handles;
    const size_t listed = node.ListObjects(span, &place, std::span(handles).first(handles.size() - count));
    const bool span_ended = listed < handles.size() - count;
    for (size_t i = 0; i < listed; ++i) consider(handles[i], span);
    looks += listed;
    if (span_ended) {
      ++span;
      place = 0;
    }
    if (count == batch.size() || result.moved_bytes + batch_bytes >= allowed) move_batch();
    if (result.moved_bytes >= allowed) break;
  }
  if (count != 0) move_batch();
  result.round_ended = span >= limit;
  hand.store(result.round_ended ? 0 : uint64_t{span} << 32 | place, std::memory_order_relaxed);
  Spent(result.moved_bytes);
  MutexLock lock(mu_);
  stats_.followed_objects += moved_objects;
  for (size_t i = 0; i < moved_bytes.size(); ++i) stats_.followed_bytes[i] += moved_bytes[i];
  return result;
}

uint64_t Compactor::BalanceStep(Bytes budget) { return Relieve(false, budget, &CompactorStats::balanced); }
uint64_t Compactor::DemoteStep(Bytes budget) { return Relieve(true, budget, &CompactorStats::demoted); }

}  // namespace zp
