// Moves single objects from node to node.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "libzpool/base/epochs.h"
#include "libzpool/frame/frame_arena.h"
#include "libzpool/pool/handle.h"
#include "libzpool/pool/handle_table.h"
#include "libzpool/pool/object_pool.h"

namespace zp {

// One object that is to move, and what came of it.
struct ObjectMove {
  enum class Outcome : uint8_t {
    kMoved,
    kBusy,    // freed, moved, pinned or just being stored by another
    kNoRoom,  // in the target
  };

  Handle handle;
  uint64_t word = 0;  // its location as the caller saw it; kBusy if it is another by now
  ObjectPool* from = nullptr;
  FrameArena* from_arena = nullptr;
  ObjectPool* to = nullptr;  // of the same kind, in another arena
  FrameArena* to_arena = nullptr;

  Outcome outcome = Outcome::kBusy;
  uint64_t target = 0;  // the mover's: where it goes
};

// Idea: as the Migrator's, by the same four operations, but an object may go anywhere in its target, so it
//   takes no span along. Room for all of a batch is found first; then the spans that the objects lie in are
//   isolated, which keeps what lies there from being moved or pinned by another; the objects are copied and
//   published; readers are waited for once; the old places become free, the spans go back into circulation.
// Cost: an Allocate and a Free per object, an Epochs::Synchronize per batch; no memory.
// Threads: Move from any threads at once.
// Locks: none of its own; nothing is allocated or slept on while a span is isolated.
class ObjectMover {
 public:
  // Objects that are isolated together, each in a span of its own at worst: 256 KiB at most are held twice.
  static constexpr size_t kBatch = 64;

  ObjectMover(HandleTable& handles, Epochs& epochs) : handles_(handles), epochs_(epochs) {}
  ObjectMover(const ObjectMover&) = delete;
  ObjectMover& operator=(const ObjectMover&) = delete;

  // Tries each and sets its outcome; what did not move is as it was. Objects of one span stand one behind
  // the other. No reference is needed: what is freed meanwhile is freed once. Waits for readers: not for the
  // path of a fault.
  void Move(std::span<ObjectMove> objects);

 private:
  void MoveBatch(std::span<ObjectMove> batch);
  bool Publish(const ObjectMove& object);

  HandleTable& handles_;
  Epochs& epochs_;
};

}  // namespace zp
