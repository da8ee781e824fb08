// The memory that is verified, cut into units.
//
// Layout, by unit number:
//
//   [0, mapped)                 mappings of kMappingUnits pages each; a unit is a page
//   [mapped, mapped + heap)     malloc blocks of 1 to 48 units: a unit begins 16 bytes into a page, so two
//   units,
//                               perhaps of two owners, share each page, and blocks lie in brk heap, thread
//                               arenas and malloc's own mappings
//   [..., + areas)              small mappings, kAreasPerThread for each worker; it moves, cuts and unmaps
//   them
//
// Threads: built by one thread; after that a unit's memory belongs to the holder of its lock in the Shadow, a
// block's to the holder of all its units, an area's to its worker (who also locks its units, for the forks'
// sake).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tests/stress/options.h"
#include "tests/stress/shadow.h"

namespace uzswap::stress {

inline constexpr uint32_t kMappingUnits =
    3000;  // 11.7 MiB: not a multiple of 2 MiB, so pieces straddle mappings
inline constexpr uint32_t kAreasPerThread = 6;
inline constexpr uint32_t kAreaUnits = 64;

struct Block {
  uint32_t first, units;
  std::byte* memory;
};

struct Area {
  uint32_t first;  // unit
  uint32_t pages;  // mapped now, at most kAreaUnits
  std::byte* base;
};

class Memory {
 public:
  explicit Memory(const Options& options);
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  Shadow& shadow() { return shadow_; }
  uint32_t shared_units() const { return mapped_units_ + heap_units_; }
  uint32_t mapped_units() const { return mapped_units_; }
  uint32_t heap_units() const { return heap_units_; }
  uint32_t units() const { return shadow_.units(); }
  bool is_page(uint32_t unit) const { return unit < mapped_units_ || unit >= shared_units(); }

  // The mapping that the mapped unit lies in ends before this unit.
  uint32_t mapping_end(uint32_t unit) const;
  uint32_t block_count() const { return static_cast<uint32_t>(blocks_.size()); }
  Block& block(uint32_t index) { return blocks_[index]; }
  Area& area(uint32_t thread, uint32_t index) { return areas_[thread * kAreasPerThread + index]; }
  uint32_t area_owner(uint32_t unit) const {
    return (unit - shared_units()) / (kAreasPerThread * kAreaUnits);
  }

  // Points the units of a block or area at their memory. The caller owns the units.
  void Place(const Block& block);
  void Place(const Area& area);

 private:
  static uint32_t CountMapped(const Options& options);
  static uint32_t CountHeap(const Options& options);

  uint32_t mapped_units_, heap_units_;
  Shadow shadow_;
  std::vector<Block> blocks_;
  std::vector<Area> areas_;
};

// Private anonymous memory, anywhere or exactly there; exits with status 3 if there is none.
std::byte* MapPages(uint32_t pages, std::byte* at = nullptr, int extra_flags = 0);

}  // namespace uzswap::stress
