// Figures as people read them: at most five characters wide, two or three significant digits.
#pragma once

#include <cstdint>
#include <string>

namespace uzswap::cli {

// 0, 512B, 4K, 99.9M, 1.5G, 1.48G, 812T; 1024-based. No zeros behind the point if the figure is exact.
std::string FormatBytes(uint64_t bytes);

// 0, 99999, 123k, 1.23M, 45.6G; 1000-based from 100,000 on.
std::string FormatCount(uint64_t count);

// 6.5us, 120us, 1.2ms, 3.0s; "-" for zero and below: nothing was measured.
std::string FormatMicros(double microseconds);

// 1.71; "-" for zero and below: nothing is stored.
std::string FormatRatio(double ratio);

// "12.3 s", "4 min 05 s", "2 h 03 min", "3 d 04 h".
std::string FormatDuration(double seconds);

}  // namespace uzswap::cli
