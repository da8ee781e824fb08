#include "tools/bench/goal.h"
#include "tools/bench/pool_parts.h"
#include "tools/bench/stored_pages.h"

namespace uzswap::bench {
namespace {

constexpr unsigned kTurnovers = 6;
constexpr zp::NodeId kNode{0};

}  // namespace

void MeasureDensity(const Options& options, const PageSource& source, Report& report) {
  const uint64_t pages = options.region_pages();
  {
    StoredPages zbud(source, pages, options.seed, zp::PoolKind::kZbud);
    report.Add("zbud_density", zbud.Density(), std::nullopt, "the pool of two objects per frame, filled");
  }
  for (const bool compacted : {true, false}) {
    nlohmann::json& rounds = report.Part("details")["pool"][compacted ? "turnover_compacted" : "turnover"];
    StoredPages stored(source, pages, options.seed);
    uint64_t turned_over = 0;
    uint64_t copied = 0;
    for (unsigned round = 0; round < kTurnovers; ++round) {
      turned_over += stored.Replace(pages / 2);
      if (compacted) copied += stored.Compact(kNode);
      rounds.push_back(stored.Density());
    }
    const double turned = stored.Density();
    stored.ShrinkTo(pages / 8);
    if (compacted) stored.Compact(kNode);
    const double shrunk = stored.Density();
    stored.Verify();
    if (compacted) {
      AddWithGoal(report, "turnover_density", turned, AtLeast(.97),
                  "after six rounds of replacing half at random, compacted after each");
      AddWithGoal(report, "turnover_copies_percent",
                  turned_over == 0 ? 0 : static_cast<double>(copied) * 100 / static_cast<double>(turned_over),
                  AtMost(2), "objects copied for that / objects replaced");
      AddWithGoal(report, "shrunk_density", shrunk, AtLeast(.95),
                  "then all but an eighth released at random, compacted");
    } else {
      report.Add("turnover_density_uncompacted", turned, std::nullopt, "the same without compaction");
      report.Add("shrunk_density_uncompacted", shrunk, std::nullopt, "the same without compaction");
    }
  }
}

}  // namespace uzswap::bench
