#include "libzpool/pool/object_mover.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "libzpool/base/pause_point.h"
#include "libzpool/pool/location.h"

namespace zp {
namespace {

uint32_t SpanOf(const Location& location) { return static_cast<uint32_t>(location.offset / kSpanBytes); }

// The span itself stays where it is, so any frames of it may be occupied.
bool IsolateWhole(ObjectPool& pool, uint32_t span) {
  std::optional<SpanShape> shape = pool.ShapeOf(span);
  if (!shape.has_value()) return false;
  shape->frames = ~uint64_t{0};
  return pool.Isolate(span, *shape) == MigrateOutcome::kMoved;
}

}  // namespace

void ObjectMover::Move(std::span<ObjectMove> objects) {
  for (size_t begin = 0; begin < objects.size(); begin += kBatch)
    MoveBatch(objects.subspan(begin, std::min(kBatch, objects.size() - begin)));
}

// Copies the object to its target and says so in its entry, if that still is what it was.
bool ObjectMover::Publish(const ObjectMove& object) {
  Location location = Location::Decode(object.word);
  if (handles_.Lookup(object.handle) != object.word) return false;
  object.to_arena->Write(object.target, {object.from_arena->At(location.offset), location.length});
  location.node = object.to_arena->node();
  location.offset = object.target;
  // Before it is published: from then on it may be freed, and its slot be another's.
  object.to->Bind(object.target, object.handle);
  ZP_PAUSE_POINT("object.copied");
  return handles_.CompareExchangeLocation(object.handle, object.word, location.Encode());
}

void ObjectMover::MoveBatch(std::span<ObjectMove> batch) {
  struct Isolated {
    ObjectPool* pool;
    uint32_t span;
  };
  std::array<Isolated, kBatch> isolated;
  size_t count = 0;
  for (ObjectMove& object : batch) {
    ZP_CHECK(object.from_arena != object.to_arena, "an object is moved to its own node");
    const Result<uint64_t> target = object.to->Allocate(Location::Decode(object.word).length);
    object.outcome = target.ok() ? ObjectMove::Outcome::kBusy : ObjectMove::Outcome::kNoRoom;
    if (target.ok()) object.target = *target;
  }
  const ObjectPool* pool = nullptr;  // the last that was asked for a span, and its answer
  uint32_t span = 0;
  bool has = false;
  for (ObjectMove& object : batch) {
    if (object.outcome == ObjectMove::Outcome::kNoRoom) continue;
    const uint32_t its = SpanOf(Location::Decode(object.word));
    if (pool != object.from || span != its) {
      pool = object.from;
      span = its;
      has = IsolateWhole(*object.from, its);
      if (has) isolated[count++] = {object.from, its};
    }
    if (has && Publish(object)) object.outcome = ObjectMove::Outcome::kMoved;
  }
  ZP_PAUSE_POINT("object.published");
  // Nobody reads the old places any more.
  if (count != 0) epochs_.Synchronize();
  for (const ObjectMove& object : batch) {
    const Location from = Location::Decode(object.word);
    if (object.outcome == ObjectMove::Outcome::kMoved) object.from->Free(from.offset, from.length);
    if (object.outcome == ObjectMove::Outcome::kBusy) object.to->Free(object.target, from.length);
  }
  for (size_t i = 0; i < count; ++i) isolated[i].pool->Putback(isolated[i].span);
}

}  // namespace zp
