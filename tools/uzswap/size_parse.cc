#include "tools/uzswap/size_parse.h"

#include <fmt/format.h>

#include <cctype>
#include <limits>

#include "daemon/wire/message.h"
#include "tools/uzswap/human.h"

namespace uzswap::cli {
namespace {

constexpr char kExample[] = "write it like 512M, 1.5G, 64k or 123456 (K, M, G, T are 1024-based)";

Message Malformed(std::string_view text, std::string_view why) {
  return {fmt::format("'{}' is not a size: {}; {}", text, why, kExample)};
}

__extension__ using Uint128 = unsigned __int128;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

std::string_view Trim(std::string_view s) {
  while (!s.empty() && s.front() == ' ') s.remove_prefix(1);
  while (!s.empty() && s.back() == ' ') s.remove_suffix(1);
  return s;
}

// Bytes of a unit, 0 if there is no such unit.
uint64_t UnitBytes(std::string_view unit) {
  if (unit.empty() || unit == "B" || unit == "b") return 1;
  unsigned shift = 0;
  switch (std::tolower(static_cast<unsigned char>(unit[0]))) {
    case 'k':
      shift = 10;
      break;
    case 'm':
      shift = 20;
      break;
    case 'g':
      shift = 30;
      break;
    case 't':
      shift = 40;
      break;
    default:
      return 0;
  }
  std::string_view rest = unit.substr(1);
  const bool known =
      rest.empty() || rest == "i" || rest == "B" || rest == "b" || rest == "iB" || rest == "ib";
  return known ? 1ull << shift : 0;
}

}  // namespace

OrMessage<uint64_t> ParseSize(std::string_view text) {
  constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();
  // Twelve digits of fraction are below a byte of every unit that we know (2^40 < 10^13).
  constexpr int kFractionDigits = 13;

  std::string_view s = Trim(text);
  if (s.empty()) return Malformed(text, "it is empty");
  if (s.front() == '-') return Malformed(text, "it is negative");
  if (s.back() == '%') {
    return Message{
        fmt::format("'{}': a share of memory is not supported, only a fixed size; {}", text, kExample)};
  }

  size_t at = 0;
  uint64_t whole = 0;
  bool overflow = false;
  while (at < s.size() && IsDigit(s[at])) {
    overflow |= __builtin_mul_overflow(whole, 10u, &whole);
    overflow |= __builtin_add_overflow(whole, static_cast<unsigned>(s[at] - '0'), &whole);
    ++at;
  }
  if (at == 0) return Malformed(text, "it does not begin with a digit");

  uint64_t fraction = 0;
  uint64_t fraction_scale = 1;
  const bool has_fraction = at < s.size() && s[at] == '.';
  if (has_fraction) {
    const size_t first = ++at;
    for (; at < s.size() && IsDigit(s[at]); ++at) {
      if (at - first >= kFractionDigits) continue;
      fraction = fraction * 10 + static_cast<unsigned>(s[at] - '0');
      fraction_scale *= 10;
    }
    if (at == first) return Malformed(text, "digits are missing after the point");
  }

  const std::string_view unit = Trim(s.substr(at));
  const uint64_t unit_bytes = UnitBytes(unit);
  if (unit_bytes == 0) return Malformed(text, fmt::format("'{}' is no unit", unit));
  if (has_fraction && unit_bytes == 1) return Malformed(text, "a fraction needs a unit");

  uint64_t bytes = 0;
  overflow |= __builtin_mul_overflow(whole, unit_bytes, &bytes);
  const auto part = static_cast<uint64_t>(static_cast<Uint128>(fraction) * unit_bytes / fraction_scale);
  overflow |= __builtin_add_overflow(bytes, part, &bytes);
  if (overflow || bytes > kMax) return Malformed(text, "it is greater than any memory (8388607T at most)");
  return bytes;
}

std::string CheckResidentLimit(uint64_t bytes) {
  if (bytes >= wire::kMinLimitBytes) return "";
  return fmt::format(
      "a resident limit of {} is below {}: the dynamic linker, libc and the stacks alone take about that, so "
      "the "
      "program would do nothing but fault; give it {} or more",
      FormatBytes(bytes), FormatBytes(wire::kMinLimitBytes), FormatBytes(wire::kMinLimitBytes));
}

}  // namespace uzswap::cli
