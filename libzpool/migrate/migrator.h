// Moves spans of frames between nodes, and within one.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <span>

#include "libzpool/base/epochs.h"
#include "libzpool/frame/frame_arena.h"
#include "libzpool/frame/topology.h"
#include "libzpool/migrate/movable_owner.h"

namespace zp {

enum class MigrateMode : uint8_t {
  kAsync,      // never waits: what is busy or pinned stays
  kSyncLight,  // waits for what ends by itself within microseconds: an object that is being stored or moved
  kSync,       // waits for pins of I/O, too
};

// What came of a request.
struct MigrateStats {
  std::array<uint64_t, kMigrateOutcomes> spans{};  // by MigrateOutcome
  uint64_t objects = 0;
  uint64_t bytes = 0;

  uint64_t of(MigrateOutcome outcome) const { return spans[static_cast<size_t>(outcome)]; }
  void Add(const MigrateStats& other) {
    for (size_t i = 0; i < spans.size(); ++i) spans[i] += other.spans[i];
    objects += other.objects;
    bytes += other.bytes;
  }
};

// Idea: the one core for every owner of frames, of which it knows nothing but four operations. Spans go in
//   batches: targets are reserved for all of a batch before the first is isolated, and readers are waited
//   for once.
// Cost: per batch one Epochs::Synchronize; no memory.
// Threads: Move from any threads at once; a span that another is moving is busy. Register before.
// Locks: none of its own; nothing is held, allocated or slept on while a span is isolated. What has to be
//   waited for is waited for between batches, with the span alone.
// Source: the shape of Linux mm/migrate.c (isolate, migrate, putback; modes; reasons).
class Migrator {
 public:
  static constexpr size_t kBatch = 8;  // spans: 2 MiB at most are held twice
  // How long kSync waits for one span.
  static constexpr std::chrono::milliseconds kSyncPatience{1000};
  static constexpr int kLightTries = 64;

  explicit Migrator(Epochs& epochs) : epochs_(epochs) {}
  Migrator(const Migrator&) = delete;
  Migrator& operator=(const Migrator&) = delete;

  // `owner` is who moves what is tagged `kind` in `arena`. Both must outlive the migrator.
  void Register(FrameArena& arena, FrameOwner kind, MovableOwner& owner);

  // Moves the spans from their node's arena to that of `to` (which may be the same). What `abort` interrupts
  // is put back. Every span is counted by one outcome.
  MigrateStats Move(std::span<const uint32_t> spans, NodeId from, NodeId to, MigrateMode mode,
                    const std::atomic<bool>* abort = nullptr);

 private:
  struct Node {
    FrameArena* arena = nullptr;
    std::array<MovableOwner*, kFrameOwners> owners{};
  };
  struct Item {
    uint32_t span = 0;
    MovableOwner* owner = nullptr;
    MovableOwner* target_owner = nullptr;
    uint32_t target = 0;
    SpanShape shape;
    MigrateOutcome outcome = MigrateOutcome::kGone;
    bool reserved = false;
    bool isolated = false;
  };

  void Reserve(Item& item, const Node& from, const Node& to) const;
  void MoveBatch(std::span<Item> batch, const Node& from, const Node& to, const std::atomic<bool>* abort,
                 MigrateStats* stats);

  Epochs& epochs_;
  std::array<Node, kMaxNodes> nodes_;
};

}  // namespace zp
