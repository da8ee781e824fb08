// Operations on mappings. The shared mappings keep their addresses (madvise, a new mapping over a part); the
// small areas, which one worker owns, move, shrink, grow and go.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tests/stress/worker.h"

namespace uzswap::stress {
namespace {

constexpr int kGuardInstall = 102, kGuardRemove = 103;  // newer than some C libraries

size_t Bytes(uint32_t pages) { return static_cast<size_t>(pages) * kUnitBytes; }

}  // namespace

void Worker::DontNeed() {
  Range range;
  LockMapped(range, 1 + random_.Below(16));
  if (range.count != 0) {
    if (random_.Below(2) == 0) Check(range, Op::kDontNeed, true);
    if (madvise(range.at[0], Bytes(range.count), MADV_DONTNEED) != 0)
      world_.reporter().Failure("madvise(DONTNEED) failed");
    for (uint32_t i = 0; i < range.count; ++i) range.state[i].Zeroed();
    // Seen as zero at once, or only when somebody else comes by.
    if (random_.Below(2) == 0) Check(range, Op::kDontNeed);
    if (random_.Below(2) == 0) {
      for (uint32_t i = 0; i < range.count; ++i)
        World::WriteAll(range.first + i, range.at[i], range.state[i]);
    }
  }
  Unlock(range, Op::kDontNeed);
}

void Worker::Free() {
  Range range;
  LockMapped(range, 1 + random_.Below(8));
  if (range.count != 0) {
    Check(range, Op::kFree, true);
    if (madvise(range.at[0], Bytes(range.count), MADV_FREE) != 0)
      world_.reporter().Failure("madvise(FREE) failed");
    for (uint32_t i = 0; i < range.count; ++i) range.state[i].lazy = true;
    Check(range, Op::kFree);
  }
  Unlock(range, Op::kFree);
}

// Guard markers drop the pages that they replace; when they go, what is there is fresh.
void Worker::Guard() {
  Range range;
  LockMapped(range, 1 + random_.Below(8));
  if (range.count != 0) {
    Check(range, Op::kGuard, true);
    if (madvise(range.at[0], Bytes(range.count), kGuardInstall) != 0) {
      if (errno != EINVAL)
        world_.reporter().Failure("madvise(GUARD_INSTALL) failed");  // EINVAL: before Linux 6.13
    } else {
      // System calls must be refused while the guard stands, not answered from an old copy.
      if (pwrite(pipe_fd_, range.at[0], 8, 0) != -1)
        world_.reporter().Failure("a guard page could be read by write(2)");
      if (madvise(range.at[0], Bytes(range.count), kGuardRemove) != 0)
        world_.reporter().Failure("madvise(GUARD_REMOVE) failed");
      for (uint32_t i = 0; i < range.count; ++i) range.state[i].Zeroed();
      Check(range, Op::kGuard);
      for (uint32_t i = 0; i < range.count; ++i)
        World::WriteAll(range.first + i, range.at[i], range.state[i]);
    }
  }
  Unlock(range, Op::kGuard);
}

void Worker::MapOver() {
  Range range;
  LockMapped(range, 1 + random_.Below(16));
  if (range.count != 0) {
    Check(range, Op::kMapOver, true);
    MapPages(range.count, range.at[0], MAP_FIXED);
    for (uint32_t i = 0; i < range.count; ++i) {
      range.state[i].Zeroed();
      if (random_.Below(4) != 0) World::WriteSome(range.first + i, range.at[i], range.state[i], kUnitWords);
    }
  }
  Unlock(range, Op::kMapOver);
}

std::byte* Worker::Move(std::byte* from, uint32_t pages, std::byte* to) {
  void* moved = mremap(from, Bytes(pages), Bytes(pages), MREMAP_MAYMOVE | MREMAP_FIXED, to);
  if (moved != MAP_FAILED) return static_cast<std::byte*>(moved);
  if (errno != EFAULT) world_.reporter().Failure("mremap to another place failed");
  // The area has become several mappings, because a part of it is registered: a known difference from native.
  ++refused_remaps_;
  MapPages(pages, to, MAP_FIXED);
  memcpy(to, from, Bytes(pages));
  munmap(from, Bytes(pages));
  return to;
}

void Worker::Remap() {
  Range range;
  Area& area = LockArea(range);
  if (random_.Below(2) == 0) Check(range, Op::kRemap, true);
  // Over memory that was just touched, or over none.
  std::byte* to = MapPages(area.pages);
  if (random_.Below(2) == 0) memset(to, 0x77, Bytes(area.pages));
  area.base = Move(area.base, area.pages, to);
  world_.memory().Place(area);
  for (uint32_t i = 0; i < range.count; ++i) range.at[i] = world_.shadow().address(range.first + i);
  Check(range, Op::kRemap, random_.Below(2) == 0);
  Unlock(range, Op::kRemap);
}

void Worker::RemapKeep() {
  Range range;
  Area& area = LockArea(range);
  std::byte* const old = area.base;
  void* moved = mremap(old, Bytes(area.pages), Bytes(area.pages), MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr);
  if (moved == MAP_FAILED) {
    if (errno != EFAULT && errno != EINVAL) world_.reporter().Failure("mremap(DONTUNMAP) failed");
    ++refused_remaps_;
  } else {
    area.base = static_cast<std::byte*>(moved);
    world_.memory().Place(area);
    // What stays behind is empty: zeros.
    for (uint32_t i = 0; i < area.pages; ++i) {
      UnitState zero;
      zero.Zeroed();
      world_.Check("a worker, at the old place", Op::kRemapKeep, range.first + i, old + Bytes(i), zero, true);
    }
    munmap(old, Bytes(area.pages));
    for (uint32_t i = 0; i < range.count; ++i) range.at[i] = world_.shadow().address(range.first + i);
  }
  Check(range, Op::kRemapKeep);
  Unlock(range, Op::kRemapKeep);
}

void Worker::Resize() {
  Range range;
  Area& area = LockArea(range);
  const uint32_t pages = 1 + random_.Below(kAreaUnits);
  void* resized = mremap(area.base, Bytes(area.pages), Bytes(pages), MREMAP_MAYMOVE);
  if (resized == MAP_FAILED) {
    if (errno != EFAULT) world_.reporter().Failure("mremap to another size failed");
    ++refused_remaps_;
  } else {
    const uint32_t before = area.pages;
    area.base = static_cast<std::byte*>(resized);
    area.pages = pages;
    world_.memory().Place(area);
    for (uint32_t i = 0; i < kAreaUnits; ++i) {
      range.at[i] = world_.shadow().address(range.first + i);
      if (i >= before && i < pages) range.state[i].Zeroed();
      if (i >= pages) range.state[i].absent = true;
    }
  }
  Check(range, Op::kResize);
  for (uint32_t i = 0; i < area.pages; ++i) {
    if (random_.Below(2) == 0)
      World::WriteSome(range.first + i, range.at[i], range.state[i], 1 + random_.Below(kUnitWords));
  }
  Unlock(range, Op::kResize);
}

void Worker::Unmap() {
  Range range;
  Area& area = LockArea(range);
  Check(range, Op::kUnmap, true);
  std::byte* const old = area.base;
  if (munmap(old, Bytes(area.pages)) != 0) world_.reporter().Failure("munmap failed");
  area.pages = kAreaUnits;
  // The same place if it is still free (a hint, not an order), so that old content could come back there.
  area.base = MapPages(kAreaUnits, old);
  world_.memory().Place(area);
  for (uint32_t i = 0; i < kAreaUnits; ++i) {
    range.at[i] = world_.shadow().address(range.first + i);
    range.state[i].Zeroed();
  }
  Check(range, Op::kUnmap, random_.Below(2) == 0);
  for (uint32_t i = 0; i < kAreaUnits; ++i) {
    if (random_.Below(4) != 0) World::WriteAll(range.first + i, range.at[i], range.state[i]);
  }
  Unlock(range, Op::kUnmap);
}

void Worker::Protect() {
  Range range;
  Area& area = LockArea(range);
  if (mprotect(area.base, Bytes(area.pages), PROT_READ) != 0)
    world_.reporter().Failure("mprotect(READ) failed");
  Check(range, Op::kProtect);
  if (mprotect(area.base, Bytes(area.pages), PROT_READ | PROT_WRITE) != 0)
    world_.reporter().Failure("mprotect failed");
  for (uint32_t i = 0; i < area.pages; ++i) {
    if (random_.Below(4) == 0) World::WriteAll(range.first + i, range.at[i], range.state[i]);
  }
  Unlock(range, Op::kProtect);
}

}  // namespace uzswap::stress
