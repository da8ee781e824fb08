// What an owner of frames does so that they can move.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "libzpool/base/result.h"

namespace zp {

// How a migration of one span ended.
enum class MigrateOutcome : uint8_t {
  kMoved,     // all that was in it is elsewhere (or was freed meanwhile), and its frames are given back
  kBusy,      // something in it is just being stored or moved by another; try again
  kPinned,    // I/O holds some of its bytes
  kGone,      // nothing is there any more
  kNoTarget,  // no room could be reserved
  kAborted,   // the caller changed his mind: everything is where it was
};
inline constexpr int kMigrateOutcomes = 6;

// What a target must offer.
struct SpanShape {
  uint64_t frames = 0;      // those that hold something, a mask
  uint32_t size_class = 0;  // as the owner counts
};

// One span moved.
struct MigratedSpan {
  MigrateOutcome outcome = MigrateOutcome::kMoved;
  uint32_t objects = 0;
  uint64_t bytes = 0;
};

// Idea: who owns spans of frames registers itself once per node with the Migrator, which knows nothing of
//   what is in them. A span moves to another of the same owner kind, each object to the same place in it, in
//   four steps: Reserve at the target, Isolate, Migrate, and, when no reader can be in either, Putback of
//   both. Reserve is the only one that allocates or sleeps, and comes before Isolate.
// Threads: any methods at any time; a span that was reserved or isolated is its caller's until Putback.
class MovableOwner {
 public:
  virtual ~MovableOwner() = default;

  // What a target for `span` needs at this moment. Nothing if there is nothing in it that could move.
  virtual std::optional<SpanShape> ShapeOf(uint32_t span) = 0;

  // An empty isolated span whose frames in `shape` are present. kNoMemory: nothing has changed.
  virtual Result<uint32_t> Reserve(const SpanShape& shape) = 0;

  // Takes the span out of circulation: nothing is stored in it from now on, while loads and frees go on.
  // kMoved: done; kBusy (also when it outgrew `shape`), kPinned, kGone: nothing has changed.
  virtual MigrateOutcome Isolate(uint32_t span, const SpanShape& shape) = 0;

  // Moves what is in the isolated `span` to `target_span` of `target`, an owner of the same kind. Each object
  // is copied, then published; the old bytes stay. `abort` is looked at between objects: everything published
  // is taken back. Never fails otherwise, allocates nothing and does not sleep.
  virtual MigratedSpan Migrate(uint32_t span, MovableOwner& target, uint32_t target_span,
                               const std::atomic<bool>* abort) = 0;

  // Ends a reservation or an isolation: what moved away is forgotten, an empty span gives its frames back,
  // any other is in circulation again. For a span that was isolated and not migrated this restores what was.
  virtual void Putback(uint32_t span) = 0;
};

}  // namespace zp
