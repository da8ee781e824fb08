// uzswap-bench: measures uzswap, side by side with the kernel's zram and zswap. See README.md.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>
#include <string>

#include "tools/bench/commands.h"
#include "tools/bench/error.h"
#include "tools/bench/interrupt.h"
#include "tools/bench/options.h"
#include "tools/bench/page_source.h"
#include "tools/bench/report.h"
#include "tools/bench/swap_keeper.h"
#include "tools/bench/worker.h"

namespace uzswap::bench {
namespace {

constexpr uint64_t kMostMegabytes = 64 * 1024;

// The CLI: beside this program where it is installed, in the folder next to it in a build tree, else by PATH.
std::string FindUzswap() {
  const std::string own = OwnPath();
  const std::string folder = own.substr(0, own.rfind('/'));
  for (const std::string& path : {folder + "/uzswap", folder + "/../uzswap/uzswap"}) {
    if (::access(path.c_str(), X_OK) == 0 && path != own) return path;
  }
  return "uzswap";
}

void AddMemoryOptions(CLI::App& command, Options& options) {
  command.add_option("--megabytes", options.megabytes, "MiB of memory on each side")
      ->check(CLI::Range(uint64_t{1}, kMostMegabytes))
      ->capture_default_str();
  command
      .add_option("--against", options.against,
                  "The kernel's swap to compare with (needs root; switched off again)")
      ->check(CLI::IsMember({"zram", "zswap", "none"}))
      ->capture_default_str();
  command
      .add_option("--pages", options.pages,
                  "Content: a file of raw 4 KiB pages, back to back, or such a file packed by zstd; "
                  "without it realistic data made from the seed")
      ->check(CLI::ExistingFile);
  command.add_option("--swap-dir", options.swap_dir, "Where zswap's swap file goes (a disk, not tmpfs)")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  command.add_flag("!--no-ours", options.ours, "Measure the peer alone");
}

void AddCommonOptions(CLI::App& command, Options& options) {
  command.add_option("--rounds", options.rounds, "Rounds; the sides take turns, the figures are medians")
      ->check(CLI::Range(1u, 1000u))
      ->capture_default_str();
  command.add_option("--seed", options.seed, "What the content and the order of touches are made from")
      ->capture_default_str();
  command.add_option("--uzswap", options.uzswap,
                     "The uzswap program (default: the one beside this, else in PATH)");
  command.add_flag("--json", options.json, "Print a JSON document instead of the table");
}

void Define(CLI::App& app, Options& options) {
  app.set_version_flag("--version", std::string("uzswap-bench ") + UZSWAP_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Each command prints a table, or with --json a document. README.md beside the source says what each "
      "figure means.");
  const auto add = [&](const char* name, const char* text) {
    CLI::App* command = app.add_subcommand(name, text);
    command->callback([&options, name] { options.command = name; });
    AddCommonOptions(*command, options);
    return command;
  };
  CLI::App* fault = add("fault", "Re-read of evicted memory: random (p50, p99) and sequential");
  CLI::App* evict = add("evict", "Eviction: time and CPU per page");
  CLI::App* pool = add("pool", "The pool alone: density, metadata, speed, movers, index");
  CLI::App* native =
      add("native", "Programs that are attached and never reclaimed, against the same unattached");
  CLI::App* all = add("all", "All of these");
  for (CLI::App* command : {fault, evict, pool, all}) AddMemoryOptions(*command, options);
  for (CLI::App* command : {fault, all}) {
    command->add_option("--gap-us", options.gap_us, "Microseconds of computing between two random touches")
        ->check(CLI::Range(0u, 1'000'000u))
        ->capture_default_str();
  }
  for (CLI::App* command : {native, all}) {
    command
        ->add_option("--milliseconds", options.milliseconds,
                     "How long each program runs in a round, in slices")
        ->check(CLI::Range(1u, 600'000u))
        ->capture_default_str();
  }
}

nlohmann::json OptionsAsJson(const Options& options, const std::string& source) {
  nlohmann::json json{{"rounds", options.rounds}, {"seed", options.seed}};
  if (options.command != "native") {
    json["megabytes"] = options.megabytes;
    json["pages"] = source;
    json["gap_us"] = options.gap_us;
  }
  return json;
}

int Run(const Options& options) {
  Report report(options.command);
  const bool needs_peer = options.command != "native";
  // Bad samples are found before anything is set up.
  const std::string source = needs_peer ? PageSource::Load(options.pages, options.seed).name() : "";
  report.Part("options") = OptionsAsJson(options, source);
  {
    // A little more than the region: a page that is clean keeps its place in swap.
    SwapKeeper peer(needs_peer ? options.against : "none", (options.megabytes * 3 / 2 + 64) << 20,
                    options.swap_dir);
    if (needs_peer) {
      report.Part("peer") = {
          {"kind", options.against}, {"available", peer.available()}, {"reason", peer.reason()}};
      if (peer.available()) report.Part("peer")["compressor"] = peer.compressor();
    } else {
      report.Part("peer") = {{"kind", "native"}, {"available", true}, {"reason", ""}};
    }
    const auto wants = [&](const char* command) {
      return options.command == command || options.command == "all";
    };
    if (wants("fault")) MeasureFault(options, peer, report);
    if (wants("evict")) MeasureEvict(options, peer, report);
    if (wants("pool")) MeasurePool(options, peer, report);
  }
  if ((options.command == "native" || options.command == "all") && options.ours)
    MeasureNative(options, report);
  std::printf("%s\n", (options.json ? report.Json() : report.Table()).c_str());
  return 0;
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Measures uzswap, side by side with the kernel's own compressed swap", "uzswap-bench");
  Define(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (options.uzswap.empty()) options.uzswap = FindUzswap();
  CatchInterrupts();
  return Run(options);
}

}  // namespace
}  // namespace uzswap::bench

int main(int argc, char** argv) {
  try {
    // Hidden: what this program starts itself as.
    if (argc >= 2 && std::strcmp(argv[1], "--worker") == 0) return uzswap::bench::WorkerMain();
    if (argc >= 2 && std::strcmp(argv[1], "--keep-swap") == 0) {
      return uzswap::bench::SwapKeeperMain(argc - 2, argv + 2);
    }
    return uzswap::bench::Main(argc, argv);
  } catch (const uzswap::bench::Interrupted& interrupted) {
    // By now every child is reaped and swap is off.
    uzswap::bench::EndBySignal(interrupted.signal_number());
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "uzswap-bench: %s\n", failure.what());
    return 1;
  }
}
