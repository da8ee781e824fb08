#include "tools/bench/commands.h"
#include "tools/bench/series.h"

namespace uzswap::bench {

void MeasureEvict(const Options& options, const SwapKeeper& peer, Report& report) {
  Sides sides(options, peer);
  Series wall, cpu, program_cpu, daemon_cpu, kernel_cpu, gone;
  for (unsigned round = 0; round < options.rounds; ++round) {
    sides.ForEach(round, [&](MeasuredProgram& program) {
      const Eviction eviction = program.Evict();
      const auto pages = static_cast<double>(eviction.pages);
      wall.Put(program.side(), eviction.wall_us / pages);
      cpu.Put(program.side(), eviction.cpu_us() / pages);
      program_cpu.Put(program.side(), eviction.program_us / pages);
      daemon_cpu.Put(program.side(), eviction.daemon_us / pages);
      kernel_cpu.Put(program.side(), eviction.kernel_us / pages);
      gone.Put(program.side(), pages);
      program.Verify();
    });
  }
  report.Add("evict_wall_us_per_page", wall.ours(), wall.peer(), "eviction of a dirty page");
  report.Add("evict_cpu_us_per_page", cpu.ours(), cpu.peer(), "CPU for it, everything together");
  report.Add("evict_program_cpu_us_per_page", program_cpu.ours(), program_cpu.peer(),
             "of that: the program (agent; the peer's codec)");
  report.Add("evict_daemon_cpu_us_per_page", daemon_cpu.ours(), std::nullopt, "of that: the daemon");
  report.Part("details")["evict"] = {{"evict_wall_us_per_page", wall.rounds()},
                                     {"evict_cpu_us_per_page", cpu.rounds()},
                                     {"evict_program_cpu_us_per_page", program_cpu.rounds()},
                                     {"evict_daemon_cpu_us_per_page", daemon_cpu.rounds()},
                                     {"evict_kernel_threads_cpu_us_per_page", kernel_cpu.rounds()},
                                     {"pages", gone.rounds()},
                                     {"daemon", sides.ours ? sides.ours->DaemonState() : nullptr}};
}

}  // namespace uzswap::bench
