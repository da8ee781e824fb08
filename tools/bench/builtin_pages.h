// The generator of the built-in page content (see page_source.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace uzswap::bench {

// `pages` pages, the same for the same seed on every machine.
std::vector<uint8_t> BuiltinPages(size_t pages, uint64_t seed);

}  // namespace uzswap::bench
