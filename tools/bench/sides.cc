#include "tools/bench/commands.h"

namespace uzswap::bench {

Sides::Sides(const Options& options, const SwapKeeper& keeper) {
  if (options.ours) {
    ours = std::make_unique<MeasuredProgram>(MeasuredProgram::Side::kOurs, options.uzswap);
    ours->Fill(options.region_pages(), options.pages, options.seed);
  }
  if (keeper.available()) {
    peer = std::make_unique<MeasuredProgram>(MeasuredProgram::Side::kPeer, "");
    peer->Fill(options.region_pages(), options.pages, options.seed);
  }
}

}  // namespace uzswap::bench
