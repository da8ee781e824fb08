#include "tests/stress/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace uzswap::stress {
namespace {

constexpr uint32_t kUnitsPerMegabyte = 256;

}  // namespace

std::byte* MapPages(uint32_t pages, std::byte* at, int extra_flags) {
  void* memory = mmap(at, static_cast<size_t>(pages) * kUnitBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | extra_flags, -1, 0);
  if (memory == MAP_FAILED) {
    perror("verifier: mmap");
    _Exit(3);
  }
  return static_cast<std::byte*>(memory);
}

uint32_t Memory::CountHeap(const Options& options) {
  return static_cast<uint32_t>(static_cast<uint64_t>(options.megabytes) * kUnitsPerMegabyte *
                               options.malloc_percent / 100);
}

uint32_t Memory::CountMapped(const Options& options) {
  return options.megabytes * kUnitsPerMegabyte - CountHeap(options);
}

Memory::Memory(const Options& options)
    : mapped_units_(CountMapped(options)),
      heap_units_(CountHeap(options)),
      shadow_(mapped_units_ + heap_units_ + options.threads * kAreasPerThread * kAreaUnits) {
  for (uint32_t first = 0; first < mapped_units_; first += kMappingUnits) {
    const uint32_t count = std::min(kMappingUnits, mapped_units_ - first);
    std::byte* base = MapPages(count);
    for (uint32_t i = 0; i < count; ++i)
      shadow_.set_address(first + i, base + static_cast<size_t>(i) * kUnitBytes);
  }

  Random random(options.seed);
  for (uint32_t first = mapped_units_; first < shared_units();) {
    // Mostly below malloc's mmap threshold (128 KiB, 32 units), some above, many small.
    const uint32_t wanted = random.Below(4) == 0 ? 1 + random.Below(48) : 1 + random.Below(12);
    const uint32_t count = std::min(wanted, shared_units() - first);
    auto* memory = static_cast<std::byte*>(malloc(static_cast<size_t>(count) * kUnitBytes));
    if (memory == nullptr) {
      perror("verifier: malloc");
      exit(3);
    }
    // A fresh block holds what malloc left there; a unit never written is expected to be zero.
    std::fill_n(memory, static_cast<size_t>(count) * kUnitBytes, std::byte{0});
    blocks_.push_back({first, count, memory});
    Place(blocks_.back());
    first += count;
  }

  for (uint32_t i = 0; i < options.threads * kAreasPerThread; ++i) {
    areas_.push_back({shared_units() + i * kAreaUnits, kAreaUnits, MapPages(kAreaUnits)});
    Place(areas_.back());
  }
}

uint32_t Memory::mapping_end(uint32_t unit) const {
  return std::min((unit / kMappingUnits + 1) * kMappingUnits, mapped_units_);
}

void Memory::Place(const Block& block) {
  for (uint32_t i = 0; i < block.units; ++i) {
    shadow_.set_address(block.first + i, block.memory + static_cast<size_t>(i) * kUnitBytes);
  }
}

void Memory::Place(const Area& area) {
  for (uint32_t i = 0; i < area.pages; ++i) {
    shadow_.set_address(area.first + i, area.base + static_cast<size_t>(i) * kUnitBytes);
  }
}

}  // namespace uzswap::stress
