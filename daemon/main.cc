// uzswapd: see daemon/DESIGN.md.
#include <malloc.h>
#include <signal.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>

#include "daemon/control/server.h"
#include "daemon/options.h"
#include "libzpool/frame/topology.h"

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

int Main(int argc, char** argv) {
  int exit_status = 0;
  auto options = ParseOptions(argc, argv, &exit_status);
  if (!options.has_value()) return exit_status;
  spdlog::set_default_logger(spdlog::stderr_color_mt("uzswapd"));
  spdlog::set_pattern("%n: %l: %v");
  spdlog::set_level(options->log_level == "warn" ? spdlog::level::warn
                                                 : spdlog::level::from_str(options->log_level));
  (void)signal(SIGPIPE, SIG_IGN);
  RaiseDescriptorLimit();
  if (options->pool_limit_bytes == 0) options->pool_limit_bytes = MachineBytes() / 2;

  auto table = ClientTable::Create();
  if (!table.ok()) return Fail(table.error(), *options);
  auto store = zp::PageStore::Create({.topology = zp::Topology::Detect(),
                                      .capacity = zp::Bytes(options->pool_limit_bytes),
                                      .codec = *zp::FindCodec(options->codec),
                                      .pool = *zp::FindPool(options->pool)});
  if (!store.ok()) return Fail(store.error(), *options);
  auto index_arena = zp::IndexArena::Create();
  if (!index_arena.ok()) return Fail(index_arena.error(), *options);

  Server server(*options, **store, **index_arena, *table);
  const auto started = server.Start();
  if (!started.ok()) return Fail(started.error(), *options);
  if (options->ready_fd >= 0) {
    (void)!write(options->ready_fd, "1\n", 2);
    (void)close(options->ready_fd);
  }
  spdlog::info("listening on {}, pool {} of at most {} MiB, codec {}", options->socket_path, options->pool,
               options->pool_limit_bytes >> 20, options->codec);
  return server.Run();
}

}  // namespace
}  // namespace uzswap

int main(int argc, char** argv) { return uzswap::Main(argc, argv); }
