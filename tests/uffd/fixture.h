// The daemon's side of a test: the real store, Connection and Client, driven by hand.
//
// Idea: World is a daemon without threads. Attach starts an application and takes it through the handshake;
// then the test decides when messages are read, faults resolved and pages evicted. Pump is a thread that does
// the first two where the order does not matter.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "daemon/client/client.h"
#include "daemon/control/connection.h"
#include "daemon/wire/ring.h"
#include "tests/uffd/agent_tracer.h"
#include "tests/uffd/app.h"
#include "tests/uffd/pauses.h"

namespace uzswap::test {

class FakeHost : public ClientHost {
 public:
  void AdoptChild(std::shared_ptr<Client> child) override;
  void WantReclaim() override {}
  std::vector<std::shared_ptr<Client>> children();

 private:
  std::mutex mu_;
  std::vector<std::shared_ptr<Client>> children_;
};

// An attached application.
struct Attached {
  std::unique_ptr<App> app;
  std::shared_ptr<Client> client;
  wire::Ring* ring = nullptr;  // as the application sees it: what a hostile one could write
  int ring_fd = -1;
  zp::Mapping ring_mapping;
};

class World {
 public:
  explicit World(zp::Bytes capacity = zp::MiB(64));
  ~World();

  // `variables`: more of its environment, "NAME=value".
  Attached Attach(uint64_t limit_bytes = 0, std::vector<std::string> variables = {});
  // The sockets, and what their connections hold.
  void CloseConnections() { connections_.clear(); }

  zp::PageStore& store() { return *store_; }
  FakeHost& host() { return host_; }
  ClientServices services() { return {*store_, *index_arena_, *table_, host_}; }

 private:
  std::string directory_, socket_path_;
  std::unique_ptr<zp::PageStore> store_;
  std::unique_ptr<zp::IndexArena> index_arena_;
  std::unique_ptr<ClientTable> table_;
  FakeHost host_;
  zp::UniqueFd listener_;
  std::vector<std::unique_ptr<Connection>> connections_;
};

// Reads and resolves for clients, like the daemon's fault workers, until it is destroyed.
class Pump {
 public:
  explicit Pump(World& world) : world_(world), thread_([this] { Run(); }) {}
  Pump(World& world, std::shared_ptr<Client> client) : Pump(world) { Add(std::move(client)); }
  ~Pump();
  void Add(std::shared_ptr<Client> client);

 private:
  void Run();
  World& world_;
  std::mutex mu_;
  std::vector<std::shared_ptr<Client>> clients_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// An eviction that stands at a pause point.
class PausedEvict {
 public:
  // Evicts until a call gets to `point`, and returns when it stands there.
  PausedEvict(Client& client, std::string point);
  ~PausedEvict() { Finish(); }
  // Lets it go on; the pages that this call evicted.
  uint64_t Finish();
  bool IsDone() { return done_.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }

 private:
  const std::string point_;
  std::atomic<bool> reached_{false};
  bool finished_ = false;
  uint64_t pages_ = 0;
  std::future<uint64_t> done_;
};

class UffdTest : public ::testing::Test {
 protected:
  UffdTest() : scratch_(std::make_unique<FaultScratch>()) {}
  ~UffdTest() override { Pauses::Get().ReleaseAll(); }

  static bool WaitReadable(const Client& client, int timeout_ms = 10'000);
  // Reads until a fault at `address` is among what was read; others are kept in `others`.
  Fault ReadFault(Client& client, uint64_t address, std::vector<Fault>* others = nullptr);
  // Reads until `counter` grows: an event was read and applied. Faults read meanwhile are returned.
  std::vector<Fault> ReadEvent(Client& client, const Counter& counter);
  // Resolves until it is done, reading messages in between.
  ResolveOutcome ResolveFully(Client& client, const Fault& fault);
  // Evicts until no page of the range is present. Nothing else may be needed for that. False: 20 s passed.
  bool EvictAll(Attached& attached, uint64_t address, uint64_t pages);
  // Evicts until the scanner finds pages, and returns what Evict said then; `others`: stop when `done` is
  // true.
  bool EvictUntil(Client& client, const std::function<bool()>& done);
  // Evict, on a thread; the future is ready when it returned.
  std::future<uint64_t> EvictAsync(Client& client, std::function<bool()> until = nullptr);
  std::future<std::vector<Fault>> ReadAsync(Client& client);

  // Takes back what the agent said of the batch's pages that it moved: the words instead, in turn, and no
  // content in the ring. How many there were.
  static uint64_t Unsay(Attached& attached, std::span<const uint32_t> words);

  std::unique_ptr<FaultScratch> scratch_;
};

inline int64_t I(uint64_t value) { return static_cast<int64_t>(value); }

// Fails the test if `future` is not ready in time; for what must not block.
template <typename T>
bool Soon(std::future<T>& future, int timeout_ms = 10'000) {
  return future.wait_for(std::chrono::milliseconds(timeout_ms)) == std::future_status::ready;
}

}  // namespace uzswap::test
