#include "tests/numa/frame_places.h"

#include <numa.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <vector>

#include "libzpool/base/check.h"

namespace zp::testing {
namespace {

FramesByNode PlacesOf(int fd) {
  struct stat info {};
  ZP_CHECK(fstat(fd, &info) == 0, "fstat of an arena's file");
  void* const map = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd, 0);
  ZP_CHECK(map != MAP_FAILED, "mapping an arena's file");
  std::vector<void*> frames;
  // Header and tags are written before the file is bound.
  const off_t first =
      static_cast<off_t>(FrameArena::FirstSpan(static_cast<uint64_t>(info.st_size)) * kSpanBytes);
  for (off_t at = lseek(fd, first, SEEK_DATA); at >= 0; at = lseek(fd, at + kPageBytes, SEEK_DATA)) {
    char* const frame = static_cast<char*>(map) + at;
    static_cast<void>(*static_cast<volatile char*>(frame));  // move_pages sees only what is in the page table
    frames.push_back(frame);
  }
  std::vector<int> places(frames.size());
  ZP_CHECK(frames.empty() || numa_move_pages(0, frames.size(), frames.data(), nullptr, places.data(), 0) == 0,
           "move_pages without nodes to move to");
  munmap(map, static_cast<size_t>(info.st_size));
  FramesByNode found;
  for (const int node : places) ++found[node];  // below 0: an errno, of no node
  return found;
}

}  // namespace

std::map<int, FramesByNode> FramePlaces(const PageStore& store) {
  std::map<int, FramesByNode> found;
  store.ForEachMemfd([&](const char* name, int fd) {
    int node = -1;
    if (std::sscanf(name, "frames-%d", &node) == 1) found[node] = PlacesOf(fd);
  });
  return found;
}

}  // namespace zp::testing
