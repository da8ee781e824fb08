#include "tools/uzswap/human.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace uzswap::cli {
namespace {

// Three significant digits of a value in [0, 1000). The bounds are where rounding would add a digit.
std::string ThreeDigits(double value) {
  if (value < 9.995) return fmt::format("{:.2f}", value);
  if (value < 99.95) return fmt::format("{:.1f}", value);
  return fmt::format("{:.0f}", value);
}

}  // namespace

std::string FormatBytes(uint64_t bytes) {
  if (bytes == 0) return "0";
  if (bytes < 1000) return fmt::format("{}B", bytes);
  constexpr std::array kUnits = {'K', 'M', 'G', 'T', 'P', 'E'};
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 999.5 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  std::string digits = ThreeDigits(value);
  // 4M where it is just that; 4.00M says that it is nearly so.
  if (std::round(value * 10) == value * 10 && digits.find('.') != std::string::npos) {
    digits = fmt::format("{}", std::round(value * 10) / 10);
  }
  return digits + kUnits[unit];
}

std::string FormatCount(uint64_t count) {
  if (count < 100'000) return fmt::format("{}", count);
  constexpr std::array kUnits = {'k', 'M', 'G', 'T', 'P', 'E'};
  double value = static_cast<double>(count) / 1000;
  size_t unit = 0;
  for (; value >= 999.5 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  return ThreeDigits(value) + kUnits[unit];
}

std::string FormatMicros(double microseconds) {
  if (!(microseconds > 0)) return "-";
  const auto brief = [](double value) { return fmt::format("{:.{}f}", value, value < 9.95 ? 1 : 0); };
  if (microseconds < 999.5) return brief(microseconds) + "us";
  if (microseconds < 999.5e3) return brief(microseconds / 1e3) + "ms";
  return brief(std::min(microseconds / 1e6, 9999.0)) + "s";
}

std::string FormatRatio(double ratio) {
  if (!(ratio > 0)) return "-";
  return ThreeDigits(std::min(ratio, 99999.0));
}

std::string FormatDuration(double seconds) {
  if (!(seconds >= 0)) return "-";
  if (seconds < 59.95) return fmt::format("{:.1f} s", seconds);
  const auto s = static_cast<uint64_t>(std::llround(std::min(seconds, 1e12)));
  if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{} h {:02} min", s / 3600, s / 60 % 60);
  return fmt::format("{} d {:02} h", s / 86400, s / 3600 % 24);
}

}  // namespace uzswap::cli
