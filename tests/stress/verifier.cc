// The verifier: threads that read and write memory whose every word says what it should be. See README.md.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "tests/stress/helpers.h"
#include "tests/stress/worker.h"

namespace uzswap::stress {
namespace {

// Waits for the workers: until `seconds` are over it lets them work, then until they have verified
// everything. Reports a hang when one of them completes nothing for the time that the options give.
class Watch {
 public:
  Watch(World& world, uint32_t workers)
      : world_(world), running_(workers), last_(workers), since_(workers, NowMs()) {}

  void WorkerEnded() {
    std::lock_guard lock(mu_);
    if (--running_ == 0) ended_.notify_all();
  }

  void Wait() {
    const auto end =
        std::chrono::steady_clock::now() + std::chrono::duration<double>(world_.options().seconds);
    std::unique_lock lock(mu_);
    while (running_ != 0) {
      ended_.wait_for(lock, std::chrono::milliseconds(100));
      if (std::chrono::steady_clock::now() >= end) world_.Stop();
      LookForHang();
    }
  }

 private:
  void LookForHang() {
    const uint32_t workers = world_.options().threads;
    for (uint32_t i = 0; i < workers; ++i) {
      const uint64_t now = world_.progress(i).operations;
      if (now != last_[i] || world_.progress(i).op == 0) {
        last_[i] = now;
        since_[i] = NowMs();
      } else if (NowMs() - since_[i] > 1000ull * world_.options().hang_seconds) {
        world_.reporter().DescribeThreads(&world_.progress(0), workers);
        char text[96];
        snprintf(text, sizeof text, "HANG: worker %u has completed nothing for %u s", i,
                 world_.options().hang_seconds);
        world_.reporter().Trouble(text);
      }
    }
  }

  World& world_;
  std::mutex mu_;
  std::condition_variable ended_;
  uint32_t running_;
  std::vector<uint64_t> last_, since_;
};

int Main(int argc, char** argv) {
  const Options options = ParseOptions(argc, argv);
  fprintf(stderr, "%s\n", ReplayLine(options).c_str());
  World world(options);
  world.reporter().InstallFaultHandlers();

  std::vector<std::unique_ptr<Worker>> workers;
  for (uint32_t i = 0; i < options.threads; ++i) workers.push_back(std::make_unique<Worker>(world, i));
  Watch watch(world, options.threads);
  uint64_t handovers = 0;
  {
    std::unique_ptr<Helpers> helpers;
    if (options.helpers) helpers = std::make_unique<Helpers>(world.reporter());
    std::vector<std::thread> threads;
    threads.reserve(workers.size());
    for (auto& worker : workers) {
      threads.emplace_back([&] {
        worker->Run();
        watch.WorkerEnded();
      });
    }
    watch.Wait();
    for (std::thread& thread : threads) thread.join();
    if (helpers) handovers = helpers->handovers();
  }

  printf("verifier: ok: every word right; seed %llu, %.1f s, %u threads, %u MiB",
         static_cast<unsigned long long>(options.seed), static_cast<double>(NowMs()) / 1000, options.threads,
         options.megabytes);
  for (uint32_t op = 1; op < static_cast<uint32_t>(Op::kCount); ++op) {
    uint64_t sum = 0;
    for (const auto& worker : workers) sum += worker->done(static_cast<Op>(op));
    if (sum != 0) printf("; %s %llu", NameOf(static_cast<Op>(op)), static_cast<unsigned long long>(sum));
  }
  uint64_t refused = 0;
  for (const auto& worker : workers) refused += worker->refused_remaps();
  printf("; handed over %llu; mremap refused (several mappings) %llu; direct I/O %s\n",
         static_cast<unsigned long long>(handovers), static_cast<unsigned long long>(refused),
         workers[0]->has_direct() ? "yes" : "no");
  return 0;
}

}  // namespace
}  // namespace uzswap::stress

int main(int argc, char** argv) { return uzswap::stress::Main(argc, argv); }
