#include "tools/bench/cpu_clock.h"

#include <dirent.h>
#include <time.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

namespace uzswap::bench {

uint64_t ProcessCpuNs(pid_t pid) {
  clockid_t clock;
  timespec now{};
  if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &now) != 0) return 0;
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

void WaitUntilIdle(pid_t pid) {
  // 20 ms with less than 0.2 ms of CPU: a daemon's timers may tick, work may not go on.
  constexpr auto kStep = std::chrono::milliseconds(20);
  constexpr uint64_t kQuietNs = 200'000;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  uint64_t before = ProcessCpuNs(pid);
  while (std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(kStep);
    const uint64_t now = ProcessCpuNs(pid);
    if (now - before < kQuietNs) return;
    before = now;
  }
}

KernelSwapThreads::KernelSwapThreads() {
  DIR* proc = ::opendir("/proc");
  if (proc == nullptr) return;
  while (const dirent* entry = ::readdir(proc)) {
    const pid_t pid = std::atoi(entry->d_name);
    if (pid <= 0) continue;
    std::ifstream file("/proc/" + std::string(entry->d_name) + "/comm");
    std::string comm;
    std::getline(file, comm);
    const bool wanted = comm.rfind("kswapd", 0) == 0 || comm.rfind("zram", 0) == 0 ||
                        comm.rfind("zswap", 0) == 0 || comm.rfind("loop", 0) == 0;
    if (!wanted) continue;
    std::ifstream cmdline("/proc/" + std::string(entry->d_name) + "/cmdline");
    if (cmdline.get() == std::ifstream::traits_type::eof()) tids_.push_back(pid);  // kernel threads have none
  }
  ::closedir(proc);
}

uint64_t KernelSwapThreads::CpuNs() const {
  uint64_t sum = 0;
  for (const pid_t tid : tids_) sum += ProcessCpuNs(tid);
  return sum;
}

}  // namespace uzswap::bench
