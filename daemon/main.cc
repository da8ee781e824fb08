// uzswapd: see daemon/DESIGN.md.
#include <malloc.h>
#include <signal.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "daemon/control/estate.h"
#include "daemon/control/server.h"
#include "daemon/keeper/fd_store.h"
#include "daemon/keeper/keeper.h"
#include "daemon/keeper/supervisor.h"
#include "daemon/options.h"

namespace uzswap {
namespace {

uint64_t MachineBytes() {
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// Each client costs a few descriptors; the soft limit's 1024 would be the first thing to run out.
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);
}

int Fail(const zp::Error& error, const Options& options) {
  if (error.code == zp::Errc::kExists) {
    spdlog::error("{}: {}. Stop it first, or give --socket another path.", options.socket_path, error.op);
  } else {
    spdlog::error("cannot start: {}: {} (socket {})", error.op,
                  error.sys_errno != 0 ? strerror(error.sys_errno) : zp::ErrcName(error.code),
                  options.socket_path);
  }
  return 1;
}

// What a successor is started with: no more of the command line than is still true.
std::vector<std::string> SuccessorArguments(int argc, char** argv) {
  std::vector<std::string> arguments;
  for (int i = 0; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--supervise") continue;
    if (argument == "--ready-fd" || argument == "--successor") {
      ++i;
    } else if (!argument.starts_with("--ready-fd=")) {
      arguments.push_back(argument);
    }
  }
  return arguments;
}

int Main(int argc, char** argv) {
  int exit_status = 0;
  auto options = ParseOptions(argc, argv, &exit_status);
  if (!options.has_value()) return exit_status;
  spdlog::set_default_logger(spdlog::stderr_color_mt("uzswapd"));
  spdlog::set_pattern("%n: %l: %v");
  spdlog::set_level(options->log_level == "warn" ? spdlog::level::warn
                                                 : spdlog::level::from_str(options->log_level));
  if (options->check_state >= 0) return Estate::Check(options->check_state);
  if (options->supervise) {
    const int status = Supervise();
    if (status >= 0) return status;
  }
  (void)prctl(PR_SET_NAME, "uzswapd");  // a successor's would be that of its descriptor
  (void)signal(SIGPIPE, SIG_IGN);
  RaiseDescriptorLimit();
  if (options->pool_limit_bytes == 0) options->pool_limit_bytes = MachineBytes() / 2;

  const FdStore kept = FdStore::Find();
  const bool takes_over = options->successor >= 0 || kept.HasState();
  auto estate = takes_over ? Estate::TakeOver(*options, kept) : Estate::Create(*options);
  if (!estate.ok()) return Fail(estate.error(), *options);
  Keeper keeper(*estate->table, SuccessorArguments(argc, argv));
  Server server(*options, *estate, keeper);
  const auto started = server.Start();
  if (!started.ok()) {
    const int status = Fail(started.error(), *options);
    // What was taken over is the next one's: no destructor may give it up.
    if (takes_over) _exit(status);
    return status;
  }
  FdStore::Ready(options->socket_path);
  if (options->ready_fd >= 0 && options->successor < 0) {
    (void)!write(options->ready_fd, "1\n", 2);
    (void)close(options->ready_fd);
  }
  spdlog::info("listening on {}, pool {} of at most {} MiB, codec {}", options->socket_path, options->pool,
               options->pool_limit_bytes >> 20, options->codec);
  const int status = server.Run();
  if (status != 0) _exit(status);  // a failure: the successor's turn, see above
  // Everything is home, or nobody is left.
  estate->table->header().armed.store(0);
  return 0;
}

}  // namespace
}  // namespace uzswap

int main(int argc, char** argv) { return uzswap::Main(argc, argv); }
