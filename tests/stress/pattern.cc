#include "tests/stress/pattern.h"

#include <initializer_list>

namespace uzswap::stress {
namespace {

constexpr uint64_t kTag = 0x5a;

uint64_t Plain(uint32_t unit, uint32_t generation, uint32_t index) {
  return kTag << 56 | static_cast<uint64_t>(generation) << 32 | static_cast<uint64_t>(unit) << 9 | index;
}

}  // namespace

uint64_t Scramble(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

uint64_t Unscramble(uint64_t x) {
  x = (x ^ x >> 31 ^ x >> 62) * 0x319642b2d24d8ec3ull;
  x = (x ^ x >> 27 ^ x >> 54) * 0x96de1b173f119089ull;
  return x ^ x >> 30 ^ x >> 60;
}

Kind KindOf(uint32_t unit, uint32_t generation) {
  switch (Scramble(static_cast<uint64_t>(generation) << 32 | unit) & 7) {
    case 0:
      return Kind::kSameFilled;
    case 1:
      return Kind::kIncompressible;
    default:
      return Kind::kRealistic;
  }
}

uint64_t ExpectedWord(uint32_t unit, uint32_t generation, uint32_t index) {
  if (generation == 0) return 0;
  switch (KindOf(unit, generation)) {
    case Kind::kSameFilled:
      return Plain(unit, generation, 0);
    case Kind::kIncompressible:
      return Scramble(Plain(unit, generation, index));
    case Kind::kRealistic:
      break;
  }
  // Which words are scrambled depends on the place alone: a fixed shape, as the fields of a record have.
  return (index ^ unit) % 5 < 2 ? Scramble(Plain(unit, generation, index))
                                : Plain(unit, generation, index & ~3u);
}

Origin OriginOf(uint64_t word) {
  for (uint64_t candidate : {word, Unscramble(word)}) {
    Origin origin{true, static_cast<uint32_t>(candidate >> 9 & (kMaxUnits - 1)),
                  static_cast<uint32_t>(candidate >> 32 & (kMaxGeneration - 1)),
                  static_cast<uint32_t>(candidate & (kUnitWords - 1)), Kind::kRealistic};
    if (candidate >> 56 != kTag || origin.generation == 0) continue;
    origin.kind = KindOf(origin.unit, origin.generation);
    // A plain word may stand in any of four places; one of them must be right.
    for (uint32_t step = 0; step < 4; ++step) {
      if (ExpectedWord(origin.unit, origin.generation, (origin.index + step) & (kUnitWords - 1)) == word)
        return origin;
    }
  }
  return {false, 0, 0, 0, Kind::kRealistic};
}

const char* NameOf(Kind kind) {
  switch (kind) {
    case Kind::kRealistic:
      return "realistic";
    case Kind::kIncompressible:
      return "incompressible";
    case Kind::kSameFilled:
      return "same-filled";
  }
  return "?";
}

}  // namespace uzswap::stress
