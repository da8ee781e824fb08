#include "tools/bench/commands.h"
#include "tools/bench/series.h"

namespace uzswap::bench {
namespace {

constexpr uint64_t kMostTouches = 4096;

}  // namespace

void MeasureFault(const Options& options, const SwapKeeper& peer, Report& report) {
  Sides sides(options, peer);
  Series p50, p99, mean, no_fault, sequential, sequential_cpu;
  for (unsigned round = 0; round < options.rounds; ++round) {
    sides.ForEach(round, [&](MeasuredProgram& program) {
      program.Evict();
      const nlohmann::json touched =
          program.TouchRandomly(kMostTouches, options.seed + round, options.gap_us);
      p50.Put(program.side(), touched.at("p50_us"));
      p99.Put(program.side(), touched.at("p99_us"));
      mean.Put(program.side(), touched.at("mean_us"));
      no_fault.Put(program.side(), touched.at("below_half_us_permille"));
      program.Verify();  // brings everything home, too
    });
    sides.ForEach(round, [&](MeasuredProgram& program) {
      program.Evict();
      const nlohmann::json touched = program.TouchSequentially();
      sequential.Put(program.side(), touched.at("us_per_page"));
      sequential_cpu.Put(program.side(), touched.at("cpu_us_per_page"));
      program.Verify();
    });
  }
  report.Add("random_p50_us", p50.ours(), p50.peer(), "re-read of one evicted page, median");
  report.Add("random_p99_us", p99.ours(), p99.peer(), "the same, 99th percentile");
  report.Add("random_mean_us", mean.ours(), mean.peer(), "the same, mean");
  report.Add("sequential_us_per_page", sequential.ours(), sequential.peer(), "re-read in order");
  report.Add("sequential_cpu_us_per_page", sequential_cpu.ours(), sequential_cpu.peer(),
             "CPU of program + daemon for it");
  report.Part("details")["fault"] = {{"random_p50_us", p50.rounds()},
                                     {"random_p99_us", p99.rounds()},
                                     {"sequential_us_per_page", sequential.rounds()},
                                     {"random_touches_below_half_us_permille", no_fault.rounds()},
                                     {"daemon", sides.ours ? sides.ours->DaemonState() : nullptr}};
}

}  // namespace uzswap::bench
