// What a process that will be killed says of itself in shared memory: what is where, and what it is just
// doing.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "libzpool/base/units.h"
#include "libzpool/codec/codec.h"
#include "tests/libzpool/pages.h"
#include "tests/libzpool/remains.h"

namespace zp::testing {

inline constexpr uint32_t kCrashIndexes = 5;
inline constexpr uint32_t kCrashThreads = 2;
inline constexpr uint32_t kCrashDomain = 0x5eed;

// Pages by number: clusters far apart, each over the borders of leaves, so that leaves, inner nodes and the
// root are shared and copied.
inline constexpr uint32_t kClusterPages = 150;
inline constexpr std::array<uint64_t, 3> kClusters = {100, (uint64_t{1} << 24) - 70,
                                                      kPageIndexLimit - kClusterPages};
inline constexpr uint32_t kCrashPages = kClusterPages * kClusters.size();
inline PageIndex PageOf(uint32_t n) { return PageIndex(kClusters[n / kClusterPages] + n % kClusterPages); }

// By number, from 1 on; 0 is no content.
void CrashContent(uint64_t content, PageBuffer* page);

enum class CrashOp : uint32_t {
  kNone,
  kReplace,    // by `after`, from `before`, either may be 0
  kTakeHome,   // through the filling form; to 0, or back
  kMove,       // its object: nothing changes
  kDropRange,  // of [begin, end)
  kRekey,      // of [begin, end) to `to`, where nothing is
  kClone,      // to `other`
  kDropClone,
};
inline constexpr const char* kCrashOpNames[] = {"nothing",    "replace", "take home", "move",
                                                "drop range", "rekey",   "clone",     "drop clone"};

using Contents = std::array<uint64_t, kCrashPages>;

// One thread's operation. The fields are written before `op`, which is kNone again when it is done and the
// shadow's contents are changed.
struct Intent {
  std::atomic<CrashOp> op{CrashOp::kNone};
  uint32_t index = 0;
  uint32_t other = 0;
  uint32_t begin = 0, end = 0;  // pages
  uint32_t to = 0;
  uint64_t before = 0, after = 0;  // content
};

struct Shadow {
  Roots roots{};
  std::array<Contents, kCrashIndexes> contents{};
  std::array<std::atomic<bool>, kCrashIndexes> exists{};
  std::array<Intent, kCrashThreads> intents;
  std::array<std::atomic<uint64_t>, kCrashThreads> next_content;
  std::atomic<uint64_t> operations{0};
  // Where to die: at the `countdown`-th pause point, of that name if there is one.
  std::array<char, 32> point{};
  std::atomic<int64_t> countdown{0};
  // How many operations the other threads may begin while the one that met the point waits for its end.
  std::atomic<uint64_t> patience{0};
};
static_assert(std::atomic<CrashOp>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

}  // namespace zp::testing
