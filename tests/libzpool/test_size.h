// How much a random test does.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string_view>

namespace zp::testing {

// How many rounds: `usual`; in a sanitized build, which takes ten times as long, a quarter of that; in the
// long form `when_long`.
inline uint64_t Rounds(uint64_t usual, uint64_t when_long) {
  if (std::getenv("UZSWAP_TEST_LONG") != nullptr) return when_long;
  const char* const build = std::getenv("UZSWAP_TEST_BUILD");
  const bool is_sanitized =
      build != nullptr && (std::string_view(build) == "asan" || std::string_view(build) == "tsan");
  return is_sanitized ? (usual + 3) / 4 : usual;
}

}  // namespace zp::testing
