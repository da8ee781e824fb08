// Grows, and says what it does: for tests of the resident limit.
//
// Usage: grower burst|steps|rate MEGABYTES [MEGABYTES_PER_SECOND]
//
// It touches MEGABYTES of fresh memory (half of each page does not compress), prints "grown", waits for a
// line on stdin, reads everything back, prints "right" or what was wrong, waits for another line, and ends.
// burst: as fast as it can; steps: 32 MiB at a time with 300 ms between; rate: that many MiB a second.
#include <sys/mman.h>
#include <time.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr size_t kPage = 4096, kMib = 1u << 20;

uint64_t Word(size_t page, size_t index) {
  uint64_t x = (page << 9 | index) * 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  return index % 2 == 0 ? x ^ x >> 27 : page;
}

void SleepUntil(double seconds) {
  timespec at{static_cast<time_t>(seconds),
              static_cast<long>((seconds - static_cast<double>(static_cast<time_t>(seconds))) * 1e9)};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr);
}

double Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

void Say(const char* text) {
  puts(text);
  fflush(stdout);
}

void AwaitLine() {
  for (int c; (c = getchar()) != EOF && c != '\n';) {
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const size_t bytes = strtoull(argv[2], nullptr, 10) * kMib;
  const double rate = argc > 3 ? strtod(argv[3], nullptr) : 0;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    perror("grower");
    return 1;
  }
  auto* words = static_cast<uint64_t*>(memory);
  const double begin = Now();
  for (size_t page = 0; page < bytes / kPage; ++page) {
    for (size_t i = 0; i < kPage / 8; ++i) words[page * (kPage / 8) + i] = Word(page, i);
    const size_t done = (page + 1) * kPage;
    if (done % kMib == 0 && strcmp(argv[1], "rate") == 0)
      SleepUntil(begin + static_cast<double>(done) / static_cast<double>(kMib) / rate);
    if (done % (32 * kMib) == 0 && strcmp(argv[1], "steps") == 0) SleepUntil(Now() + 0.3);
  }
  printf("grown %.3f s\n", Now() - begin);
  fflush(stdout);
  AwaitLine();
  for (size_t page = 0; page < bytes / kPage; ++page) {
    for (size_t i = 0; i < kPage / 8; ++i) {
      const uint64_t found = words[page * (kPage / 8) + i];
      if (found != Word(page, i)) {
        printf("wrong word at %p: page %zu, word %zu, found 0x%llx\n",
               static_cast<void*>(&words[page * (kPage / 8) + i]), page, i,
               static_cast<unsigned long long>(found));
        return 1;
      }
    }
  }
  Say("right");
  AwaitLine();
  return 0;
}
