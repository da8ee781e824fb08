// What every word of the verifier's memory says.
//
// Idea: a word is a function of (unit, generation, index), so a page that was swapped with another, that is
// older than it should be, or that came back as zeros differs from what is expected in (nearly) every word,
// and the word found says where it belongs. A unit is 4096 bytes of payload; for mapped memory it is a page.
//
// Layout of a plain word, high bits first:
//
//   63      56 55            32 31             9 8      0
//   [ 0x5a   ][ generation    ][ unit          ][ index ]
//
// Kinds, chosen by a hash of (unit, generation), so that a unit changes its kind as it is rewritten:
//   realistic (6/8)        runs of four plain words, two words in five scrambled: lz4 makes about 1.8:1 of it
//   incompressible (1/8)   every word scrambled by a bijection, so that it can still be read backwards
//   same-filled (1/8)      one plain word, index 0, over the whole unit
// Generation 0 is memory that nobody has written: zeros.
#pragma once

#include <cstdint>

namespace uzswap::stress {

inline constexpr uint32_t kUnitBytes = 4096;
inline constexpr uint32_t kUnitWords = kUnitBytes / sizeof(uint64_t);
inline constexpr uint32_t kMaxUnits = 1u << 23;  // 32 GiB
inline constexpr uint32_t kMaxGeneration = 1u << 24;

enum class Kind : uint8_t { kRealistic, kIncompressible, kSameFilled };

Kind KindOf(uint32_t unit, uint32_t generation);

// The word at `index` of `unit` as its `generation`-th writing left it.
uint64_t ExpectedWord(uint32_t unit, uint32_t generation, uint32_t index);

// What a word found in memory claims to be: written for which unit and generation, or not `ours`. Allocates
// nothing (a forked child calls it).
struct Origin {
  bool ours;
  uint32_t unit, generation, index;
  Kind kind;
};
Origin OriginOf(uint64_t word);
const char* NameOf(Kind kind);

// Bijective mixing of 64 bits (splitmix64's finalizer) and its inverse.
uint64_t Scramble(uint64_t x);
uint64_t Unscramble(uint64_t x);

// A small seeded generator; one per thread.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() { return Scramble(state_ += 0x9e3779b97f4a7c15ull); }
  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>((Next() >> 32) * bound >> 32); }

 private:
  uint64_t state_;
};

}  // namespace uzswap::stress
