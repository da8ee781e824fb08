// The daemon's main loop: the control socket, signals, and the coming and going of clients.
//
// Idea: one thread owns connections and decides about clients' lives; faults and reclaim run on threads of
// their own and only tell it (OnGone). Requests that take long (reclaim, restore) run on one thread for them,
// so that attaching never waits for them.
//
// Threads: Run on the caller's thread; OnGone and AdoptChild from any.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "daemon/client/client_registry.h"
#include "daemon/control/connection.h"
#include "daemon/control/estate.h"
#include "daemon/fault/fault_workers.h"
#include "daemon/keeper/keeper.h"
#include "daemon/options.h"
#include "daemon/pool/pool_keeper.h"
#include "daemon/reclaim/reclaimer.h"
#include "libzpool/index/offset_index.h"
#include "libzpool/store/page_store.h"

namespace uzswap {

class Server : public ClientHost {
 public:
  // All three must outlive the server.
  Server(const Options& options, Estate& estate, Keeper& keeper);
  ~Server() override;

  // Starts the keeper, the threads, and the clients that the estate brought, and listens. On failure nothing
  // is left behind, or, for a successor, nothing has been touched that the next one needs.
  zp::Status Start();
  // Serves until SIGTERM or SIGINT (then brings every page home first) or, embedded, until it is not needed.
  // Returns the exit status.
  int Run();

  void AdoptChild(std::shared_ptr<Client> child) override;
  void WantReclaim() override { reclaimer_.Poke(); }
  void OnGone(uint32_t id);

 private:
  using Clock = std::chrono::steady_clock;

  // A client whose agent's socket closed: ending, or (rarely) alive without its agent.
  struct Lingering {
    uint32_t id = 0;
    Clock::time_point since;
    bool warned = false;
  };

  zp::Status StartKeeper();
  // fn(name, descriptor) for each file of the state that is no client's.
  template <typename Fn>
  void ForEachFile(Fn&& fn) const;
  // With the service manager.
  static void KeepClient(const Client& client);
  static void ForgetClient(uint32_t id);
  // Lets the recovered clients go on.
  void ResumeHeirs();
  // A client that is ready: its socket is watched for its end, its faults are answered.
  void Serve(const std::shared_ptr<Client>& client);
  void Accept();
  void OnConnection(int fd, uint32_t events);
  void OnAttached(const Connection& connection);
  void CloseConnection(int fd);
  void Answer(const Connection& connection);
  void RemoveClient(uint32_t id);
  void Housekeeping();
  int HousekeepingDelay() const;
  size_t HalfOpen(uid_t uid) const;
  PoolKeeper::Homes Homes() const;
  bool BringAllHome();
  void RunOperations();

  const Options options_;
  Estate& estate_;
  Keeper& keeper_;
  zp::PageStore& store_;
  zp::IndexArena& index_arena_;
  ClientServices services_;
  ClientRegistry registry_;
  Reclaimer reclaimer_{registry_};
  PoolKeeper pool_keeper_{store_, [this] { return Homes(); }};
  std::unique_ptr<FaultWorkers> workers_;

  zp::UniqueFd listener_, epoll_, signals_, wake_;
  std::map<int, std::unique_ptr<Connection>> connections_;
  std::map<int, uint32_t> attached_;  // socket → client
  std::vector<Lingering> lingering_;
  bool parent_gone_ = false;

  zp::Mutex gone_mu_;
  std::vector<uint32_t> gone_ ZP_GUARDED_BY(gone_mu_);

  zp::Mutex operations_mu_;
  zp::CondVar operations_wake_;
  std::deque<std::function<void()>> operations_ ZP_GUARDED_BY(operations_mu_);
  bool operations_stop_ ZP_GUARDED_BY(operations_mu_) = false;
  std::thread operations_thread_;
};

}  // namespace uzswap
