// Work that an attached but never reclaimed program must do at native speed.
//
// Usage: churner malloc|mmap SECONDS: prints operations per second.
//   malloc   allocates, touches and frees blocks of 16 B to 256 KiB, some 64 MiB live
//   mmap     maps 64 KiB to 1 MiB, touches every page, unmaps
#include <sys/mman.h>
#include <time.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

double Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

uint64_t g_state = 88172645463325252ull;
uint64_t Random() {
  g_state ^= g_state << 13;
  g_state ^= g_state >> 7;
  return g_state ^= g_state << 17;
}

void ChurnMalloc(std::vector<void*>& live) {
  void*& slot = live[Random() % live.size()];
  free(slot);
  const size_t bytes = Random() % 64 == 0 ? Random() % (256 << 10) : 16 + Random() % 4000;
  slot = malloc(bytes);
  if (slot != nullptr) memset(slot, static_cast<int>(bytes), bytes);
}

void ChurnMmap() {
  const size_t bytes = (1 + Random() % 16) * 65536;
  auto* memory =
      static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) return;
  for (size_t at = 0; at < bytes; at += 4096) memory[at] = 1;
  munmap(memory, bytes);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const bool use_malloc = strcmp(argv[1], "malloc") == 0;
  const double seconds = strtod(argv[2], nullptr);
  std::vector<void*> live(16000);
  const double begin = Now();
  uint64_t done = 0;
  while (Now() - begin < seconds) {
    for (int i = 0; i < 50; ++i) {
      if (use_malloc) {
        ChurnMalloc(live);
      } else {
        ChurnMmap();
      }
    }
    done += 50;
  }
  printf("%.1f\n", static_cast<double>(done) / (Now() - begin));
  return 0;
}
