// Keeps each client within its resident limit.
//
// Idea: a few threads look at every limited client in turn. Over the limit: evict batches until it is
// kSlackPermille below. Below: look again when the client could have grown to a tenth over its limit, sooner
// where its resident set moves; 200 ms at most. (An idle client of 60 MiB at its limit is looked at 70 times
// a second, some 0.1 % of a CPU; one of 1 GiB five times.)
//
// Threads: Start, Stop, Poke and the requests from any thread. Two reclaimers never evict from one client at
// once (Client::Evict answers kBusy).
#pragma once

#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "daemon/client/client_registry.h"

namespace uzswap {

class Reclaimer {
 public:
  static constexpr uint64_t kSlackPermille = 16;  // reclaim stops this far below the limit

  explicit Reclaimer(ClientRegistry& registry) : registry_(registry) {}
  ~Reclaimer() { Stop(); }
  void Start(unsigned threads);
  void Stop();
  // Something changed (a client came, a limit was set): look now.
  void Poke();

  // Evicts `bytes` now, or what can go; returns the pages evicted. Blocks for as long as that takes.
  static uint64_t ReclaimNow(Client& client, uint64_t bytes, FaultScratch& scratch);

 private:
  struct Visited {
    std::chrono::microseconds look_again = std::chrono::microseconds::max();  // 0: more to do now
  };

  void Run();
  Visited Visit(Client& client, FaultScratch& scratch);

  ClientRegistry& registry_;
  std::vector<std::thread> threads_;
  zp::Mutex mu_;
  zp::CondVar wake_;
  bool stopping_ ZP_GUARDED_BY(mu_) = false;
  uint64_t pokes_ ZP_GUARDED_BY(mu_) = 0;
};

}  // namespace uzswap
