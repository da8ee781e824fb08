#include "daemon/reclaim/reclaimer.h"

#include <pthread.h>

#include <algorithm>
#include <memory>

namespace uzswap {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kBatchesPerVisit = 16;
constexpr uint64_t kWatchPermille = 100;  // this near the limit, growth is watched
constexpr milliseconds kNearPause{4};  // 80 % of the limit and more: a program can allocate 10 MB meanwhile
constexpr milliseconds kLongestPause{
    200};  // a program that grows past its limit is pushed back within a second
constexpr milliseconds kRefusedPause{10};  // over the limit, but nothing can go at the moment
constexpr std::chrono::seconds kReclaimTime{60};
constexpr uint64_t kNoProgressTries = 200;  // of ReclaimNow: two seconds

}  // namespace

void Reclaimer::Start(unsigned threads) {
  for (unsigned i = 0; i < std::max(1u, threads); ++i) threads_.emplace_back([this] { Run(); });
}

void Reclaimer::Stop() {
  {
    zp::MutexLock lock(mu_);
    stopping_ = true;
  }
  wake_.NotifyAll();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
}

void Reclaimer::Poke() {
  {
    zp::MutexLock lock(mu_);
    ++pokes_;
  }
  wake_.NotifyAll();
}

Reclaimer::Need Reclaimer::Visit(Client& client, FaultScratch& scratch) {
  const uint64_t limit = client.limit_bytes().load(std::memory_order_relaxed);
  if (limit == 0 || !client.has_agent()) return Need::kFar;
  const uint64_t target = limit - limit * kSlackPermille / 1000;
  uint64_t resident = client.SampleResident();
  if (resident > limit - limit * kWatchPermille / 1000) client.RegisterGrowth();
  if (resident <= limit) {
    return resident > limit / 10 * 8 ? Need::kNear : Need::kFar;
  }
  for (uint64_t batch = 0; batch < kBatchesPerVisit && resident > target; ++batch) {
    auto evicted = client.Evict((resident - target + zp::kPageBytes - 1) / zp::kPageBytes, scratch);
    if (!evicted.ok() || *evicted == 0) {
      client.SetEvictable(false);  // waiting would not help
      return Need::kNear;
    }
    resident = client.SampleResident();
    client.SetEvictable(true);
  }
  return resident > target ? Need::kWork : Need::kNear;
}

void Reclaimer::Run() {
  (void)pthread_setname_np(pthread_self(), "uzswap-reclaim");
  auto scratch = std::make_unique<FaultScratch>();
  milliseconds pause = kNearPause;
  uint64_t seen_pokes = 0;
  for (;;) {
    Need need = Need::kFar;
    uint64_t resident_before = 0;
    uint64_t resident_after = 0;
    bool limited = false;
    bool refused = false;
    for (const auto& client : registry_.All()) {
      const uint64_t limit = client->limit_bytes().load(std::memory_order_relaxed);
      limited = limited || limit != 0;
      resident_before += Read(client->stats().resident_bytes);
      const Need its = Visit(*client, *scratch);
      need = std::min(need, its);
      resident_after += Read(client->stats().resident_bytes);
      if (limit != 0 && its == Need::kNear && Read(client->stats().resident_bytes) > limit) refused = true;
    }
    const bool moved = resident_before != resident_after;
    zp::MutexLock lock(mu_);
    if (stopping_) return;
    if (need == Need::kWork) continue;
    if (pokes_ != seen_pokes) {
      seen_pokes = pokes_;
      pause = kNearPause;
      continue;
    }
    if (!limited) {
      while (!stopping_ && pokes_ == seen_pokes) wake_.Wait(mu_);
      continue;
    }
    if (refused) {
      pause = kRefusedPause;
    } else if (moved) {
      pause = kNearPause;
    } else {
      pause = std::min(pause * 2, kLongestPause);
    }
    (void)wake_.WaitFor(mu_, pause);
    if (stopping_) return;
  }
}

uint64_t Reclaimer::ReclaimNow(Client& client, uint64_t bytes, FaultScratch& scratch) {
  // No more than is there, and not for ever: a program that takes its pages back at once never ends this.
  const uint64_t wanted = (std::min(bytes, client.SampleResident()) + zp::kPageBytes - 1) / zp::kPageBytes;
  const auto deadline = std::chrono::steady_clock::now() + kReclaimTime;
  uint64_t done = 0;
  uint64_t idle = 0;
  while (done < wanted && idle < kNoProgressTries && std::chrono::steady_clock::now() < deadline) {
    auto evicted = client.Evict(wanted - done, scratch);
    if (!evicted.ok() && evicted.error().code == zp::Errc::kGone) break;
    if (evicted.ok() && *evicted > 0) {
      done += *evicted;
      idle = 0;
      continue;
    }
    // Nothing at once may mean that mappings are too young still.
    ++idle;
    if (idle > 20 && evicted.ok()) break;
    std::this_thread::sleep_for(kRefusedPause);
  }
  return done;
}

}  // namespace uzswap
