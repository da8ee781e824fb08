#include "libzpool/codec/codec.h"

#include <cstring>

#include <lz4.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "libzpool/base/check.h"

namespace zp {
namespace {

static_assert(sizeof(LZ4_stream_t) <= Scratch::kCodecStateBytes);
static_assert(alignof(LZ4_stream_t) <= 64);

const char* Chars(const std::byte* bytes) { return reinterpret_cast<const char*>(bytes); }
char* Chars(std::byte* bytes) { return reinterpret_cast<char*>(bytes); }

}  // namespace

std::optional<uint64_t> SameFilledPattern(PageView page) {
  uint64_t first = 0;
  uint64_t last = 0;
  std::memcpy(&first, page.data(), sizeof(first));
  std::memcpy(&last, page.data() + kPageBytes - sizeof(last), sizeof(last));
  // The ends differ in nearly every page that is not filled; then nothing else is read.
  if (first != last) return std::nullopt;
  // A page equals itself shifted by one word just when all its words are equal.
  if (std::memcmp(page.data(), page.data() + sizeof(first), kPageBytes - sizeof(first)) != 0)
    return std::nullopt;
  return first;
}

void FillPage(uint64_t pattern, MutablePageView out) {
  if (pattern == 0) {
    std::memset(out.data(), 0, kPageBytes);
    return;
  }
  for (size_t at = 0; at < kPageBytes; at += sizeof(pattern))
    std::memcpy(out.data() + at, &pattern, sizeof(pattern));
}

uint32_t PageChecksum(PageView page) { return static_cast<uint32_t>(XXH3_64bits(page.data(), kPageBytes)); }

uint32_t EncodePage(CodecId codec, PageView page, Scratch& scratch) {
  switch (codec) {
    case CodecId::kRaw:
      return 0;
    case CodecId::kLz4: {
      const int length = LZ4_compress_fast_extState(
          scratch.codec_state.data(), Chars(page.data()), Chars(scratch.encoded.data()),
          static_cast<int>(kPageBytes), static_cast<int>(kMaxEncodedBytes), 1);
      return length > 0 ? static_cast<uint32_t>(length) : 0;
    }
  }
  return 0;
}

bool DecodePage(CodecId codec, std::span<const std::byte> object, MutablePageView out) {
  switch (codec) {
    case CodecId::kRaw:
      if (object.size() != kPageBytes) return false;
      std::memcpy(out.data(), object.data(), kPageBytes);
      return true;
    case CodecId::kLz4:
      return LZ4_decompress_safe(Chars(object.data()), Chars(out.data()), static_cast<int>(object.size()),
                                 static_cast<int>(kPageBytes)) == static_cast<int>(kPageBytes);
  }
  return false;  // a number that this build does not know
}

}  // namespace zp
