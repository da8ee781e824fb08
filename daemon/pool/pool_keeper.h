// The policy of the pool's background work: when it is made denser, and which node gives to which.
//
// Idea: one thread takes small steps of zp::Compactor while they gain something, at a bounded rate; and looks
// again after a time that doubles while the pool does not change, so an idle machine is left alone.
// Evacuations are asked for, and done on the caller's thread.
//
// Threads: any. Failure: a node that cannot be emptied is an outcome that says how much is left.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "libzpool/base/mutex.h"
#include "libzpool/compact/compactor.h"
#include "libzpool/store/page_store.h"

namespace uzswap {

class PoolKeeper {
 public:
  // What compaction and balancing copy in a second at most: a few per cent of one CPU.
  static constexpr uint64_t kBytesPerSecond = uint64_t{64} << 20;

  explicit PoolKeeper(zp::PageStore& store);
  ~PoolKeeper() { Stop(); }
  void Start();
  // Ends the thread, and an evacuation that is under way.
  void Stop();

  // Lets the node take nothing new, until Open. At least one other must take what it refuses.
  void Close(zp::NodeId node);
  // Moves everything off a node that was closed. Stops where no step makes progress, and when it was opened
  // meanwhile. Blocks.
  struct Drained {
    uint64_t moved_bytes = 0;
    uint64_t left_bytes = 0;  // of frames
    uint64_t pinned_spans = 0;
    uint64_t without_target = 0;
  };
  Drained Drain(zp::NodeId node);
  // Lets the node take objects again.
  void Open(zp::NodeId node);
  // Evens out what nodes above their watermark have, now. The bytes moved.
  uint64_t Balance();

  zp::CompactorStats stats() const { return paced_.stats(); }

 private:
  void Run();
  // Whether something was gained.
  bool Step();

  zp::PageStore& store_;
  zp::Compactor paced_;  // the thread's
  zp::Compactor asked_;  // as fast as it goes: somebody waits
  std::atomic<bool> stop_{false};
  zp::Mutex mu_;
  zp::CondVar wake_;
  std::thread thread_;
};

}  // namespace uzswap
