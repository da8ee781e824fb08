// Mappings that come, go, move and grow over evicted memory.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>

#include "tests/e2e/corners/corner.h"

namespace uzswap::corners {
namespace {

constexpr int kReadWrite = PROT_READ | PROT_WRITE;
constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS;
constexpr size_t kPages = 64;

// A mapping exactly there; what was there is replaced only with MAP_FIXED.
std::byte* MapAt(std::byte* at, size_t pages, int flags, int protection = kReadWrite, int fd = -1) {
  void* got = mmap(at, pages * kPage, protection, flags, fd, 0);
  if (got != at)
    Fail("mmap at %p: %s", static_cast<void*>(at), got == MAP_FAILED ? strerror(errno) : "elsewhere");
  return at;
}

void Unmap(const Memory& memory) {
  Expect(munmap(memory.at, memory.bytes()) == 0, "munmap: %s", strerror(errno));
}

int FileOf(const Memory& content) {
  const int fd = memfd_create("corners", MFD_CLOEXEC);
  if (fd < 0 || write(fd, content.at, content.bytes()) != static_cast<ssize_t>(content.bytes()))
    Fail("a file: %s", strerror(errno));
  return fd;
}

void MunmapWhole() {
  const Memory memory = MapEvicted(kPages);
  Unmap(memory);
  Expect(SignalOf([&] { Touch(memory.at); }) == SIGSEGV, "what is unmapped can be read");
  MapAt(memory.at, kPages, kAnonymous | MAP_FIXED_NOREPLACE);
  memory.CheckZero("a new mapping at the same place");
  memory.Fill(2);
  memory.Evict();
  memory.Check(2, "the new mapping, evicted");
}

void MunmapPart() {
  const Memory memory = MapEvicted(kPages);
  const Memory hole = memory.Part(16, 8);
  Unmap(hole);
  Expect(SignalOf([&] { Touch(hole.at); }) == SIGSEGV, "the hole can be read");
  memory.Part(0, 16).Check(1, "below the hole");
  memory.Part(24, kPages - 24).Check(1, "above the hole");
  MapAt(hole.at, hole.pages, kAnonymous | MAP_FIXED_NOREPLACE);
  hole.CheckZero("the hole, mapped again");
  hole.Fill(2);
  memory.Evict();
  memory.Part(0, 16).Check(1, "below the hole, evicted again");
  hole.Check(2, "the hole, evicted");
  // Both ends of what is left.
  memory.Evict();
  Unmap(memory.Part(0, 4));
  Unmap(memory.Part(kPages - 4, 4));
  memory.Part(4, 12).Check(1, "between two ends that are gone");
  hole.Check(2, "between two ends that are gone");
}

void MapOverWithAnonymous() {
  const Memory memory = MapEvicted(kPages);
  const Memory over = memory.Part(20, 10);
  MapAt(over.at, over.pages, kAnonymous | MAP_FIXED);
  over.CheckZero("mapped over");
  memory.Part(0, 20).Check(1, "below it");
  memory.Part(30, kPages - 30).Check(1, "above it");
  // The whole, populated at once, while it is evicted.
  over.Fill(1);
  memory.Evict();
  MapAt(memory.at, kPages, kAnonymous | MAP_FIXED | MAP_POPULATE);
  memory.CheckZero("mapped over and populated");
}

void MapOverWithFile() {
  Memory content = Map(8);
  content.first = 500;
  content.Fill(3);
  const int fd = FileOf(content);
  for (const int kind : {MAP_PRIVATE, MAP_SHARED}) {
    const Memory memory = MapEvicted(kPages);
    const Memory over = content.At(memory.page(20));
    MapAt(over.at, over.pages, kind | MAP_FIXED, kReadWrite, fd);
    over.Check(3, "a file mapped over evicted memory");
    memory.Part(0, 20).Check(1, "below the file");
    memory.Part(28, kPages - 28).Check(1, "above the file");
    memory.Part(0, 20).Evict();
    over.Check(3, "the file, while its neighbours are evicted");
    // A private copy of a file's page is no anonymous mapping: left alone.
    over.Fill(4);
    over.Stays("");
    over.Check(4, "written pages of the file's mapping");
    if (kind == MAP_PRIVATE) content.Check(3, "the file behind a private mapping");
    // And plain memory over the file.
    MapAt(over.at, over.pages, kAnonymous | MAP_FIXED);
    over.CheckZero("memory mapped over the file");
    over.Fill(5);
    over.Evict();
    over.Check(5, "memory that replaced the file");
    memory.Part(0, 20).Check(1, "below, at the end");
    Unmap(memory);
  }
}

// Addresses are taken over by another thread the moment they are free, while everything is evicted all the
// time.
void ReuseByAnotherThread() {
  const Memory memory = Map(kPages);
  std::atomic<int> turn{0};
  constexpr int kRounds = 300;
  memory.Fill(1);
  memory.Evict();
  if (!IsNative()) (void)Ask("limit %d %d", getpid(), 4 << 20);
  const uint64_t evicted = Stat("evicted_pages");
  std::thread other([&] {
    for (int round = 0; round < kRounds; ++round) {
      while (turn.load() != 2 * round + 1) std::this_thread::yield();
      while (mmap(memory.at, memory.bytes(), kReadWrite, kAnonymous | MAP_FIXED_NOREPLACE, -1, 0) !=
             memory.at) {
      }
      memory.CheckZero("taken over");
      memory.Fill(static_cast<uint64_t>(round) + 2);
      turn.store(2 * round + 2);
    }
  });
  for (int round = 0; round < kRounds; ++round) {
    memory.Check(static_cast<uint64_t>(round) + 1, "before it is given up");
    if (round % 50 == 0 && !IsNative()) (void)Ask("evict %d %zu", getpid(), kPages);
    turn.store(2 * round + 1);
    Unmap(memory);
    while (turn.load() != 2 * round + 2) std::this_thread::yield();
  }
  other.join();
  memory.Check(kRounds + 1, "at the end");
  Expect(IsNative() || Stat("evicted_pages") > evicted, "nothing was evicted meanwhile");
}

void RemapGrow() {
  // In place: nothing is behind it.
  const Memory memory = Map(kPages);
  Unmap(memory.Part(kPages / 2, kPages / 2));
  const Memory half = memory.Part(0, kPages / 2);
  half.Fill(1);
  half.Evict();
  Expect(mremap(half.at, half.bytes(), memory.bytes(), 0) == half.at, "mremap in place: %s", strerror(errno));
  half.Check(1, "grown in place");
  memory.Part(kPages / 2, kPages / 2).CheckZero("what it grew by");
  // And where it must move: the guard is in the way.
  memory.Fill(2);
  memory.Evict();
  Expect(mremap(memory.at, memory.bytes(), 2 * memory.bytes(), 0) == MAP_FAILED && errno == ENOMEM,
         "grew over its guard");
  void* moved = mremap(memory.at, memory.bytes(), 2 * memory.bytes(), MREMAP_MAYMOVE);
  Expect(moved != MAP_FAILED && moved != memory.at, "mremap with a move: %s", strerror(errno));
  memory.At(moved).Check(2, "grown with a move");
  const Memory tail{static_cast<std::byte*>(moved) + memory.bytes(), kPages, 0};
  tail.CheckZero("behind what moved");
  tail.Fill(3);
  tail.Evict();
  tail.Check(3, "behind what moved, evicted");
}

void RemapShrink() {
  const Memory memory = MapEvicted(kPages);
  Expect(mremap(memory.at, memory.bytes(), memory.bytes() / 4, 0) == memory.at, "mremap: %s",
         strerror(errno));
  memory.Part(0, kPages / 4).Check(1, "shrunk");
  Expect(SignalOf([&] { Touch(memory.page(kPages / 4)); }) == SIGSEGV, "the tail can be read");
  MapAt(memory.page(kPages / 4), 3 * kPages / 4, kAnonymous | MAP_FIXED_NOREPLACE);
  memory.Part(kPages / 4, 3 * kPages / 4).CheckZero("mapped where it shrank");
}

void RemapMove() {
  const Memory memory = MapEvicted(kPages);
  const Memory target = Map(kPages);
  // Over memory that is evicted, too, and whose content has to go.
  target.Fill(9);
  target.Evict();
  Expect(mremap(memory.at, memory.bytes(), memory.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, target.at) ==
             target.at,
         "mremap: %s", strerror(errno));
  Expect(SignalOf([&] { Touch(memory.at); }) == SIGSEGV, "the old place can be read");
  memory.At(target.at).Check(1, "moved over evicted memory");
  MapAt(memory.at, kPages, kAnonymous | MAP_FIXED_NOREPLACE);
  memory.CheckZero("mapped where it was");
  // A part out of the middle, and back.
  const Memory whole = memory.At(target.at);
  whole.Evict();
  const Memory part = whole.Part(8, 16);
  void* away = mremap(part.at, part.bytes(), part.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, memory.at);
  Expect(away == memory.at, "mremap of a part: %s", strerror(errno));
  part.At(away).Check(1, "a part that moved");
  part.At(away).Evict();
  Expect(mremap(away, part.bytes(), part.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, part.at) == part.at,
         "mremap back: %s", strerror(errno));
  whole.Check(1, "the whole again");
}

void RemapKeepingTheOldPlace() {
  const Memory memory = MapEvicted(kPages);
  void* moved = mremap(memory.at, memory.bytes(), memory.bytes(), MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr);
  Expect(moved != MAP_FAILED, "mremap(DONTUNMAP): %s", strerror(errno));
  memory.CheckZero("the old place");
  memory.At(moved).Check(1, "the new place");
  memory.Fill(2);
  memory.Evict();
  memory.Check(2, "the old place, evicted");
  memory.At(moved).Check(1, "the new place again");
}

// One call for two mappings: possible since Linux 6.17, for private memory that is not registered.
void RemapOfSeveral() {
  const Memory memory = Map(kPages);
  memory.Fill(1);
  Expect(mprotect(memory.page(32), 4 * kPage, PROT_READ) == 0, "mprotect: %s", strerror(errno));
  memory.Part(0, 32).Evict();
  memory.Part(36, kPages - 36).Evict();
  const Memory target = Map(kPages);
  void* moved = mremap(memory.at, memory.bytes(), memory.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, target.at);
  Known("mremap_several", "%s", moved == MAP_FAILED ? strerrorname_np(errno) : "0");
  if (moved != MAP_FAILED) {
    memory.At(moved).Check(1, "several mappings, moved");
    return;
  }
  // The kernel goes through the mappings one by one: each is whole, at one of the two places.
  for (const Memory& part : {memory.Part(0, 32), memory.Part(32, 4), memory.Part(36, kPages - 36)}) {
    const Memory there = target.Part(part.first, part.pages);
    const bool here = SignalOf([&] { Touch(part.at); }) == 0;
    (here ? part : there).Check(1, "a mapping whose move was refused");
  }
}

void Brk() {
  auto* const start = static_cast<std::byte*>(sbrk(0));
  const size_t skew = reinterpret_cast<uintptr_t>(start) % kPage;
  const auto bytes = static_cast<intptr_t>(kPages * kPage);
  Expect(sbrk(static_cast<intptr_t>(kPage - skew) + bytes) != reinterpret_cast<void*>(-1), "brk: %s",
         strerror(errno));
  const Memory heap{start + kPage - skew, kPages, 0};
  heap.Fill(1);
  heap.Evict();
  Expect(sbrk(bytes) != reinterpret_cast<void*>(-1), "brk: %s", strerror(errno));
  const Memory more{heap.at + heap.bytes(), kPages, kPages};
  more.CheckZero("what the heap grew by");
  more.Fill(1);
  more.Evict();
  Expect(sbrk(-bytes - bytes / 2) != reinterpret_cast<void*>(-1), "brk: %s", strerror(errno));
  Expect(SignalOf([&] { Touch(more.at); }) == SIGSEGV, "what the heap gave up can be read");
  heap.Part(0, kPages / 2).Check(1, "the heap, shrunk");
  Expect(sbrk(bytes + bytes / 2) != reinterpret_cast<void*>(-1), "brk: %s", strerror(errno));
  heap.Part(kPages / 2, kPages / 2).CheckZero("the heap, grown again");
  more.CheckZero("the heap, grown again");
  heap.Part(0, kPages / 2).Check(1, "the heap, grown again");
}

// Grows downwards, as a stack does, when what is just below it is touched.
void GrowsDown() {
  constexpr size_t kRoom = 1024;  // the kernel keeps 256 pages below it free
  const Memory room = Map(kRoom);
  Unmap(room);
  const Memory memory{room.page(kRoom - 8), 8, 0};
  MapAt(memory.at, memory.pages, kAnonymous | MAP_FIXED_NOREPLACE | MAP_GROWSDOWN);
  memory.Fill(1);
  memory.Evict();
  const Memory below{memory.at - 8 * kPage, 8, 0};
  for (size_t page = below.pages; page-- > 0;) Dirty(below.page(page));
  memory.Check(1, "what grew");
  below.Fill(2);
  below.Evict();
  below.Check(2, "what it grew by");
  memory.Check(1, "what grew, again");
}

}  // namespace

std::vector<Corner> MappingCorners() {
  return {{"munmap_whole", MunmapWhole},
          {"munmap_part", MunmapPart},
          {"map_over_with_anonymous", MapOverWithAnonymous},
          {"map_over_with_file", MapOverWithFile},
          {"reuse_by_another_thread", ReuseByAnotherThread},
          {"mremap_grow", RemapGrow},
          {"mremap_shrink", RemapShrink},
          {"mremap_move", RemapMove},
          {"mremap_dontunmap", RemapKeepingTheOldPlace},
          {"mremap_several", RemapOfSeveral},
          {"brk", Brk},
          {"grows_down", GrowsDown}};
}

}  // namespace uzswap::corners
