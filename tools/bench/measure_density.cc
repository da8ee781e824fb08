#include <string>

#include "tools/bench/goal.h"
#include "tools/bench/pool_parts.h"
#include "tools/bench/stored_pages.h"

namespace uzswap::bench {
namespace {

constexpr unsigned kTurnovers = 6;
constexpr zp::NodeId kNode{0};

struct Turned {
  double turned = 0;  // density after the turnovers
  double shrunk = 0;  // and when most were released
  double copies_percent = 0;
};

// Replaces half at random, again and again, then releases all but an eighth; compacted after each, or not.
Turned Turn(const Options& options, const PageSource& source, zp::PoolKind kind, bool compacted,
            nlohmann::json& rounds) {
  const uint64_t pages = options.region_pages();
  StoredPages stored(source, pages, options.seed, kind);
  uint64_t turned_over = 0;
  uint64_t copied = 0;
  Turned result;
  for (unsigned round = 0; round < kTurnovers; ++round) {
    turned_over += stored.Replace(pages / 2);
    if (compacted) copied += stored.Compact(kNode);
    rounds.push_back(stored.Density());
  }
  result.turned = stored.Density();
  result.copies_percent =
      turned_over == 0 ? 0 : static_cast<double>(copied) * 100 / static_cast<double>(turned_over);
  stored.ShrinkTo(pages / 8);
  if (compacted) stored.Compact(kNode);
  result.shrunk = stored.Density();
  stored.Verify();
  return result;
}

}  // namespace

void MeasureDensity(const Options& options, const PageSource& source, Report& report) {
  nlohmann::json& details = report.Part("details")["pool"];
  {
    StoredPages zbud(source, options.region_pages(), options.seed, zp::PoolKind::kZbud);
    report.Add("zbud_density", zbud.Density(), std::nullopt, "the pool of two objects per frame, filled");
  }
  const zp::PoolKind zsmalloc = zp::PoolKind::kZsmalloc;
  const Turned packed = Turn(options, source, zsmalloc, true, details["turnover_compacted"]);
  AddWithGoal(report, "turnover_density", packed.turned, AtLeast(.97),
              "after six rounds of replacing half at random, compacted after each");
  AddWithGoal(report, "turnover_copies_percent", packed.copies_percent, AtMost(2),
              "objects copied for that / objects replaced");
  AddWithGoal(report, "shrunk_density", packed.shrunk, AtLeast(.95),
              "then all but an eighth released at random, compacted");
  const Turned left = Turn(options, source, zsmalloc, false, details["turnover"]);
  report.Add("turnover_density_uncompacted", left.turned, std::nullopt, "the same without compaction");
  report.Add("shrunk_density_uncompacted", left.shrunk, std::nullopt, "the same without compaction");
  for (const bool compacted : {true, false}) {
    const char* const name = compacted ? "zbud_turnover_compacted" : "zbud_turnover";
    const Turned zbud = Turn(options, source, zp::PoolKind::kZbud, compacted, details[name]);
    const std::string suffix = compacted ? "" : "_uncompacted";
    report.Add("zbud_turnover_density" + suffix, zbud.turned, std::nullopt, "the same of zbud");
    report.Add("zbud_shrunk_density" + suffix, zbud.shrunk, std::nullopt, "the same of zbud");
    if (compacted)
      report.Add("zbud_turnover_copies_percent", zbud.copies_percent, std::nullopt, "the same of zbud");
  }
}

}  // namespace uzswap::bench
