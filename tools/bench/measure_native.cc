#include <algorithm>

#include "tools/bench/commands.h"
#include "tools/bench/series.h"

namespace uzswap::bench {
namespace {

// Short, so that what else the machine does falls on both sides alike.
constexpr unsigned kSliceMilliseconds = 100;

}  // namespace

void MeasureNative(const Options& options, Report& report) {
  nlohmann::json& details = report.Part("details")["native"];
  const unsigned slice = std::min(options.milliseconds, kSliceMilliseconds);
  const unsigned slices = options.milliseconds / slice;
  for (const std::string kind : {"malloc", "mmap"}) {
    Series rate, cpu_rate;
    std::vector<double> ratios;
    for (unsigned round = 0; round < options.rounds; ++round) {
      // New processes each round: where a process's memory happens to lie can make a per cent or two.
      MeasuredProgram attached(MeasuredProgram::Side::kOurs, options.uzswap);
      MeasuredProgram native(MeasuredProgram::Side::kPeer, "");
      for (unsigned i = 0; i < slices; ++i) {
        LoadRate measured[2];
        for (unsigned turn = 0; turn < 2; ++turn) {
          const unsigned which = (turn + i + round) % 2;
          MeasuredProgram& program = which == 0 ? attached : native;
          measured[which] = program.Load(kind, slice);
          rate.Put(program.side(), measured[which].per_second);
          cpu_rate.Put(program.side(), measured[which].per_cpu_second);
        }
        ratios.push_back(measured[0].per_cpu_second / measured[1].per_cpu_second);
      }
    }
    report.Add(kind + "_operations_per_second", rate.ours_undisturbed(), rate.peer_undisturbed(),
               "attached without a limit; peer: not attached");
    report.Add(kind + "_operations_per_cpu_second", cpu_rate.ours_undisturbed(), cpu_rate.peer_undisturbed(),
               "the same by CPU time");
    details[kind + "_operations_per_second"] = rate.rounds();
    details[kind + "_operations_per_cpu_second"] = cpu_rate.rounds();
    details[kind + "_operations_per_second_median"] = {{"ours", *rate.ours()}, {"peer", *rate.peer()}};
    details[kind + "_cpu_ratio_of_pairs_median"] = Median(ratios);
  }
}

}  // namespace uzswap::bench
