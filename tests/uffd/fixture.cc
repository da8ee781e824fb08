#include "tests/uffd/fixture.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <set>

#include "daemon/sys/packet_socket.h"

namespace uzswap::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

constexpr seconds kPatience{20};

// This process's descriptors of rings.
std::set<int> RingDescriptors() {
  std::set<int> found;
  DIR* dir = opendir("/proc/self/fd");
  while (const dirent* entry = dir == nullptr ? nullptr : readdir(dir)) {
    char target[256] = {};
    const ssize_t length = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);
    if (length > 0 && strstr(target, "uzswap-ring") != nullptr) found.insert(atoi(entry->d_name));
  }
  if (dir != nullptr) closedir(dir);
  return found;
}

}  // namespace

void FakeHost::AdoptChild(std::shared_ptr<Client> child) {
  std::lock_guard<std::mutex> lock(mu_);
  children_.push_back(std::move(child));
}

std::vector<std::shared_ptr<Client>> FakeHost::children() {
  std::lock_guard<std::mutex> lock(mu_);
  return children_;
}

World::World(zp::Bytes capacity) {
  char name[] = "/tmp/uzswap-uffd-XXXXXX";
  directory_ = mkdtemp(name);
  socket_path_ = directory_ + "/socket";
  zp::PageStore::Options options;
  options.capacity = capacity;
  auto store = zp::PageStore::Create(options);
  auto arena = zp::IndexArena::Create();
  auto table = ClientTable::Create();
  auto listener = ListenAt(socket_path_);
  ZP_CHECK(store.ok() && arena.ok() && table.ok() && listener.ok(), "the test's daemon cannot be made");
  store_ = std::move(*store);
  index_arena_ = std::move(*arena);
  table_ = std::make_unique<ClientTable>(std::move(*table));
  listener_ = std::move(*listener);
}

World::~World() {
  (void)unlink(socket_path_.c_str());
  (void)rmdir(directory_.c_str());
}

Attached World::Attach(uint64_t limit_bytes, std::vector<std::string> variables) {
  Attached attached;
  const std::set<int> before = RingDescriptors();
  attached.app = std::make_unique<App>(socket_path_, limit_bytes, std::move(variables));
  pollfd waiting{listener_.get(), POLLIN, 0};
  ZP_CHECK(poll(&waiting, 1, 10'000) == 1, "the agent does not connect");
  zp::UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  ucred peer{};
  socklen_t length = sizeof(peer);
  (void)getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length);
  const int fd = socket.get();
  auto connection = std::make_unique<Connection>(std::make_shared<const zp::UniqueFd>(std::move(socket)),
                                                 PeerCredentials{peer.pid, peer.uid}, services());
  for (;;) {
    pollfd readable{fd, POLLIN, 0};
    ZP_CHECK(poll(&readable, 1, 10'000) == 1, "the agent does not go on with the handshake");
    const Connection::Next next = connection->OnReadable();
    if (next == Connection::Next::kAttached) break;
    if (next == Connection::Next::kClose) fprintf(stderr, "refused: %s\n", connection->reason().c_str());
    ZP_CHECK(next == Connection::Next::kWait, "the handshake failed");
  }
  attached.client = connection->client();
  connections_.push_back(std::move(connection));
  attached.app->WaitReady();
  for (const int ring_fd : RingDescriptors()) {
    if (!before.contains(ring_fd)) attached.ring_fd = ring_fd;
  }
  auto mapping = zp::Mapping::Shared(attached.ring_fd, 0, wire::kRingBytes);
  ZP_CHECK(mapping.ok(), "the ring cannot be mapped");
  attached.ring_mapping = std::move(*mapping);
  attached.ring = reinterpret_cast<wire::Ring*>(attached.ring_mapping.data());
  return attached;
}

Pump::~Pump() {
  stop_ = true;
  thread_.join();
}

void Pump::Add(std::shared_ptr<Client> client) {
  std::lock_guard<std::mutex> lock(mu_);
  clients_.push_back(std::move(client));
}

void Pump::Run() {
  struct Deferred {
    std::shared_ptr<Client> client;
    Fault fault;
  };
  auto scratch = std::make_unique<FaultScratch>();
  std::vector<Deferred> deferred;
  while (!stop_) {
    std::vector<std::shared_ptr<Client>> clients;
    {
      std::lock_guard<std::mutex> lock(mu_);
      clients = clients_;
    }
    for (auto& child : world_.host().children()) clients.push_back(child);
    std::vector<pollfd> waiting;
    for (const auto& client : clients) waiting.push_back({client->uffd().fd(), POLLIN, 0});
    (void)poll(waiting.data(), waiting.size(), deferred.empty() ? 5 : 0);
    std::vector<Deferred> work;
    work.swap(deferred);
    for (const auto& client : clients) {
      std::vector<Fault> faults;
      client->ReadMessages(&faults);
      for (const Fault& fault : faults) work.push_back({client, fault});
    }
    for (const Deferred& item : work) {
      const ResolveOutcome outcome = item.client->Resolve(item.fault, *scratch);
      if (outcome == ResolveOutcome::kRequeue || outcome == ResolveOutcome::kThrottled)
        deferred.push_back(item);
    }
  }
}

PausedEvict::PausedEvict(Client& client, std::string point) : point_(std::move(point)) {
  Pauses::Get().Arm(point_);
  done_ = std::async(std::launch::async, [this, &client] {
    auto scratch = std::make_unique<FaultScratch>();
    for (;;) {
      const auto evicted = client.Evict(wire::kRingSlots, *scratch);
      if (reached_) return evicted.ok() ? *evicted : 0;
      std::this_thread::sleep_for(milliseconds(2));
    }
  });
  Pauses::Get().WaitReached(point_);
  reached_ = true;
}

uint64_t PausedEvict::Finish() {
  if (finished_) return pages_;
  finished_ = true;
  Pauses::Get().Release(point_);
  pages_ = done_.get();
  return pages_;
}

uint64_t UffdTest::Unsay(Attached& attached, std::span<const uint32_t> words) {
  uint64_t count = 0;
  for (uint32_t n = 0; n < wire::kRingSlots; ++n) {
    if (attached.ring->result[n] != wire::kCopied) continue;
    attached.ring->result[n] = words[count++ % words.size()];
    memset(attached.ring->data[n], 0, sizeof(attached.ring->data[n]));
  }
  return count;
}

bool UffdTest::WaitReadable(const Client& client, int timeout_ms) {
  pollfd waiting{client.uffd().fd(), POLLIN, 0};
  return poll(&waiting, 1, timeout_ms) == 1;
}

Fault UffdTest::ReadFault(Client& client, uint64_t address, std::vector<Fault>* others) {
  const auto deadline = Clock::now() + kPatience;
  while (Clock::now() < deadline) {
    (void)WaitReadable(client, 100);
    std::vector<Fault> faults;
    client.ReadMessages(&faults);
    Fault found;
    for (const Fault& fault : faults) {
      if (fault.address == address) {
        found = fault;
      } else if (others != nullptr) {
        others->push_back(fault);
      }
    }
    if (found.address != 0) return found;
  }
  ADD_FAILURE() << "no fault at " << std::hex << address;
  return {};
}

std::vector<Fault> UffdTest::ReadEvent(Client& client, const Counter& counter) {
  const uint64_t before = Read(counter);
  std::vector<Fault> faults;
  const auto deadline = Clock::now() + kPatience;
  while (Read(counter) == before) {
    if (Clock::now() > deadline) {
      ADD_FAILURE() << "no such event";
      break;
    }
    (void)WaitReadable(client, 100);
    client.ReadMessages(&faults);
  }
  return faults;
}

ResolveOutcome UffdTest::ResolveFully(Client& client, const Fault& fault) {
  const auto deadline = Clock::now() + kPatience;
  for (;;) {
    const ResolveOutcome outcome = client.Resolve(fault, *scratch_);
    if (outcome != ResolveOutcome::kRequeue) return outcome;
    if (Clock::now() > deadline) {
      ADD_FAILURE() << "a fault is requeued for ever";
      return outcome;
    }
    std::vector<Fault> faults;
    client.ReadMessages(&faults);
    for (const Fault& other : faults) (void)client.Resolve(other, *scratch_);
    std::this_thread::yield();
  }
}

bool UffdTest::EvictUntil(Client& client, const std::function<bool()>& done) {
  auto scratch = std::make_unique<FaultScratch>();
  const auto deadline = Clock::now() + kPatience;
  while (!done()) {
    if (Clock::now() > deadline) return false;
    const auto evicted = client.Evict(wire::kRingSlots, *scratch);
    // Mappings must have been there for a while before they are touched: there is no event to wait for.
    if (!evicted.ok() || *evicted == 0) std::this_thread::sleep_for(milliseconds(2));
  }
  return true;
}

bool UffdTest::EvictAll(Attached& attached, uint64_t address, uint64_t pages) {
  return EvictUntil(*attached.client, [&] {
    for (uint64_t i = 0; i < pages; ++i) {
      if (attached.app->IsPresent(address + i * kPage)) return false;
    }
    return true;
  });
}

std::future<uint64_t> UffdTest::EvictAsync(Client& client, std::function<bool()> until) {
  return std::async(std::launch::async, [&client, until = std::move(until)] {
    auto scratch = std::make_unique<FaultScratch>();
    const auto deadline = Clock::now() + kPatience;
    for (;;) {
      const auto evicted = client.Evict(wire::kRingSlots, *scratch);
      const uint64_t pages = evicted.ok() ? *evicted : 0;
      if (until ? until() : pages > 0) return pages;
      if (Clock::now() > deadline) return pages;
      std::this_thread::sleep_for(milliseconds(2));
    }
  });
}

std::future<std::vector<Fault>> UffdTest::ReadAsync(Client& client) {
  return std::async(std::launch::async, [&client] {
    std::vector<Fault> faults;
    client.ReadMessages(&faults);
    return faults;
  });
}

}  // namespace uzswap::test
