// Figures that have a goal: the table and the JSON document tell whether it was reached.
#pragma once

#include <optional>
#include <string>

#include "tools/bench/report.h"

namespace uzswap::bench {

struct Goal {
  enum class Kind { kAtLeast, kAtMost };
  Kind kind;
  double value;
  bool ReachedBy(double figure) const { return kind == Kind::kAtLeast ? figure >= value : figure <= value; }
};
inline constexpr Goal AtLeast(double value) { return {Goal::Kind::kAtLeast, value}; }
inline constexpr Goal AtMost(double value) { return {Goal::Kind::kAtMost, value}; }

// Adds `figure` as ours, with the goal behind its meaning and in details.goals.
void AddWithGoal(Report& report, const std::string& name, double figure, std::optional<double> peer,
                 Goal goal, const std::string& meaning);
inline void AddWithGoal(Report& report, const std::string& name, double figure, Goal goal,
                        const std::string& meaning) {
  AddWithGoal(report, name, figure, std::nullopt, goal, meaning);
}

}  // namespace uzswap::bench
