#include "daemon/options.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>

#include "daemon/wire/message.h"

namespace uzswap {

namespace {
constexpr uint64_t kGreatestLimit = uint64_t{1} << 56;  // also what a negative number looks like
}  // namespace

std::optional<Options> ParseOptions(int argc, char** argv, int* exit_status) {
  Options options;
  const char* from_environment = getenv("UZSWAP_SOCKET");
  options.socket_path =
      from_environment != nullptr && *from_environment != 0 ? from_environment : wire::kDefaultSocketPath;

  CLI::App app(
      "uzswapd: holds the cold memory of attached programs, compressed, and gives it back when it is "
      "touched.");
  app.footer(
      "Programs attach through `uzswap run -- CMD` or LD_PRELOAD=libuzswap-agent.so.\n"
      "Needs Linux 6.8, /dev/userfaultfd and CAP_SYS_PTRACE; `uzswap doctor` tells what is missing.");
  app.set_version_flag("--version", std::string("uzswapd ") + kVersionText);
  app.add_option("--socket", options.socket_path, "listen there (also: UZSWAP_SOCKET)")
      ->capture_default_str();
  app.add_flag("--embedded", options.embedded, "end with the last client, once stdin is closed");
  app.add_option("--ready-fd", options.ready_fd, "write \"1\\n\" to this descriptor when clients can attach");
  app.add_option("--codec", options.codec, "how pages are compressed at eviction")
      ->check(CLI::IsMember({"lz4", "raw"}))
      ->capture_default_str();
  app.add_option("--pool", options.pool, "how compressed pages are kept")
      ->check(CLI::IsMember({"zsmalloc", "zbud"}))
      ->capture_default_str();
  app.add_option("--pool-limit", options.pool_limit_bytes,
                 "most memory for compressed pages, such as 8G; default: half of the machine's")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--log-level", options.log_level, "what is logged")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.add_flag(
      "--supervise", options.supervise,
      "stay in the foreground as the parent of the daemon and of its successors; for service managers");
  // What a keeper and `uzswap upgrade` pass; nothing for people.
  app.add_option("--successor", options.successor)->group("");
  app.add_option("--check-state", options.check_state)->group("");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    *exit_status = app.exit(error) == 0 ? 0 : 2;
    return std::nullopt;
  }
  if (options.pool_limit_bytes > kGreatestLimit) {
    std::cerr << "--pool-limit: more than any machine has; write a size such as 512M or 8G\n";
    *exit_status = 2;
    return std::nullopt;
  }
  return options;
}

}  // namespace uzswap
