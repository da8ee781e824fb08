#include "tools/bench/builtin_pages.h"

#include <cmath>
#include <cstring>
#include <string>

#include "tools/bench/page_source.h"
#include "tools/bench/random.h"

namespace uzswap::bench {
namespace {

constexpr const char* kWords[] = {
    "the",       "of",      "and",       "to",      "in",      "a",       "is",       "that",    "memory",
    "for",       "it",      "as",        "was",     "with",    "be",      "on",       "not",     "he",
    "page",      "his",     "but",       "at",      "are",     "this",    "have",     "from",    "or",
    "had",       "by",      "hot",       "word",    "some",    "what",    "there",    "we",      "can",
    "out",       "other",   "were",      "all",     "your",    "when",    "up",       "use",     "how",
    "said",      "an",      "each",      "she",     "which",   "do",      "their",    "time",    "if",
    "will",      "way",     "about",     "many",    "then",    "them",    "would",    "write",   "like",
    "so",        "these",   "her",       "long",    "make",    "thing",   "see",      "him",     "two",
    "has",       "look",    "more",      "day",     "could",   "go",      "come",     "did",     "my",
    "sound",     "no",      "most",      "number",  "who",     "over",    "know",     "water",   "than",
    "call",      "first",   "people",    "may",     "down",    "side",    "been",     "now",     "find",
    "harbour",   "ledger",  "meridian",  "quarrel", "obscure", "lantern", "velocity", "gravel",  "thicket",
    "sovereign", "compass", "parchment", "crystal", "whisper", "foundry", "timber",   "orchard", "mosaic",
};
constexpr size_t kWordCount = sizeof(kWords) / sizeof(kWords[0]);

// Squaring the draw makes the early words frequent, as in prose.
const char* Word(Random& random) {
  const double u = static_cast<double>(random.Below(1u << 20)) / (1u << 20);
  return kWords[static_cast<size_t>(u * u * kWordCount)];
}

std::string Hex(Random& random, int digits) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (int i = 0; i < digits; ++i) text += kDigits[random.Below(16)];
  return text;
}

void FillJson(Random& random, uint8_t* page) {
  std::string text;
  while (text.size() < kPageBytes) {
    text += R"({"id":)" + std::to_string(random.Below(90'000'000)) + R"(,"session":")" + Hex(random, 16) +
            R"(","user":{"name":")" + Word(random) + "_" + Word(random) + std::to_string(random.Below(1000)) +
            R"(","email":")" + Word(random) + "." + Word(random) + R"(@example.org","age":)" +
            std::to_string(18 + random.Below(60)) + R"(},"score":)" + std::to_string(random.Below(100'000)) +
            "." + std::to_string(random.Below(100)) + R"(,"active":)" +
            (random.Below(3) != 0 ? "true" : "false") + R"(,"tags":[")" + Word(random) + R"(",")" +
            Word(random) + R"("],"updated_at":"2024-0)" + std::to_string(1 + random.Below(9)) + "-1" +
            std::to_string(random.Below(10)) + "T" + std::to_string(10 + random.Below(10)) + ":" +
            std::to_string(10 + random.Below(50)) + R"(:00Z"})" + "\n";
  }
  // A page seldom begins where a record does.
  std::memcpy(page, text.data() + random.Below(text.size() - kPageBytes + 1), kPageBytes);
}

void FillProse(Random& random, uint8_t* page) {
  std::string text;
  int in_sentence = 0;
  while (text.size() < kPageBytes) {
    text += Word(random);
    text += ++in_sentence > 8 && random.Below(6) == 0 ? (in_sentence = 0, ".\n") : " ";
  }
  std::memcpy(page, text.data(), kPageBytes);
}

// Objects of a managed or C++ heap: header, class pointer, pointers within 64 KiB, small fields, slack.
void FillObjects(Random& random, uint8_t* page) {
  const uint64_t heap = 0x7f00'0000'0000u + random.Below(64) * 0x40'0000u;
  const uint64_t classes = 0x5555'5560'0000u;
  size_t at = 0;
  while (at < kPageBytes / 8) {
    uint64_t fields[10] = {};
    const size_t count = 4 + random.Below(7);
    fields[0] = (random.Below(16) << 32) | 1;
    fields[1] = classes + random.Below(24) * 0x60;
    for (size_t i = 2; i < count; ++i) {
      switch (random.Below(8)) {
        case 0:
        case 1:
        case 2:
          fields[i] = heap + random.Below(1u << 12) * 16;
          break;
        case 3:
          fields[i] = random.Below(256);
          break;
        case 4:
          fields[i] = random.Next() & 0xffff'ffffu;
          break;
        default:
          break;  // a null pointer or slack
      }
    }
    const size_t room = kPageBytes / 8 - at;
    const size_t n = count < room ? count : room;
    std::memcpy(page + at * 8, fields, n * 8);
    at += n;
  }
}

void FillIntegers(Random& random, uint8_t* page) {
  uint32_t value = static_cast<uint32_t>(random.Below(1'000'000));
  for (size_t i = 0; i < kPageBytes / 4; ++i) {
    value += static_cast<uint32_t>(random.Below(random.Below(8) == 0 ? 5000 : 12));
    std::memcpy(page + i * 4, &value, 4);
  }
}

void FillDoubles(Random& random, uint8_t* page) {
  // Measurements to two decimals; the mantissas look random all the same.
  double value = 20.0 + static_cast<double>(random.Below(1000)) / 100;
  for (size_t i = 0; i < kPageBytes / 8; ++i) {
    value += (static_cast<double>(random.Below(200)) - 100) / 100;
    const double rounded = std::round(value * 100) / 100;
    std::memcpy(page + i * 8, &rounded, 8);
  }
}

void FillNoise(Random& random, uint8_t* page) {
  for (size_t i = 0; i < kPageBytes; i += 8) {
    const uint64_t word = random.Next();
    std::memcpy(page + i, &word, 8);
  }
}

}  // namespace

std::vector<uint8_t> BuiltinPages(size_t pages, uint64_t seed) {
  std::vector<uint8_t> bytes(pages * kPageBytes);
  Random random(seed);
  for (size_t i = 0; i < pages; ++i) {
    uint8_t* page = &bytes[i * kPageBytes];
    const uint64_t kind = random.Below(100);
    if (kind < 30) {
      FillJson(random, page);
    } else if (kind < 42) {
      FillProse(random, page);
    } else if (kind < 79) {
      FillObjects(random, page);
    } else if (kind < 87) {
      FillIntegers(random, page);
    } else if (kind < 91) {
      FillDoubles(random, page);
    } else if (kind < 93) {
      FillNoise(random, page);
    }  // else: zeroed
  }
  return bytes;
}

}  // namespace uzswap::bench
