// The content of the memory that is measured: real page samples from a file, or built-in realistic data.
//
// Idea: compressed swap is only as fast and as dense as the pages that it meets, so both sides of a
// comparison get the same bytes from the same source, named by (file or "builtin", seed). A source holds a
// few hundred to a few thousand distinct pages; a region of any size is tiled with them in a seeded order
// (neither side looks for duplicates between pages).
//
// Built-in: a mix as a service's heap shows it, of JSON records, prose, heap objects (pointers and small
// integers), series of integers and of doubles, zeroed and incompressible pages; lz4 shrinks it about 2:1,
// page by page.
//
// Threads: immutable after construction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace uzswap::bench {

inline constexpr size_t kPageBytes = 4096;
// Distinct pages of the built-in source: 8 MiB, more than a CPU's L2 cache, so that tiling does not flatter.
inline constexpr size_t kBuiltinPages = 2048;

class PageSource {
 public:
  // Reads `path` (concatenated raw 4 KiB pages, or such a file packed by zstd); "" is the built-in data.
  // Throws BenchError if the file cannot be read or is not whole pages.
  static PageSource Load(const std::string& path, uint64_t seed);

  // "builtin" or the file's name without its folder.
  const std::string& name() const { return name_; }
  size_t distinct_pages() const { return bytes_.size() / kPageBytes; }
  // Page `i` of a region tiled with this source; valid as long as the source. Any `i`.
  const uint8_t* TilePage(uint64_t i) const { return &bytes_[order_[i % order_.size()] * kPageBytes]; }
  // Mean ratio of lz4's compressed pages, each page alone, incompressible ones counted as they are.
  double Lz4Ratio() const;

 private:
  PageSource(std::string name, std::vector<uint8_t> bytes, uint64_t seed);

  std::string name_;
  std::vector<uint8_t> bytes_;
  std::vector<uint32_t> order_;
};

}  // namespace uzswap::bench
