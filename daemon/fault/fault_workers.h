// The threads that answer page faults.
//
// Idea: what a fault costs is mostly the wake-up of its handler, and that is cheap only on the CPU of the
// faulting thread (fact 10). So there is one worker per CPU, pinned to it, each with an epoll set of its own,
// and a client's userfaultfd is armed only in the sets of the CPUs on which its faulting threads were lately
// seen.
//
// A fault that must wait (an undelivered event, a page on its way) is kept by address in its worker's queue
// and tried again kRequeueDelay later: never spun on, never waited for with a lock held (H4, H16).
//
// Threads: Watch, Unwatch from any thread; Stop once. Locks: Watched::mu is below all of Client's.
// Cost: a thread and an epoll set per CPU; nothing runs while nobody faults.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include "daemon/client/client.h"
#include "libzpool/base/fd.h"
#include "libzpool/base/mutex.h"

namespace uzswap {

class FaultWorkers {
 public:
  // `on_gone(id)` is called by a worker that finds a client's memory gone.
  static zp::Result<std::unique_ptr<FaultWorkers>> Start(std::function<void(uint32_t)> on_gone);
  ~FaultWorkers();

  void Watch(std::shared_ptr<Client> client);
  void Unwatch(uint32_t id);
  size_t count() const { return workers_.size(); }

 private:
  static constexpr uint64_t kSampleEveryNs = 2'000'000;  // of one thread's CPU: a read of /proc costs 5-10 µs
  static constexpr uint64_t kSeenForNs = 10'000'000;     // how long a CPU stays armed after the last sighting
  static constexpr uint64_t kRequeueDelayNs = 50'000;
  static constexpr uint64_t kThrottleDelayNs = 1'000'000;
  static constexpr size_t kTidSlots = 64;

  // A client and where its faults are taken.
  struct Watched {
    std::shared_ptr<Client> client;
    std::array<std::atomic<uint64_t>, kTidSlots> sampled_ns{};
    zp::Mutex mu;
    std::vector<bool> armed ZP_GUARDED_BY(mu);  // by worker
    std::vector<uint64_t> seen_ns ZP_GUARDED_BY(mu);
    bool removed ZP_GUARDED_BY(mu) = false;
  };
  struct Deferred {
    std::shared_ptr<Watched> watched;
    Fault fault;
    uint64_t due_ns = 0;
  };
  struct Worker {
    int cpu = 0;
    zp::UniqueFd epoll;
    std::thread thread;
  };

  explicit FaultWorkers(std::function<void(uint32_t)> on_gone) : on_gone_(std::move(on_gone)) {}
  zp::Status Init();
  void Run(size_t index);
  using Queue =
      std::map<std::pair<uint32_t, uint64_t>, Deferred>;  // by client and address: a duplicate adds nothing

  void Handle(const std::shared_ptr<Watched>& watched, const Fault& fault, FaultScratch& scratch,
              Queue* deferred);
  void Place(Watched& watched, int tid);
  void Arm(Watched& watched, size_t worker, bool on) ZP_REQUIRES(watched.mu);
  std::shared_ptr<Watched> Find(uint64_t id) const;

  std::function<void(uint32_t)> on_gone_;
  zp::UniqueFd stop_event_;
  std::atomic<bool> stopping_{false};
  std::vector<std::unique_ptr<Worker>> workers_;
  mutable zp::SharedMutex mu_;
  std::unordered_map<uint64_t, std::shared_ptr<Watched>> watched_ ZP_GUARDED_BY(mu_);
};

}  // namespace uzswap
