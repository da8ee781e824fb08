// The process that switches the peer's swap on and, whatever becomes of the bench, off again.
//
// Idea: `uzswap-bench --keep-swap KIND BYTES FOLDER` sets the swap up, says so in one line, and waits for the
// end of its standard input. That comes when the bench asks for it, fails, is interrupted or is killed; then
// the keeper undoes everything, answers once more, and ends. It ignores the signals that a terminal sends.
//
// "Swap is on already" refuses the run (throws), other reasons for a missing peer are an outcome: reason().
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "tools/bench/child_process.h"

namespace uzswap::bench {

class SwapKeeper {
 public:
  // kind: "zram", "zswap" or "none" (no peer wanted). `bytes`: uncompressed capacity. Throws BenchError if
  // the peer exists and its set-up failed.
  SwapKeeper(const std::string& kind, uint64_t bytes, const std::string& folder);

  // Whether the peer's swap is on.
  bool available() const { return child_ != nullptr; }
  // Why there is no peer; "" if there is one.
  const std::string& reason() const { return reason_; }
  const std::string& compressor() const { return compressor_; }
  // Name of the block device below /sys/block, "" if there is none.
  const std::string& device() const { return device_; }
  // Switches swap off. The destructor does too. May take as long as reading everything back.
  void Stop() { child_.reset(); }

 private:
  std::unique_ptr<ChildProcess> child_;
  std::string reason_;
  std::string compressor_;
  std::string device_;
};

// The keeper's main; arguments after --keep-swap. Returns the exit status.
int SwapKeeperMain(int argc, char** argv);

}  // namespace uzswap::bench
