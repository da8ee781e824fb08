#include "daemon/reclaim/reclaimer.h"

#include <pthread.h>

#include <algorithm>
#include <memory>

namespace uzswap {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr uint64_t kBatchesPerVisit = 16;
constexpr uint64_t kWatchPermille = 100;  // this near the limit, growth is watched
constexpr microseconds kShortestPause{500};
constexpr milliseconds kQuietPause{4};      // at least, while nothing moves
constexpr milliseconds kLongestPause{200};  // a program over its limit is pushed back within a second
constexpr milliseconds kRefusedPause{10};   // over the limit, but nothing can go at the moment
// How fast a resident set may grow, bytes per microsecond: one that moves, by four threads that fill fresh
// memory; one that did not move lately, by the allocator of a program that starts to work.
constexpr uint64_t kMovingGrowth = 2000;
constexpr uint64_t kQuietGrowth = 500;
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

Reclaimer::Visited Reclaimer::Visit(Client& client, FaultScratch& scratch) {
  const uint64_t limit = client.limit_bytes();
  if (limit == 0 || !client.has_agent()) return {};
  const uint64_t before = Read(client.stats().resident_bytes);
  const uint64_t target = limit - limit * kSlackPermille / 1000;
  uint64_t resident = client.SampleResident();
  // Who stands still has no mapping that grows unseen.
  if (resident != before && resident > limit - limit * kWatchPermille / 1000) client.RegisterGrowth();
  // When it could be a tenth over the limit.
  const auto look_again = [&] {
    const uint64_t room = limit + limit / 10 > resident ? limit + limit / 10 - resident : 0;
    if (resident != before) return microseconds(room / kMovingGrowth);
    return std::max<microseconds>(microseconds(room / kQuietGrowth), kQuietPause);
  };
  if (resident <= limit) return {look_again()};
  for (uint64_t batch = 0; batch < kBatchesPerVisit && resident > target; ++batch) {
    auto evicted = client.Evict((resident - target + zp::kPageBytes - 1) / zp::kPageBytes, scratch);
    if (!evicted.ok() || *evicted == 0) {
      client.SetEvictable(false);  // waiting would not help
      return {kRefusedPause};
    }
    client.SetEvictable(true);
    client.RegisterGrowth();  // a mapping that came meanwhile grows unseen, and unthrottled
    resident = client.SampleResident();
  }
  return {resident > target ? microseconds(0) : look_again()};
}

void Reclaimer::Run() {
  (void)pthread_setname_np(pthread_self(), "uzswap-reclaim");
  auto scratch = std::make_unique<FaultScratch>();
  uint64_t seen_pokes = 0;
  for (;;) {
    microseconds pause = kLongestPause;
    bool limited = false;
    for (const auto& client : registry_.All()) {
      limited = limited || client->limit_bytes() != 0;
      pause = std::min(pause, Visit(*client, *scratch).look_again);
    }
    zp::MutexLock lock(mu_);
    if (stopping_) return;
    if (pause.count() == 0) continue;
    if (pokes_ != seen_pokes) {
      seen_pokes = pokes_;
      continue;
    }
    if (limited) {
      (void)wake_.WaitFor(mu_, std::max(pause, kShortestPause));
    } else {
      while (!stopping_ && pokes_ == seen_pokes) wake_.Wait(mu_);
    }
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
