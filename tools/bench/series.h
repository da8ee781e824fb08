// A figure's values over the rounds, on both sides.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tools/bench/measured_program.h"
#include "tools/bench/stats.h"

namespace uzswap::bench {

class Series {
 public:
  void Put(MeasuredProgram::Side side, double value) {
    (side == MeasuredProgram::Side::kOurs ? ours_ : peer_).push_back(value);
  }

  // The median of the rounds; nothing if that side was not measured.
  std::optional<double> ours() const { return Middle(ours_); }
  std::optional<double> peer() const { return Middle(peer_); }
  // The value that one in ten reaches: for rates of short slices, of which a busy machine only ever takes
  // away.
  std::optional<double> ours_undisturbed() const { return Upper(ours_); }
  std::optional<double> peer_undisturbed() const { return Upper(peer_); }
  nlohmann::json rounds() const { return {{"ours", ours_}, {"peer", peer_}}; }

 private:
  static std::optional<double> Middle(const std::vector<double>& values) {
    if (values.empty()) return std::nullopt;
    return Median(values);
  }
  static std::optional<double> Upper(std::vector<double> values) {
    if (values.empty()) return std::nullopt;
    return Percentile(values, 900);
  }

  std::vector<double> ours_;
  std::vector<double> peer_;
};

}  // namespace uzswap::bench
