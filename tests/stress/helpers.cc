#include "tests/stress/helpers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

namespace uzswap::stress {
namespace {

constexpr uint32_t kAreaPages = 24;
constexpr size_t kAreaBytes = static_cast<size_t>(kAreaPages) * kUnitBytes;
constexpr size_t kProtectedBytes = 32u << 20;
constexpr uint32_t kUnitBase = kMaxUnits - kAreaPages;  // numbers that no unit of the Memory has

}  // namespace

Helpers::Helpers(Reporter& reporter) : reporter_(reporter) {
  std::byte* area = MapPages(kAreaPages);
  std::byte* large = MapPages(kProtectedBytes / kUnitBytes);
  memset(large, 1, kProtectedBytes);
  threads_.emplace_back([this, area] { Unmapper(area); });
  threads_.emplace_back([this, area] { Taker(area); });
  threads_.emplace_back([this, large] { Protector(large); });
}

Helpers::~Helpers() {
  stop_ = true;
  threads_[1].join();  // the taker first: it needs the unmapper to finish its turn
  turn_ = kToUnmap;
  turn_.notify_all();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void Helpers::Unmapper(std::byte* area) {
  for (;;) {
    turn_.wait(kTaken);
    if (stop_) return;
    munmap(area, kAreaBytes);
    turn_ = kTaken;
    turn_.notify_all();
  }
}

void Helpers::Taker(std::byte* area) {
  Random random(7);
  for (uint32_t generation = 1; !stop_; generation = generation % (kMaxGeneration - 128) + 32) {
    turn_ = kToUnmap;
    turn_.notify_all();
    for (;;) {
      void* got = mmap(area, kAreaBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
      if (got == area) break;
      if (got != MAP_FAILED) munmap(got, kAreaBytes);
      if (stop_) return;
      // Somebody else's mapping may have taken the place: then the pair rests, the others go on.
      if (turn_ == kTaken && msync(area, kAreaBytes, MS_ASYNC) == 0) return;
    }
    // Written and read many times, so that it is evicted and comes back meanwhile.
    for (uint32_t round = 0; round < 20; ++round) {
      for (uint32_t page = 0; page < kAreaPages; ++page) {
        auto* word = reinterpret_cast<volatile uint64_t*>(area + static_cast<size_t>(page) * kUnitBytes) + 8;
        const uint64_t wanted = round == 0 ? 0 : ExpectedWord(kUnitBase + page, generation + round - 1, 8);
        const uint64_t found = *word;
        if (found != wanted) {
          const Origin origin = OriginOf(found);
          char text[256];
          snprintf(text, sizeof text,
                   "wrong word at %p, page %u of the hand-over area: expected 0x%llx (generation %u), found "
                   "0x%llx (unit %u, "
                   "generation %u), round %u",
                   static_cast<volatile void*>(word), page, static_cast<unsigned long long>(wanted),
                   round == 0 ? 0 : generation + round - 1, static_cast<unsigned long long>(found),
                   origin.unit, origin.generation, round);
          reporter_.Failure(text);
        }
        *word = ExpectedWord(kUnitBase + page, generation + round, 8);
      }
      if (round % 5 == 3) usleep(random.Below(1000));
    }
    while (turn_ != kTaken) turn_.wait(kToUnmap);
    handovers_.fetch_add(1, std::memory_order_relaxed);
  }
}

void Helpers::Protector(std::byte* area) {
  while (!stop_) {
    mprotect(area, kProtectedBytes, PROT_READ);
    mprotect(area, kProtectedBytes, PROT_READ | PROT_WRITE);
    usleep(5000);  // a rate, not a wait for anything
  }
}

}  // namespace uzswap::stress
