// How much a random test does.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string_view>

namespace zp::testing {

// Whether this is a build of which each test takes ten times as long.
inline bool IsSanitized() {
  const char* const build = std::getenv("UZSWAP_TEST_BUILD");
  return build != nullptr && (std::string_view(build) == "asan" || std::string_view(build) == "tsan");
}

// How many rounds: `usual`; in a sanitized build a quarter of that; in the long form `when_long`.
inline uint64_t Rounds(uint64_t usual, uint64_t when_long) {
  if (std::getenv("UZSWAP_TEST_LONG") != nullptr) return when_long;
  return IsSanitized() ? (usual + 3) / 4 : usual;
}

// Of steps at which something is interrupted, one of how many: each; in a sanitized build one in seven.
inline int Stride() { return IsSanitized() && std::getenv("UZSWAP_TEST_LONG") == nullptr ? 7 : 1; }

}  // namespace zp::testing
