#include "tools/bench/goal.h"

#include <fmt/format.h>

namespace uzswap::bench {

void AddWithGoal(Report& report, const std::string& name, double figure, std::optional<double> peer,
                 Goal goal, const std::string& meaning) {
  const bool reached = goal.ReachedBy(figure);
  const char* const sign = goal.kind == Goal::Kind::kAtLeast ? ">=" : "<=";
  report.Add(name, figure, peer,
             fmt::format("{} [goal {} {:g}: {}]", meaning, sign, goal.value, reached ? "reached" : "missed"));
  report.Part("details")["goals"][name] = {{"is", sign}, {"goal", goal.value}, {"reached", reached}};
}

}  // namespace uzswap::bench
