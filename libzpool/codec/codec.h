// Codecs by number: page to object and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "libzpool/base/units.h"
#include "libzpool/codec/scratch.h"

namespace zp {

// Kept in four bits of a location word; numbers are part of the persistent layout and never reused.
enum class CodecId : uint8_t { kRaw = 0, kLz4 = 1 };
inline constexpr unsigned kCodecIdLimit = 16;
inline constexpr unsigned kCodecs = 2;
inline constexpr const char* kCodecNames[kCodecs] = {"raw", "lz4"};
constexpr std::optional<CodecId> FindCodec(std::string_view name) {
  for (unsigned i = 0; i < kCodecs; ++i) {
    if (name == kCodecNames[i]) return static_cast<CodecId>(i);
  }
  return std::nullopt;
}

using PageView = std::span<const std::byte, kPageBytes>;
using MutablePageView = std::span<std::byte, kPageBytes>;

// An object longer than this is not worth decoding: the page is kept raw. 15/16 of a page.
inline constexpr uint32_t kMaxEncodedBytes = kPageBytes - kPageBytes / 16;

// Whether an object of `codec` can be `length` bytes long. False for a codec that this build does not know.
constexpr bool CanBeObject(CodecId codec, uint32_t length) {
  switch (codec) {
    case CodecId::kRaw:
      return length == kPageBytes;
    case CodecId::kLz4:
      return length >= 1 && length <= kMaxEncodedBytes;
  }
  return false;
}

// The eight bytes that the page repeats, if it does (zeros, fills). A few ns for a page that does not.
std::optional<uint64_t> SameFilledPattern(PageView page);
void FillPage(uint64_t pattern, MutablePageView out);

// Low 32 bits of XXH3-64 over the page.
uint32_t PageChecksum(PageView page);

// Encodes `page` into scratch.encoded and returns the length, 1..kMaxEncodedBytes; 0 when it does not shrink
// enough (an outcome: store it raw). `page` must not change during the call. kRaw always returns 0. No
// allocation.
uint32_t EncodePage(CodecId codec, PageView page, Scratch& scratch);

// Decodes `object` into `out`. False if the object is malformed or is not exactly a page; `out` then holds
// anything, nothing beyond it was written. `object` must not change during the call: hand in a private copy.
// No allocation.
[[nodiscard]] bool DecodePage(CodecId codec, std::span<const std::byte> object, MutablePageView out);

}  // namespace zp
