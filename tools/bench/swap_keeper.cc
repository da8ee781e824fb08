#include "tools/bench/swap_keeper.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "tools/bench/error.h"
#include "tools/bench/kernel_swap.h"

namespace uzswap::bench {
namespace {

void Answer(const nlohmann::json& answer) {
  std::printf("%s\n", answer.dump().c_str());
  std::fflush(stdout);
}

void WaitForEndOfInput() {
  char byte;
  while (true) {
    const ssize_t n = ::read(STDIN_FILENO, &byte, 1);
    if (n == 0 || (n < 0 && errno != EINTR)) return;
  }
}

}  // namespace

SwapKeeper::SwapKeeper(const std::string& kind, uint64_t bytes, const std::string& folder) {
  if (kind == "none") {
    reason_ = "not asked for (--against none)";
    return;
  }
  if (!NoSwapIsOn()) {
    throw BenchError(
        "swap is on already (see /proc/swaps); the bench touches no swap but its own: swapoff it first, or "
        "use --against none");
  }
  child_ = std::make_unique<ChildProcess>(
      std::vector<std::string>{OwnPath(), "--keep-swap", kind, std::to_string(bytes), folder},
      ChildProcess::Kind::kCleansUpByItself);
  const nlohmann::json answer = child_->Read(std::chrono::seconds(60));
  if (answer.contains("unavailable")) {
    reason_ = answer["unavailable"].get<std::string>();
    child_.reset();
    return;
  }
  compressor_ = answer.at("compressor").get<std::string>();
  device_ = answer.at("device").get<std::string>();
}

int SwapKeeperMain(int argc, char** argv) {
  if (argc != 3) return 2;
  for (const int signal_number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE})
    ::signal(signal_number, SIG_IGN);
  try {
    const auto swap = SetUpKernelSwap(argv[0], std::strtoull(argv[1], nullptr, 10), argv[2]);
    Answer({{"compressor", swap->compressor()}, {"device", swap->device()}});
    WaitForEndOfInput();
  } catch (const Unavailable& unavailable) {
    Answer({{"unavailable", unavailable.what()}});
  } catch (const std::exception& failure) {
    Answer({{"error", failure.what()}});
    return 1;
  }
  return 0;
}

}  // namespace uzswap::bench
