// The policy of the pool's background work: when it is made denser, and which node gives to which.
//
// Idea: one thread takes small steps of zp::Compactor while they gain something, at a bounded rate; and looks
// again after a time that doubles while the pool does not change, so an idle machine is left alone.
// Where there are several nodes it also lets objects follow their clients: rounds over all of what is stored,
// one when a client has come to another node, and otherwise less and less often while they move nothing.
// Evacuations are asked for, and done on the caller's thread.
//
// Threads: any. Failure: a node that cannot be emptied is an outcome that says how much is left.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <unordered_map>

#include "libzpool/base/mutex.h"
#include "libzpool/compact/compactor.h"
#include "libzpool/store/page_store.h"

namespace uzswap {

class PoolKeeper {
 public:
  // What compaction and balancing copy in a second at most: a few per cent of one CPU.
  static constexpr uint64_t kBytesPerSecond = uint64_t{64} << 20;

  // On which node each client is at home, by its number; those that are nowhere at home are left out.
  using Homes = std::unordered_map<uint32_t, zp::NodeId>;
  // `find_homes` is called by the thread at each look, on machines with several nodes; null: nothing follows.
  explicit PoolKeeper(zp::PageStore& store, std::function<Homes()> find_homes = nullptr);
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
  // Makes nodes dense. Whether something was gained.
  bool Pack();
  // Moves between nodes what they have too much of. Whether something was.
  bool Level();
  // A step of the round that lets objects follow their clients, or the beginning of one if it is time.
  enum class Followed { kNothing, kLooked, kMoved };
  Followed Follow();
  // Whether some client has a home that it had not at the last look.
  bool SomebodyMoved();

  zp::PageStore& store_;
  zp::Compactor paced_;  // the thread's
  zp::Compactor asked_;  // as fast as it goes: somebody waits
  // The thread's: the round that is under way, or when the next begins.
  const std::function<Homes()> find_homes_;
  Homes homes_;
  struct Round {
    bool running = false;
    size_t node = 0;  // which is looked through, by its place in the topology
    uint64_t moved_bytes = 0;
    std::chrono::milliseconds pause{1000};  // before the next, unless somebody moves
    std::chrono::steady_clock::time_point next{};
    std::chrono::steady_clock::time_point next_look{};  // at where clients are
  };
  Round round_;
  std::atomic<bool> stop_{false};
  zp::Mutex mu_;
  zp::CondVar wake_;
  std::thread thread_;
};

}  // namespace uzswap
