// madvise(2), advice by advice, on evicted memory.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "tests/e2e/corners/corner.h"

namespace uzswap::corners {
namespace {

constexpr size_t kPages = 64;

// Newer than this machine's headers may be.
constexpr int kDontNeedLocked = 24;
constexpr int kCollapse = 25;
constexpr int kGuardInstall = 102;
constexpr int kGuardRemove = 103;

void Advise(const Memory& memory, int advice, const char* name) {
  Expect(madvise(memory.at, memory.bytes(), advice) == 0, "madvise(%s): %s", name, strerror(errno));
}

void DontNeed() {
  const Memory memory = MapEvicted(kPages);
  Advise(memory.Part(10, 20), MADV_DONTNEED, "DONTNEED");
  memory.Part(10, 20).CheckZero("dropped");
  memory.Part(0, 10).Check(1, "below what was dropped");
  memory.Part(30, kPages - 30).Check(1, "above what was dropped");
  // Dropped while it is in memory, written at once, evicted.
  memory.Fill(2);
  Advise(memory, MADV_DONTNEED, "DONTNEED");
  memory.Part(0, 32).Fill(3);
  memory.Part(0, 32).Evict();
  memory.Part(0, 32).Check(3, "written after it was dropped");
  memory.Part(32, 32).CheckZero("dropped and never written");
}

void DontNeedLocked() {
  const Memory memory = MapEvicted(16);
  Expect(mlock(memory.at, memory.bytes()) == 0, "mlock: %s", strerror(errno));
  Say("DONTNEED of locked memory: %s", Outcome(madvise(memory.at, memory.bytes(), MADV_DONTNEED)).c_str());
  memory.Check(1, "locked");
  if (madvise(memory.at, memory.bytes(), kDontNeedLocked) != 0)
    Skip("MADV_DONTNEED_LOCKED: %s (Linux 5.18)", strerror(errno));
  memory.CheckZero("locked and dropped");
}

// What was freed may be as it was or zero, page by page, until it is written.
void Free() {
  const Memory memory = MapEvicted(kPages);
  const auto freed_or_zero = [&](uint64_t generation) {
    for (size_t page = 0; page < kPages; ++page) {
      const bool zero = *reinterpret_cast<const volatile uint64_t*>(memory.page(page)) == 0;
      zero ? memory.Part(page, 1).CheckZero("freed") : memory.Part(page, 1).Check(generation, "freed");
    }
  };
  Advise(memory, MADV_FREE, "FREE");
  freed_or_zero(1);
  memory.Fill(2);
  Advise(memory, MADV_FREE, "FREE");
  freed_or_zero(2);
  memory.Fill(3);
  memory.Evict();
  memory.Check(3, "written after it was freed");
}

void Remove() {
  const Memory memory = MapEvicted(kPages);
  Say("REMOVE of private memory: %s", Outcome(madvise(memory.at, memory.bytes(), MADV_REMOVE)).c_str());
  memory.Check(1, "private memory");
  void* shared = mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Expect(shared != MAP_FAILED, "mmap: %s", strerror(errno));
  const Memory content = memory.At(shared);
  content.Fill(2);
  content.Stays("");
  Advise(content, MADV_REMOVE, "REMOVE");
  content.CheckZero("shared memory, removed");
}

void DontFork() {
  const Memory memory = MapEvicted(kPages);
  Advise(memory.Part(8, 8), MADV_DONTFORK, "DONTFORK");
  InChild([&] {
    Expect(SignalOf([&] { Touch(memory.page(8)); }) == SIGSEGV, "the child has what is not to be forked");
    memory.Part(0, 8).Check(1, "in the child, below");
    memory.Part(16, kPages - 16).Check(1, "in the child, above");
  });
  Advise(memory.Part(8, 8), MADV_DOFORK, "DOFORK");
  memory.Evict();
  InChild([&] { memory.Check(1, "in a later child"); });
  memory.Check(1, "in the parent");
}

void WipeOnFork() {
  const Memory memory = MapEvicted(kPages);
  Advise(memory.Part(8, 8), MADV_WIPEONFORK, "WIPEONFORK");
  const auto wiped = [&] {
    memory.Part(8, 8).CheckZero("wiped in the child");
    memory.Part(0, 8).Check(1, "in the child, below");
    memory.Part(16, kPages - 16).Check(1, "in the child, above");
  };
  InChild([&] {
    wiped();
    memory.Part(8, 8).Fill(7);
    InChild(wiped);  // and again
    memory.Part(8, 8).Check(7, "written in the child");
  });
  memory.Check(1, "in the parent");
  Advise(memory.Part(8, 8), MADV_KEEPONFORK, "KEEPONFORK");
  memory.Evict();
  InChild([&] { memory.Check(1, "in a later child"); });
}

void Populate() {
  const Memory memory = MapEvicted(kPages);
  Advise(memory, MADV_POPULATE_READ, "POPULATE_READ");
  Expect(memory.Present() == kPages, "%zu of %zu pages are in memory", memory.Present(), kPages);
  memory.Check(1, "populated for reading");
  memory.Evict();
  Advise(memory, MADV_POPULATE_WRITE, "POPULATE_WRITE");
  Expect(memory.Present() == kPages, "%zu of %zu pages are in memory", memory.Present(), kPages);
  memory.Check(1, "populated for writing");
  // With a hole: all up to it.
  memory.Evict();
  Expect(munmap(memory.page(40), kPage) == 0, "munmap: %s", strerror(errno));
  Say("POPULATE_READ over a hole: %s",
      Outcome(madvise(memory.at, memory.bytes(), MADV_POPULATE_READ)).c_str());
  memory.Part(0, 40).Check(1, "below the hole");
  memory.Part(41, kPages - 41).Check(1, "above the hole");
}

// Guard markers take the place of pages. Through libc the agent sees them come.
void Guard() {
  const Memory memory = MapEvicted(kPages);
  const Memory guarded = memory.Part(20, 10);
  if (madvise(guarded.at, guarded.bytes(), kGuardInstall) != 0)
    Skip("guard regions: %s (Linux 6.13)", strerror(errno));
  Expect(SignalOf([&] { Touch(guarded.at); }) == SIGSEGV, "a guard can be read");
  memory.Part(0, 20).Check(1, "below the guards");
  memory.Part(30, kPages - 30).Check(1, "above the guards");
  Expect(SignalOf([&] { Touch(guarded.page(9)); }) == SIGSEGV,
         "a guard can be read after its neighbours came home");
  InChild([&] { Expect(SignalOf([&] { Touch(guarded.at); }) == SIGSEGV, "a guard can be read in a child"); });
  Advise(guarded, kGuardRemove, "GUARD_REMOVE");
  guarded.CheckZero("where guards were");
  guarded.Fill(2);
  memory.Evict();
  guarded.Check(2, "where guards were, evicted");
}

// By a raw system call nobody sees them come: what was stored is there again when they go.
void GuardBehindOurBack() {
  const Memory memory = MapEvicted(8);
  if (syscall(SYS_madvise, memory.at, memory.bytes(), kGuardInstall) != 0)
    Skip("guard regions: %s (Linux 6.13)", strerror(errno));
  Expect(SignalOf([&] { Touch(memory.at); }) == SIGSEGV, "a guard can be read");
  Expect(syscall(SYS_madvise, memory.at, memory.bytes(), kGuardRemove) == 0, "GUARD_REMOVE: %s",
         strerror(errno));
  const bool zero = *reinterpret_cast<const volatile uint64_t*>(memory.at) == 0;
  Known("raw_guard", "%s", zero ? "zero" : "old content");
  zero ? memory.CheckZero("where guards were") : memory.Check(1, "where guards were");
}

// Advice about what the kernel should do with pages that are there; or about a later core dump.
void AboutPages() {
  const struct {
    int advice;
    const char* name;
  } all[] = {{MADV_NORMAL, "NORMAL"},
             {MADV_RANDOM, "RANDOM"},
             {MADV_SEQUENTIAL, "SEQUENTIAL"},
             {MADV_WILLNEED, "WILLNEED"},
             {MADV_COLD, "COLD"},
             {MADV_PAGEOUT, "PAGEOUT"},
             {MADV_HUGEPAGE, "HUGEPAGE"},
             {MADV_NOHUGEPAGE, "NOHUGEPAGE"},
             {MADV_MERGEABLE, "MERGEABLE"},
             {MADV_UNMERGEABLE, "UNMERGEABLE"},
             {MADV_DONTDUMP, "DONTDUMP"},
             {MADV_DODUMP, "DODUMP"}};
  for (const auto& [advice, name] : all) {
    const Memory memory = MapEvicted(kPages);
    Say("madvise(%s): %s", name, Outcome(madvise(memory.at, memory.bytes(), advice)).c_str());
    memory.Check(1, name);
    memory.Part(0, kPages / 2).Evict();
    memory.Check(1, name);
  }
}

// The kernel collapses nothing where pages of a registered mapping are missing.
void Collapse() {
  constexpr size_t kHuge = 512;
  const Memory memory = Map(kHuge, kHuge * kPage);
  memory.Fill(1);
  memory.Evict();
  Known("collapse_evicted", "%s", Outcome(madvise(memory.at, memory.bytes(), kCollapse)).c_str());
  memory.Check(1, "evicted, and to be collapsed");
  const long all_there = madvise(memory.at, memory.bytes(), kCollapse);
  if (all_there != 0 && errno == EINVAL) Skip("MADV_COLLAPSE: %s (Linux 6.1, huge pages)", strerror(errno));
  Say("COLLAPSE with all pages in memory: %s", Outcome(all_there).c_str());
  memory.Check(1, "collapsed");
  memory.Evict();
  memory.Check(1, "collapsed and evicted");
}

// The same advice through process_madvise(2), which may be given to oneself (Linux 6.13).
void ByProcessMadvise() {
  const Memory memory = MapEvicted(kPages);
  const int self = static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0));
  const iovec range{memory.page(10), 20 * kPage};
  const ssize_t cold = process_madvise(self, &range, 1, MADV_COLD, 0);
  Say("process_madvise(COLD): %ld", cold);
  memory.Check(1, "cold");
  memory.Evict();
  const ssize_t dropped = process_madvise(self, &range, 1, MADV_DONTNEED, 0);
  Say("process_madvise(DONTNEED): %ld", dropped);
  if (dropped > 0) memory.Part(10, 20).CheckZero("dropped");
  memory.Part(0, 10).Check(1, "below what was dropped");
  memory.Part(30, kPages - 30).Check(1, "above what was dropped");
  if (dropped <= 0) return;
  memory.Fill(2);
  memory.Evict();
  if (process_madvise(self, &range, 1, kGuardInstall, 0) <= 0) return;
  Expect(SignalOf([&] { Touch(memory.page(10)); }) == SIGSEGV, "a guard can be read");
  Expect(process_madvise(self, &range, 1, kGuardRemove, 0) > 0, "GUARD_REMOVE: %s", strerror(errno));
  memory.Part(10, 20).CheckZero("where guards were");
  memory.Part(0, 10).Check(2, "below the guards");
}

}  // namespace

std::vector<Corner> AdviceCorners() {
  return {{"dontneed", DontNeed},
          {"dontneed_locked", DontNeedLocked},
          {"free", Free},
          {"remove", Remove},
          {"dontfork", DontFork},
          {"wipeonfork", WipeOnFork},
          {"populate", Populate},
          {"guard", Guard},
          {"guard_by_raw_call", GuardBehindOurBack},
          {"advice_about_pages", AboutPages},
          {"collapse", Collapse},
          {"process_madvise", ByProcessMadvise}};
}

}  // namespace uzswap::corners
