#include "tools/bench/region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "libzpool/base/fd.h"
#include "tools/bench/error.h"
#include "tools/bench/random.h"
#include "tools/bench/stats.h"

namespace uzswap::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kPagemapPresent = uint64_t{1} << 63;
constexpr uint64_t kPagemapSwapped = uint64_t{1} << 62;
// Read-ahead clusters of both sides are at most this long; a random touch must not find its page brought
// along.
constexpr size_t kSpacingPages = 16;
// No trap and no page table walk that misses takes less.
constexpr uint32_t kNoFaultNs = 500;

template <typename T>
void LockInMemory(std::vector<T>& values) {
  // Refused where RLIMIT_MEMLOCK is tiny; the arrays are touched before each measurement all the same.
  if (!values.empty()) ::mlock(values.data(), values.size() * sizeof(T));
}

uint8_t Touch(const uint8_t* page) { return *static_cast<const volatile uint8_t*>(page); }

void Compute(unsigned gap_us) {
  const auto until = Clock::now() + std::chrono::microseconds(gap_us);
  while (Clock::now() < until) {
  }
}

}  // namespace

Region::Region(const PageSource& source, size_t pages) : hashes_(pages), order_(pages), samples_ns_(pages) {
  auto memory = zp::Mapping::Anonymous(pages * kPageBytes);
  if (!memory.ok()) throw BenchError("no memory for a region of " + std::to_string(pages) + " pages");
  memory_ = std::move(memory.value());
  ::madvise(memory_.data(), memory_.size(), MADV_NOHUGEPAGE);
  for (size_t i = 0; i < pages; ++i) {
    std::memcpy(At(i), source.TilePage(i), kPageBytes);
    hashes_[i] = XXH3_64bits(At(i), kPageBytes);
  }
  LockInMemory(hashes_);
  LockInMemory(order_);
  LockInMemory(samples_ns_);
}

uint8_t* Region::At(size_t page) { return reinterpret_cast<uint8_t*>(memory_.data()) + page * kPageBytes; }

const uint8_t* Region::PageAt(size_t page) const {
  return reinterpret_cast<const uint8_t*>(memory_.data()) + page * kPageBytes;
}

void Region::Dirty() {
  for (size_t i = 0; i < pages(); ++i) {
    volatile uint8_t* byte = At(i);
    *byte = *byte;
  }
}

void Region::PageOut() {
  if (::madvise(memory_.data(), memory_.size(), MADV_PAGEOUT) != 0) ThrowErrno("madvise(MADV_PAGEOUT)");
}

std::vector<PageState> Region::States() const {
  const zp::UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) ThrowErrno("/proc/self/pagemap");
  std::vector<uint64_t> entries(pages());
  const size_t bytes = entries.size() * sizeof(uint64_t);
  const auto first = reinterpret_cast<uintptr_t>(memory_.data()) / kPageBytes;
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::pread(pagemap.get(), reinterpret_cast<char*>(entries.data()) + done, bytes - done,
                              static_cast<off_t>(first * sizeof(uint64_t) + done));
    if (n <= 0) ThrowErrno("read /proc/self/pagemap");
    done += static_cast<size_t>(n);
  }
  std::vector<PageState> states(pages());
  for (size_t i = 0; i < pages(); ++i) {
    states[i] = (entries[i] & kPagemapPresent) != 0   ? PageState::kPresent
                : (entries[i] & kPagemapSwapped) != 0 ? PageState::kSwapped
                                                      : PageState::kAbsent;
  }
  return states;
}

size_t Region::CountWrong() const {
  size_t wrong = 0;
  for (size_t i = 0; i < pages(); ++i) {
    if (XXH3_64bits(PageAt(i), kPageBytes) != hashes_[i]) ++wrong;
  }
  return wrong;
}

nlohmann::json Region::TouchRandomly(size_t touches, uint64_t seed, unsigned gap_us) {
  // One page, at a random place, out of each stretch of kSpacingPages; then the stretches are shuffled.
  const std::vector<PageState> states = States();
  Random random(seed);
  size_t count = 0;
  for (size_t start = 0; start + 2 * kSpacingPages <= pages(); start += 2 * kSpacingPages) {
    const size_t page = start + random.Below(kSpacingPages);
    if (states[page] != PageState::kPresent) order_[count++] = static_cast<uint32_t>(page);
  }
  for (size_t i = count; i > 1; --i) std::swap(order_[i - 1], order_[random.Below(i)]);
  count = std::min(count, touches);
  std::fill_n(samples_ns_.begin(), count, 0u);

  for (size_t i = 0; i < count; ++i) {
    if (gap_us != 0) Compute(gap_us);
    const auto before = Clock::now();
    Touch(PageAt(order_[i]));
    const auto ns = (Clock::now() - before).count();
    samples_ns_[i] = static_cast<uint32_t>(std::min<int64_t>(ns, UINT32_MAX));
  }

  std::vector<uint32_t> samples(samples_ns_.begin(),
                                samples_ns_.begin() + static_cast<std::ptrdiff_t>(count));
  double sum = 0;
  size_t fast = 0;
  uint32_t longest = 0;
  for (const uint32_t ns : samples) {
    sum += ns;
    fast += ns < kNoFaultNs;
    longest = std::max(longest, ns);
  }
  return {{"touches", count},
          {"p50_us", Percentile(samples, 500) / 1e3},
          {"p99_us", Percentile(samples, 990) / 1e3},
          {"mean_us", count == 0 ? 0 : sum / 1e3 / static_cast<double>(count)},
          {"max_us", longest / 1e3},
          {"below_half_us_permille", count == 0 ? 0 : fast * 1000 / count}};
}

nlohmann::json Region::TouchSequentially() {
  const std::vector<PageState> states = States();
  const auto gone = static_cast<size_t>(std::count_if(
      states.begin(), states.end(), [](PageState state) { return state != PageState::kPresent; }));
  const auto before = Clock::now();
  for (size_t i = 0; i < pages(); ++i) Touch(PageAt(i));
  const double us = std::chrono::duration<double, std::micro>(Clock::now() - before).count();
  return {{"pages", gone}, {"wall_us", us}, {"us_per_page", gone == 0 ? 0 : us / static_cast<double>(gone)}};
}

}  // namespace uzswap::bench
