// Keeps each client within its resident limit.
//
// Idea: a few threads look at every limited client in turn. Over the limit: evict batches until it is
// kSlackPermille below. Below: look again after a time that grows while nothing changes and shrinks when the
// resident set moves, so an idle machine is left alone.
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
  enum class Need { kWork, kNear, kFar };

  void Run();
  Need Visit(Client& client, FaultScratch& scratch);

  ClientRegistry& registry_;
  std::vector<std::thread> threads_;
  zp::Mutex mu_;
  zp::CondVar wake_;
  bool stopping_ ZP_GUARDED_BY(mu_) = false;
  uint64_t pokes_ ZP_GUARDED_BY(mu_) = 0;
};

}  // namespace uzswap
