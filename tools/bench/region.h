// The memory that a worker works on: pages of a PageSource in private anonymous memory, with a hash of each
// to tell a wrong one.
//
// Idea: the same operations, by the same code, on both sides of a comparison: fill, dirty, look which pages
// are gone (pagemap), touch them in some order with a clock around, verify. The memory is an ordinary
// mapping: whoever takes pages away (the daemon through the agent, or the kernel) does it from outside or by
// PageOut().
//
// Cost: hashes 8 B a page; they, the order and the samples are locked in memory, so that none of the bench's
// own pages is evicted and measured.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "libzpool/base/mapping.h"
#include "tools/bench/page_source.h"

namespace uzswap::bench {

// What holds a page's content, as pagemap tells: bit 63 present, bit 62 swapped by the kernel, neither:
// absent (taken by uzswap, or never touched).
enum class PageState : uint8_t { kPresent, kSwapped, kAbsent };

class Region {
 public:
  // Fills `pages` pages from `source`. Small pages on either side: THP would make the comparison one of THP.
  Region(const PageSource& source, size_t pages);

  size_t pages() const { return hashes_.size(); }
  const uint8_t* PageAt(size_t page) const;

  // Writes to each page the byte that it holds already: dirty for the kernel, so no copy on swap or in a pool
  // is good any more, and equal to its hash still.
  void Dirty();
  // Asks the kernel to take the whole region away (MADV_PAGEOUT). Throws BenchError.
  void PageOut();
  std::vector<PageState> States() const;
  // Reads every page; how many are not what was written.
  size_t CountWrong() const;

  // Touches up to `touches` pages that are not present, in random order with no two among them within 16
  // pages
  // (`seed` fixes which), one read each with a clock around; between two touches `gap_us` of computing.
  // Answers
  // {"touches", "p50_us", "p99_us", "mean_us", "max_us", "below_half_us_permille"}: the last tells how many
  // can have been no fault at all.
  nlohmann::json TouchRandomly(size_t touches, uint64_t seed, unsigned gap_us);
  // Touches every page in order. Answers {"pages" (not present before), "us_per_page", "wall_us"}.
  nlohmann::json TouchSequentially();

 private:
  uint8_t* At(size_t page);

  zp::Mapping memory_;
  std::vector<uint64_t> hashes_;
  std::vector<uint32_t> order_;
  std::vector<uint32_t> samples_ns_;
};

}  // namespace uzswap::bench
