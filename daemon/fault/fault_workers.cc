#include "daemon/fault/fault_workers.h"

#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "daemon/sys/clock.h"

namespace uzswap {
namespace {

// Measured on 2 CPUs, 8 faulting threads, others computing: twice the faults per second of SCHED_BATCH, which
// waits for the running thread's slice.
constexpr int kNice = -10;
constexpr uint64_t kStopId = 0;  // client numbers begin at 1

std::vector<int> AllowedCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
  }
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

}  // namespace

zp::Result<std::unique_ptr<FaultWorkers>> FaultWorkers::Start(std::function<void(uint32_t)> on_gone) {
  std::unique_ptr<FaultWorkers> workers(new FaultWorkers(std::move(on_gone)));
  ZP_TRY(workers->Init());
  return workers;
}

zp::Status FaultWorkers::Init() {
  stop_event_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop_event_.valid()) return zp::ErrnoError("eventfd");
  for (const int cpu : AllowedCpus()) {
    auto worker = std::make_unique<Worker>();
    worker->cpu = cpu;
    worker->epoll.reset(epoll_create1(EPOLL_CLOEXEC));
    if (!worker->epoll.valid()) return zp::ErrnoError("epoll_create1");
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = kStopId;
    if (epoll_ctl(worker->epoll.get(), EPOLL_CTL_ADD, stop_event_.get(), &event) != 0)
      return zp::ErrnoError("epoll_ctl");
    workers_.push_back(std::move(worker));
  }
  for (size_t i = 0; i < workers_.size(); ++i) workers_[i]->thread = std::thread([this, i] { Run(i); });
  return zp::OkStatus();
}

FaultWorkers::~FaultWorkers() {
  stopping_ = true;
  const uint64_t one = 1;
  if (stop_event_.valid()) (void)!write(stop_event_.get(), &one, sizeof(one));
  for (auto& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.join();
  }
}

void FaultWorkers::Watch(std::shared_ptr<Client> client) {
  auto watched = std::make_shared<Watched>();
  const uint64_t id = client->id();
  watched->client = std::move(client);
  // Until its threads were seen, any CPU may take its faults.
  zp::MutexLock lock(watched->mu);
  watched->armed.resize(workers_.size());
  watched->seen_ns.resize(workers_.size());
  {
    zp::WriterLock registry_lock(mu_);
    watched_[id] = watched;
  }
  for (size_t i = 0; i < workers_.size(); ++i) Arm(*watched, i, true);
}

void FaultWorkers::Unwatch(uint32_t id) {
  std::shared_ptr<Watched> watched;
  {
    zp::WriterLock lock(mu_);
    const auto it = watched_.find(id);
    if (it == watched_.end()) return;
    watched = std::move(it->second);
    watched_.erase(it);
  }
  zp::MutexLock lock(watched->mu);
  watched->removed = true;
  for (size_t i = 0; i < workers_.size(); ++i) Arm(*watched, i, false);
}

std::shared_ptr<FaultWorkers::Watched> FaultWorkers::Find(uint64_t id) const {
  zp::ReaderLock lock(mu_);
  const auto it = watched_.find(id);
  return it == watched_.end() ? nullptr : it->second;
}

void FaultWorkers::Arm(Watched& watched, size_t worker, bool on) {
  if (watched.armed[worker] == on) return;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = watched.client->id();
  if (epoll_ctl(workers_[worker]->epoll.get(), on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL,
                watched.client->uffd().fd(), &event) == 0) {
    watched.armed[worker] = on;
  }
}

// Looks where the faulting thread runs, and arms that CPU's worker alone among those not seen lately.
void FaultWorkers::Place(Watched& watched, int tid) {
  if (workers_.size() == 1 || tid <= 0) return;
  const uint64_t now = MonotonicNs();
  auto& sampled = watched.sampled_ns[static_cast<size_t>(tid) % kTidSlots];
  if (now - sampled.load(std::memory_order_relaxed) < kSampleEveryNs) return;
  sampled.store(now, std::memory_order_relaxed);
  const int cpu = ReadTaskCpu(tid, tid);
  const auto here = std::find_if(workers_.begin(), workers_.end(),
                                 [cpu](const auto& worker) { return worker->cpu == cpu; });
  if (here == workers_.end()) return;
  zp::MutexLock lock(watched.mu);
  if (watched.removed) return;
  const auto seen = static_cast<size_t>(here - workers_.begin());
  watched.seen_ns[seen] = now;
  Arm(watched, seen, true);
  if (!watched.armed[seen]) return;  // somebody has to listen
  for (size_t i = 0; i < workers_.size(); ++i) {
    if (i != seen && now - watched.seen_ns[i] > kSeenForNs) Arm(watched, i, false);
  }
}

void FaultWorkers::Handle(const std::shared_ptr<Watched>& watched, const Fault& fault, FaultScratch& scratch,
                          Queue* deferred) {
  const auto defer = [&](uint64_t delay_ns) {
    deferred->try_emplace({watched->client->id(), fault.address},
                          Deferred{watched, fault, MonotonicNs() + delay_ns});
  };
  switch (watched->client->Resolve(fault, scratch)) {
    case ResolveOutcome::kResolved:
      Place(*watched, fault.tid);
      break;
    case ResolveOutcome::kRequeue:
      defer(kRequeueDelayNs);
      break;
    case ResolveOutcome::kThrottled:
      defer(kThrottleDelayNs);
      break;
    case ResolveOutcome::kGone:
      on_gone_(watched->client->id());
      break;
  }
}

void FaultWorkers::Run(size_t index) {
  Worker& self = *workers_[index];
  (void)pthread_setname_np(pthread_self(), "uzswap-fault");
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(self.cpu, &set);
  (void)sched_setaffinity(0, sizeof(set), &set);
  // Ahead of who computes on this CPU: the thread that waits for us has given it up. Refused without
  // CAP_SYS_NICE.
  (void)setpriority(PRIO_PROCESS, 0, kNice);

  auto scratch = std::make_unique<FaultScratch>();
  std::vector<Fault> faults;
  Queue deferred;
  std::vector<Deferred> due;
  while (!stopping_.load(std::memory_order_relaxed)) {
    timespec delay{0, 0};
    if (!deferred.empty()) {
      uint64_t earliest = ~uint64_t{0};
      for (const auto& [key, item] : deferred) earliest = std::min(earliest, item.due_ns);
      const uint64_t now = MonotonicNs();
      delay.tv_nsec = earliest > now ? static_cast<long>(earliest - now) : 0;
    }
    epoll_event events[16];
    const int ready =
        epoll_pwait2(self.epoll.get(), events, 16, deferred.empty() ? nullptr : &delay, nullptr);
    for (int i = 0; i < ready; ++i) {
      if (events[i].data.u64 == kStopId) continue;
      const auto watched = Find(events[i].data.u64);
      if (watched == nullptr) continue;
      faults.clear();
      watched->client->ReadMessages(&faults);
      for (const Fault& fault : faults) Handle(watched, fault, *scratch, &deferred);
    }
    if (deferred.empty()) continue;
    const uint64_t now = MonotonicNs();
    due.clear();
    std::erase_if(deferred, [&](auto& entry) {
      if (entry.second.due_ns > now) return false;
      due.push_back(std::move(entry.second));
      return true;
    });
    for (const Deferred& item : due) Handle(item.watched, item.fault, *scratch, &deferred);
    due.clear();  // a client must not live on because it once had to wait
  }
}

}  // namespace uzswap
