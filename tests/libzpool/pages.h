// Pages for tests: made-up content that compresses like programs' memory, and carries what it is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>

#include "libzpool/base/units.h"

namespace zp::testing {

using PageBuffer = std::array<std::byte, kPageBytes>;

// A page that only (page, generation) has. `noise_words` of its 512 words are random, so the length after lz4
// is roughly 8 bytes times that; 512 makes a page that does not shrink.
inline void MakePage(uint64_t page, uint64_t generation, unsigned noise_words, PageBuffer* out) {
  std::mt19937_64 random(page * 0x9e3779b97f4a7c15u + generation);
  for (unsigned i = 0; i < kPageBytes / 8; ++i) {
    const uint64_t word = i < noise_words ? random() : (page << 20) + generation;
    std::memcpy(out->data() + i * 8, &word, 8);
  }
}

inline bool operator==(const PageBuffer& a, std::span<const std::byte, kPageBytes> b) {
  return std::memcmp(a.data(), b.data(), kPageBytes) == 0;
}

}  // namespace zp::testing
