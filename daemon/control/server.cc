#include "daemon/control/server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "daemon/control/describe.h"
#include "daemon/control/requests.h"
#include "daemon/keeper/fd_store.h"
#include "daemon/sys/clock.h"
#include "daemon/sys/machine_memory.h"
#include "libzpool/base/pause_point.h"

namespace uzswap {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kHandshakeTime{10};
constexpr size_t kMaxConnections = 4096;
constexpr size_t kMaxHalfOpen = 128;         // of one user
constexpr size_t kDescriptorsPerClient = 8;  // userfaultfd, ring, socket, five files of /proc
constexpr milliseconds kTick{50};            // while something is about to end
constexpr seconds kChildProbe{1};            // forked children tell nobody of their end
constexpr seconds kLingerTime{5};

double SecondsSince(uint64_t then_ns) { return static_cast<double>(MonotonicNs() - then_ns) / 1e9; }

size_t DescriptorLimit() {
  rlimit limit{};
  return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 1024;
}

zp::Status Add(int epoll, int fd, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) return zp::ErrnoError("epoll_ctl");
  return zp::OkStatus();
}

}  // namespace

Server::Server(const Options& options, Estate& estate, Keeper& keeper)
    : options_(options),
      estate_(estate),
      keeper_(keeper),
      store_(*estate.store),
      index_arena_(*estate.index_arena),
      services_{store_, index_arena_, *estate.table, *this} {}

Server::~Server() {
  {
    zp::MutexLock lock(operations_mu_);
    operations_stop_ = true;
  }
  operations_wake_.NotifyAll();
  pool_keeper_.Stop();
  if (operations_thread_.joinable()) operations_thread_.join();
  reclaimer_.Stop();
  workers_.reset();
  if (estate_.table->header().armed.load() != 0) return;
  if (listener_.valid()) (void)unlink(options_.socket_path.c_str());
  ForEachFile([](const std::string& name, int) { FdStore::Remove(name); });
}

zp::Status Server::Start() {
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGTERM);
  sigaddset(&mask, SIGINT);
  (void)pthread_sigmask(SIG_BLOCK, &mask, nullptr);  // before any thread is made: all inherit it
  signals_.reset(signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!epoll_.valid() || !wake_.valid() || !signals_.valid())
    return zp::ErrnoError("creating the main loop's descriptors");
  listener_ = estate_.listener.valid() ? std::move(estate_.listener) : ZP_TRY(ListenAt(options_.socket_path));
  estate_.table->header().listener_fd = listener_.get();
  ZP_TRY(Add(epoll_.get(), listener_.get(), EPOLLIN));
  ZP_TRY(Add(epoll_.get(), wake_.get(), EPOLLIN));
  ZP_TRY(Add(epoll_.get(), signals_.get(), EPOLLIN));
  if (options_.embedded && !Add(epoll_.get(), STDIN_FILENO, EPOLLIN | EPOLLRDHUP).ok()) parent_gone_ = true;
  ForEachFile([](const std::string& name, int fd) { FdStore::Push(name, fd); });
  // Before any message is read: one may bring a descriptor that nobody else has.
  ZP_TRY(StartKeeper());
  ZP_PAUSE_POINT("keeper.started");
  estate_.table->header().armed.store(1);
  workers_ = ZP_TRY(FaultWorkers::Start([this](uint32_t id) { OnGone(id); }));
  const auto cpus = static_cast<unsigned>(workers_->count());
  reclaimer_.Start(std::min(4u, (cpus + 1) / 2));
  pool_keeper_.Start();
  operations_thread_ = std::thread([this] { RunOperations(); });
  ResumeHeirs();
  return zp::OkStatus();
}

// By the names that Estate::Renumber looks for.
template <typename Fn>
void Server::ForEachFile(Fn&& fn) const {
  const TableHeader& header = estate_.table->header();
  fn("clients", estate_.table->fd());
  fn("handles", header.handles_fd);
  fn("index", header.index_fd);
  fn("listener", header.listener_fd);
  for (size_t i = 0; i < std::size(header.frames_fd); ++i) {
    if (header.frames_fd[i] >= 0) fn(fmt::format("frames-{}", i), header.frames_fd[i]);
  }
}

void Server::ForgetClient(uint32_t id) {
  for (const char* what : {"uffd", "ring", "socket"}) FdStore::Remove(fmt::format("c{}-{}", id, what));
}

void Server::KeepClient(const Client& client) {
  FdStore::Push(fmt::format("c{}-uffd", client.id()), client.uffd().fd());
  if (!client.has_agent()) return;
  FdStore::Push(fmt::format("c{}-ring", client.id()), client.ring_fd());
  FdStore::Push(fmt::format("c{}-socket", client.id()), client.socket_fd());
}

zp::Status Server::StartKeeper() {
  ZP_TRY(keeper_.Start());
  return Add(epoll_.get(), keeper_.fd(), EPOLLIN);
}

void Server::ResumeHeirs() {
  // All are recovered before the first goes on: who was forked twice must not be taken for new.
  std::vector<std::shared_ptr<Client>> clients;
  for (Estate::Heir& heir : estate_.heirs) {
    auto client = Client::Recover(services_, heir.record, estate_.inherited, std::move(heir.index),
                                  std::move(heir.unfinished));
    if (client.ok()) {
      clients.push_back(std::move(*client));
      continue;
    }
    spdlog::error("client {}: pid {} cannot be taken over ({}); what was stored of it is lost",
                  heir.record->id, heir.record->pid, client.error().op);
    ForgetClient(heir.record->id);
    services_.table.Free(heir.record);
  }
  estate_.heirs.clear();
  auto scratch = std::make_unique<FaultScratch>();
  for (const auto& client : clients) {
    client->Resume(estate_.inherited, *scratch);
    Serve(client);
  }
  if (!clients.empty()) ZP_PAUSE_POINT("heirs.resumed");
  estate_.inherited.CloseRest();
}

void Server::Serve(const std::shared_ptr<Client>& client) {
  KeepClient(*client);
  if (client->has_agent()) {
    const int fd = client->socket_fd();
    epoll_event event{};
    event.events = EPOLLRDHUP;
    event.data.fd = fd;
    // In the set already where it has just attached.
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) != 0)
      (void)epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
    attached_[fd] = client->id();
  }
  workers_->Watch(client);
  registry_.Add(client);
  reclaimer_.Poke();
}

int Server::Run() {
  for (;;) {
    if (parent_gone_ && registry_.size() == 0 && connections_.empty()) return 0;
    epoll_event events[32];
    const int ready = epoll_wait(epoll_.get(), events, 32, HousekeepingDelay());
    if (ready < 0 && errno != EINTR) {
      spdlog::error("epoll_wait: {}", strerror(errno));
      return 1;
    }
    for (int i = 0; i < ready; ++i) {
      const int fd = events[i].data.fd;
      if (fd == listener_.get()) {
        Accept();
      } else if (fd == keeper_.fd()) {
        spdlog::warn("the keeper ended; starting another");
        if (const auto started = StartKeeper(); !started.ok()) {
          spdlog::error("{}: {}; a daemon that dies now has no successor", started.error().op,
                        strerror(started.error().sys_errno));
          std::this_thread::sleep_for(kTick);
        }
      } else if (fd == wake_.get()) {
        uint64_t count = 0;
        (void)!read(wake_.get(), &count, sizeof(count));
      } else if (fd == signals_.get()) {
        signalfd_siginfo info{};
        (void)!read(signals_.get(), &info, sizeof(info));
        spdlog::info("signal {}: bringing every page home before stopping", info.ssi_signo);
        FdStore::Stopping();
        if (BringAllHome()) return 0;
      } else if (fd == STDIN_FILENO && options_.embedded) {
        char ignored[64];
        if ((events[i].events & (EPOLLHUP | EPOLLERR)) != 0 ||
            read(STDIN_FILENO, ignored, sizeof(ignored)) <= 0) {
          parent_gone_ = true;
          (void)epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, STDIN_FILENO, nullptr);
        }
      } else {
        OnConnection(fd, events[i].events);
      }
    }
    Housekeeping();
  }
}

void Server::Accept() {
  for (;;) {
    zp::UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) {
      if (errno == EMFILE || errno == ENFILE) {
        spdlog::error("no descriptor left for a new client; raise LimitNOFILE");
        std::this_thread::sleep_for(kTick);
      }
      return;
    }
    ucred credentials{};
    socklen_t length = sizeof(credentials);
    if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) continue;
    // Closed at once: one user must not take the places of all.
    if (connections_.size() >= kMaxConnections || HalfOpen(credentials.uid) >= kMaxHalfOpen) continue;
    if (registry_.size() * kDescriptorsPerClient > DescriptorLimit() / 10 * 8) {
      spdlog::error("no descriptors left for a new client; raise LimitNOFILE");
      continue;
    }
    const int key = fd.get();
    if (!Add(epoll_.get(), key, EPOLLIN | EPOLLRDHUP).ok()) continue;
    connections_[key] =
        std::make_unique<Connection>(std::make_shared<const zp::UniqueFd>(std::move(fd)),
                                     PeerCredentials{credentials.pid, credentials.uid}, services_);
  }
}

size_t Server::HalfOpen(uid_t uid) const {
  return static_cast<size_t>(
      std::count_if(connections_.begin(), connections_.end(),
                    [uid](const auto& entry) { return entry.second->peer().uid == uid; }));
}

void Server::OnConnection(int fd, uint32_t events) {
  const auto attached = attached_.find(fd);
  if (attached != attached_.end()) {
    // Reports are taken by whoever evicts; here only the end of the socket counts.
    if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) == 0) return;
    (void)epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    lingering_.push_back({attached->second, Clock::now(), false});
    attached_.erase(attached);
    return;
  }
  const auto it = connections_.find(fd);
  if (it == connections_.end()) return;
  Connection& connection = *it->second;
  switch (connection.OnReadable()) {
    case Connection::Next::kWait:
      return;
    case Connection::Next::kAttached:
      OnAttached(connection);
      return;
    case Connection::Next::kRequest:
      Answer(connection);
      break;
    case Connection::Next::kClose:
      spdlog::debug("connection of pid {} closed: {}", connection.peer().pid, connection.reason());
      break;
  }
  CloseConnection(fd);
}

void Server::OnAttached(const Connection& connection) {
  const int fd = connection.socket()->get();
  const auto& client = connection.client();
  Serve(client);
  spdlog::info("client {}: pid {} ({}) attached, limit {}", client->id(), client->identity().pid,
               client->identity().comm, client->limit_bytes());
  connections_.erase(fd);  // the socket lives on in the client's channel
}

void Server::CloseConnection(int fd) {
  (void)epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  connections_.erase(fd);
}

void Server::AdoptChild(std::shared_ptr<Client> child) {
  KeepClient(*child);
  workers_->Watch(child);  // first: what can be found can be removed
  registry_.Add(std::move(child));
  const uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof(one));  // begin to probe for its end
}

void Server::OnGone(uint32_t id) {
  {
    zp::MutexLock lock(gone_mu_);
    gone_.push_back(id);
  }
  const uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof(one));
}

void Server::RemoveClient(uint32_t id) {
  workers_->Unwatch(id);
  const auto client = registry_.Remove(id);
  if (client == nullptr) return;
  ForgetClient(id);
  for (auto it = attached_.begin(); it != attached_.end(); ++it) {
    if (it->second != id) continue;
    (void)epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, it->first, nullptr);
    attached_.erase(it);
    break;
  }
  registry_.RememberGone(
      DescribeClient(*client, "gone").dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  spdlog::info("client {}: pid {} ({}) is gone", id, client->identity().pid, client->identity().comm);
}

// Milliseconds until the next round of housekeeping; -1: nothing needs one.
int Server::HousekeepingDelay() const {
  const auto now = Clock::now();
  const auto soon = [&](const Lingering& entry) { return now - entry.since <= kLingerTime; };
  if (!connections_.empty() || std::any_of(lingering_.begin(), lingering_.end(), soon))
    return static_cast<int>(kTick.count());
  bool probe = !lingering_.empty();
  for (const auto& client : registry_.All()) probe = probe || !client->has_agent();
  return probe ? static_cast<int>(milliseconds(kChildProbe).count()) : -1;
}

void Server::Housekeeping() {
  std::vector<uint32_t> gone;
  {
    zp::MutexLock lock(gone_mu_);
    gone.swap(gone_);
  }
  const auto now = Clock::now();
  std::erase_if(lingering_, [&](Lingering& entry) {
    const auto client = registry_.Find(entry.id);
    if (client == nullptr) return true;
    if (client->Gone()) {
      gone.push_back(entry.id);
      return true;
    }
    if (!entry.warned && now - entry.since > kLingerTime) {
      entry.warned = true;
      spdlog::warn(
          "client {}: pid {} lives without its agent; its pages are served, none are evicted any more",
          entry.id, client->identity().pid);
    }
    return false;
  });
  for (const auto& client : registry_.All()) {
    if (!client->has_agent() && client->Gone()) gone.push_back(client->id());
  }
  for (const uint32_t id : gone) RemoveClient(id);
  std::vector<int> expired;
  for (const auto& [fd, connection] : connections_) {
    if (now - connection->opened_at() > kHandshakeTime) expired.push_back(fd);
  }
  for (const int fd : expired) CloseConnection(fd);
}

// On a machine with several nodes.
PoolKeeper::Homes Server::Homes() const {
  PoolKeeper::Homes homes;
  for (const auto& client : registry_.All()) {
    if (const auto home = client->FindHome()) homes[client->id()] = *home;
  }
  return homes;
}

// Everything goes home first. A page that cannot is a reason to stay: nobody else has it.
bool Server::BringAllHome() {
  uint64_t stored = 0;
  for (const auto& client : registry_.All()) {
    const auto counts = client->stored_counts();
    stored += (counts.handles + counts.same_filled) * zp::kPageBytes;
  }
  const uint64_t missing = MissingToBringHome(stored, store_.pool_bytes(), AvailableBytes());
  if (missing != 0) {
    spdlog::error(
        "{} MiB are stored, and the machine has {} MiB too few to bring them home: the daemon stays. Stop "
        "some "
        "programs, or raise their limits one by one, and stop it then",
        stored >> 20, (missing >> 20) + 1);
    return false;
  }
  spdlog::info("bringing {} MiB of {} clients home", stored >> 20, registry_.size());
  auto scratch = std::make_unique<FaultScratch>();
  std::set<uint32_t> failed;
  // A program may fork while it is brought home, and the child holds all that its parent held: go on until a
  // look finds nobody new. A client whose ranges are unregistered cannot have another child that needs us.
  for (bool again = true; again;) {
    again = false;
    for (const auto& client : registry_.All()) {
      if (failed.contains(client->id())) continue;
      again = true;
      const auto result = client->Restore(true, *scratch);
      spdlog::info("client {}: pid {}: {} pages brought home", client->id(), client->identity().pid,
                   result.pages);
      if (result.failed > 0 && !client->Gone()) {
        failed.insert(client->id());
        spdlog::error(
            "client {}: pid {}: {} pages could not be brought home; the daemon stays, stop that program "
            "first",
            client->id(), client->identity().pid, result.failed);
        continue;
      }
      client->Dismiss();
      RemoveClient(client->id());
    }
  }
  return failed.empty();
}

void Server::Answer(const Connection& connection) {
  const TableHeader& header = estate_.table->header();
  RequestContext context{registry_,
                         store_,
                         index_arena_,
                         pool_keeper_,
                         *estate_.table,
                         options_,
                         SecondsSince(header.started_ns),
                         {header.restarts, header.restarts == 0 ? 0 : SecondsSince(header.restarted_ns)},
                         connection.peer().uid};
  Reply reply = HandleRequest(connection.request(), context);
  if (reply.limits_changed) reclaimer_.Poke();
  if (!reply.later) {
    SendReply(connection.socket()->get(), reply);
    return;
  }
  zp::MutexLock lock(operations_mu_);
  operations_.push_back(
      [socket = connection.socket(), work = std::move(reply.later), hand_over = reply.hand_over] {
        const nlohmann::json answer = work();
        const bool failed = answer.contains("error");
        SendReply(socket->get(), Reply{failed ? EINVAL : 0, answer.dump(), false, nullptr, false});
        if (!hand_over || failed) return;
        spdlog::warn("handing over to another program");
        // As everywhere: nothing needs to be put in order for a successor.
        (void)kill(getpid(), SIGKILL);
      });
  operations_wake_.NotifyOne();
}

void Server::RunOperations() {
  for (;;) {
    std::function<void()> work;
    {
      zp::MutexLock lock(operations_mu_);
      while (operations_.empty() && !operations_stop_) operations_wake_.Wait(operations_mu_);
      if (operations_stop_) return;
      work = std::move(operations_.front());
      operations_.pop_front();
    }
    work();
  }
}

}  // namespace uzswap
