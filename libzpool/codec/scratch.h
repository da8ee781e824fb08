// The buffers that one thread needs to store and load pages.
#pragma once

#include <array>
#include <cstddef>

#include "libzpool/base/units.h"

namespace zp {

// One per thread, reused for every call; about 25 KiB. What it holds between calls means nothing. Not
// thread-safe.
struct Scratch {
  // Enough for LZ4_sizeofState() (16 KiB and a little); checked where it is used.
  static constexpr size_t kCodecStateBytes = 16640;

  alignas(64) std::array<std::byte, kPageBytes> encoded;
  alignas(64) std::array<std::byte, kPageBytes> object;
  alignas(64) std::array<std::byte, kCodecStateBytes> codec_state;
};

}  // namespace zp
