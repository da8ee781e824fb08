#include "tools/bench/page_source.h"

#include <lz4.h>
#include <zstd.h>

#include <fstream>
#include <iterator>
#include <utility>

#include "tools/bench/builtin_pages.h"
#include "tools/bench/error.h"
#include "tools/bench/random.h"

namespace uzswap::bench {
namespace {

// A sample file is a few MB; more than this is a mistake in the argument.
constexpr size_t kMaxSampleBytes = size_t{1} << 30;

std::vector<uint8_t> Unzstd(const std::vector<uint8_t>& packed, const std::string& path) {
  std::vector<uint8_t> bytes;
  ZSTD_DStream* stream = ZSTD_createDStream();
  if (stream == nullptr) throw BenchError("zstd: no memory");
  ZSTD_inBuffer in{packed.data(), packed.size(), 0};
  size_t left = 1;
  bool failed = false;
  while (!failed) {
    const size_t before = bytes.size();
    bytes.resize(before + (size_t{1} << 20));
    ZSTD_outBuffer out{bytes.data() + before, bytes.size() - before, 0};
    left = ZSTD_decompressStream(stream, &out, &in);
    bytes.resize(before + out.pos);
    failed = ZSTD_isError(left) != 0 || bytes.size() > kMaxSampleBytes;
    if (in.pos == in.size && out.pos < out.size) break;  // nothing more comes
  }
  ZSTD_freeDStream(stream);
  if (failed || left != 0)
    throw BenchError(path + " is damaged or cut off; unpack it with `zstd -d` and see");
  return bytes;
}

}  // namespace

PageSource::PageSource(std::string name, std::vector<uint8_t> bytes, uint64_t seed)
    : name_(std::move(name)), bytes_(std::move(bytes)), order_(bytes_.size() / kPageBytes) {
  for (size_t i = 0; i < order_.size(); ++i) order_[i] = static_cast<uint32_t>(i);
  Random random(seed ^ 0x70616765u);
  for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random.Below(i)]);
}

PageSource PageSource::Load(const std::string& path, uint64_t seed) {
  if (path.empty()) return PageSource("builtin", BuiltinPages(kBuiltinPages, seed), seed);
  std::ifstream file(path, std::ios::binary);
  if (!file) throw BenchError("cannot open " + path + "; --pages wants a file of raw 4 KiB pages");
  std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  constexpr uint8_t kZstdMagic[] = {0x28, 0xb5, 0x2f, 0xfd};
  if (bytes.size() >= 4 && std::equal(std::begin(kZstdMagic), std::end(kZstdMagic), bytes.begin())) {
    bytes = Unzstd(bytes, path);
  }
  if (bytes.empty() || bytes.size() % kPageBytes != 0) {
    throw BenchError(path + " holds " + std::to_string(bytes.size()) +
                     " bytes; --pages wants whole raw pages of 4096 bytes");
  }
  const size_t slash = path.rfind('/');
  return PageSource(slash == std::string::npos ? path : path.substr(slash + 1), std::move(bytes), seed);
}

double PageSource::Lz4Ratio() const {
  std::vector<char> out(static_cast<size_t>(LZ4_compressBound(kPageBytes)));
  size_t packed = 0;
  for (size_t i = 0; i < distinct_pages(); ++i) {
    const int n = LZ4_compress_default(reinterpret_cast<const char*>(&bytes_[i * kPageBytes]), out.data(),
                                       static_cast<int>(kPageBytes), static_cast<int>(out.size()));
    packed += n > 0 && static_cast<size_t>(n) < kPageBytes ? static_cast<size_t>(n) : kPageBytes;
  }
  return packed == 0 ? 0 : static_cast<double>(bytes_.size()) / static_cast<double>(packed);
}

}  // namespace uzswap::bench
