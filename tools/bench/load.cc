#include "tools/bench/load.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "tools/bench/error.h"
#include "tools/bench/page_source.h"
#include "tools/bench/random.h"

namespace uzswap::bench {
namespace {

using Clock = std::chrono::steady_clock;

// Rarely enough that the clock costs nothing, often enough that a run ends in time.
constexpr int kOperationsPerLook = 256;

template <typename Operation>
LoadRate Repeat(std::chrono::milliseconds duration, Operation operation) {
  const std::clock_t cpu_start = std::clock();
  const auto start = Clock::now();
  uint64_t operations = 0;
  auto now = start;
  while (now - start < duration) {
    for (int i = 0; i < kOperationsPerLook; ++i) operation();
    operations += kOperationsPerLook;
    now = Clock::now();
  }
  const double cpu_seconds = static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC;
  const auto count = static_cast<double>(operations);
  return {count / std::chrono::duration<double>(now - start).count(),
          cpu_seconds > 0 ? count / cpu_seconds : 0};
}

LoadRate RunMalloc(std::chrono::milliseconds duration) {
  constexpr size_t kBlocks = 32'768;
  std::vector<void*> blocks(kBlocks, nullptr);
  Random random(7);
  const LoadRate rate = Repeat(duration, [&] {
    void*& block = blocks[random.Below(kBlocks)];
    std::free(block);
    // 16 B << 0…12, each power half as frequent as the one below.
    const int power = std::min(12, __builtin_ctzll(random.Next() | (uint64_t{1} << 12)));
    const size_t bytes = (size_t{16} << power) + random.Below(size_t{16} << power);
    block = std::malloc(bytes);
    if (block == nullptr) throw BenchError("malloc: no memory");
    std::memset(block, static_cast<int>(power), bytes);
  });
  for (void* block : blocks) std::free(block);
  return rate;
}

LoadRate RunMmap(std::chrono::milliseconds duration) {
  Random random(7);
  return Repeat(duration, [&] {
    const size_t bytes = (size_t{32} << 10) << random.Below(5);
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) ThrowErrno("mmap");
    // Few: what mapping and unmapping cost must not drown in page faults.
    for (size_t at = 0; at < bytes; at += bytes / 4) static_cast<volatile char*>(memory)[at] = 1;
    ::munmap(memory, bytes);
  });
}

}  // namespace

LoadRate RunLoad(const std::string& kind, std::chrono::milliseconds duration) {
  if (kind == "malloc") return RunMalloc(duration);
  if (kind == "mmap") return RunMmap(duration);
  throw BenchError("unknown load " + kind);
}

}  // namespace uzswap::bench
