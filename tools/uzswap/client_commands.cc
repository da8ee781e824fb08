#include "tools/uzswap/client_commands.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "libzpool/base/units.h"
#include "tools/uzswap/daemon_client.h"
#include "tools/uzswap/exit_codes.h"
#include "tools/uzswap/human.h"
#include "tools/uzswap/install_paths.h"
#include "tools/uzswap/json_field.h"
#include "tools/uzswap/stat_table.h"

namespace uzswap::cli {
namespace {

constexpr std::chrono::seconds kUpgradeTime{60};
constexpr std::chrono::milliseconds kUpgradePoll{50};

int Fail(const std::string& message) {
  fmt::print(stderr, "uzswap: {}\n", message);
  return kExitFailed;
}

std::string PagesText(uint64_t pages) {
  return fmt::format("{} pages ({})", FormatCount(pages), FormatBytes(pages * zp::kPageBytes));
}

int PrintJson(const nlohmann::json& answer) {
  fmt::print("{}\n", answer.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  return kExitOk;
}

}  // namespace

int RunStat(const std::string& socket_path, std::optional<uint64_t> pid, bool json) {
  nlohmann::json request = {{"verb", "stat"}};
  if (pid) request["pid"] = *pid;
  const Answer answer = AskDaemon(socket_path, request, kStatTimeout);
  if (!answer.ok()) return Fail(answer.message);
  OrMessage<StatSnapshot> snapshot = ParseStat(answer.answer);
  if (pid && snapshot.ok() && snapshot.value().clients.empty()) {
    return Fail(fmt::format(
        "process {} is not attached (or is another user's); `uzswap stat` lists those that are", *pid));
  }
  if (json) return PrintJson(answer.answer);
  if (!snapshot.ok()) return Fail(snapshot.message());
  if (!pid) {
    fmt::print("{}", RenderStatTable(snapshot.value()));
    return kExitOk;
  }
  for (const ClientStat& c : snapshot.value().clients) fmt::print("{}", RenderClientDetails(c));
  return kExitOk;
}

int RunLimit(const std::string& socket_path, uint64_t pid, uint64_t bytes) {
  const Answer answer =
      AskDaemon(socket_path, {{"verb", "limit"}, {"pid", pid}, {"limit_bytes", bytes}}, kStatTimeout);
  if (!answer.ok()) return Fail(answer.message);
  fmt::print("process {}: {}\n", pid, bytes == 0 ? "no limit" : "resident limit " + FormatBytes(bytes));
  return kExitOk;
}

int RunReclaim(const std::string& socket_path, uint64_t pid, uint64_t bytes) {
  const Answer answer =
      AskDaemon(socket_path, {{"verb", "reclaim"}, {"pid", pid}, {"bytes", bytes}}, kWorkTimeout);
  if (!answer.ok()) return Fail(answer.message);
  fmt::print("process {}: {} taken\n", pid, PagesText(CountField(answer.answer, "pages")));
  return kExitOk;
}

int RunRestore(const std::string& socket_path, uint64_t pid) {
  const Answer answer = AskDaemon(socket_path, {{"verb", "restore"}, {"pid", pid}}, kWorkTimeout);
  if (!answer.ok()) return Fail(answer.message);
  fmt::print("process {}: {} brought home\n", pid, PagesText(CountField(answer.answer, "pages")));
  const uint64_t failed = CountField(answer.answer, "failed");
  if (failed == 0) return kExitOk;
  return Fail(fmt::format("{} could not be brought home; they stay stored, and the daemon's log says why",
                          PagesText(failed)));
}

int RunUpgrade(const std::string& socket_path, std::string program) {
  if (program.empty()) {
    OrMessage<std::string> found = FindDaemonProgram();
    if (!found.ok()) return Fail(found.message());
    program = std::move(found).value();
  }
  std::error_code error;
  const auto absolute = std::filesystem::canonical(program, error);
  if (error) return Fail(fmt::format("{}: {}", program, error.message()));
  program = absolute.string();
  const Answer asked = AskDaemon(socket_path, {{"verb", "upgrade"}, {"program", program}}, kStatTimeout * 2);
  if (!asked.ok()) return Fail(asked.message);
  const uint64_t restarts = CountField(asked.answer, "restarts");
  const auto deadline = std::chrono::steady_clock::now() + kUpgradeTime;
  while (std::chrono::steady_clock::now() < deadline) {
    const Answer now = AskDaemon(socket_path, {{"verb", "stat"}}, kStatTimeout);
    const auto daemon = now.answer.find("daemon");
    if (now.ok() && daemon != now.answer.end() && CountField(*daemon, "restarts") >= restarts) {
      const std::string version = TextField(*daemon, "version");
      fmt::print("uzswapd {} goes on, as process {}\n", version, CountField(*daemon, "pid"));
      return kExitOk;
    }
    std::this_thread::sleep_for(kUpgradePoll);
  }
  return Fail("no successor answers yet; programs wait for their pages meanwhile. The daemon's log says why");
}

int RunNodeList(const std::string& socket_path, bool json) {
  const Answer answer = AskDaemon(socket_path, {{"verb", "node"}, {"action", "list"}}, kStatTimeout);
  if (!answer.ok()) return Fail(answer.message);
  if (json) return PrintJson(answer.answer);
  const auto nodes = answer.answer.find("nodes");
  if (nodes == answer.answer.end() || !nodes->is_array()) return Fail("the daemon's answer lists no nodes");
  fmt::print("{:>4}  {:<7} {:>9} {:>9} {:>9} {:>8}\n", "NODE", "STATE", "POOL", "OBJECTS", "BYTES",
             "DENSITY");
  for (const nlohmann::json& node : *nodes) {
    if (!node.is_object()) continue;
    const uint64_t pool = CountField(node, "pool_bytes");
    const uint64_t bytes = CountField(node, "object_bytes");
    const auto accepts = node.find("accepts");
    const bool open = accepts == node.end() || *accepts != nlohmann::json(false);
    fmt::print(
        "{:>4}  {:<7} {:>9} {:>9} {:>9} {:>8}\n", CountField(node, "node"), open ? "open" : "drained",
        FormatBytes(pool), FormatCount(CountField(node, "objects")), FormatBytes(bytes),
        pool == 0 ? "-" : fmt::format("{:.3f}", static_cast<double>(bytes) / static_cast<double>(pool)));
  }
  const auto compaction = answer.answer.find("compaction");
  const nlohmann::json nothing = nlohmann::json::object();
  const nlohmann::json& packed =
      compaction != answer.answer.end() && compaction->is_object() ? *compaction : nothing;
  fmt::print("moved: {} packed, {} followed their program, {} balanced, {} demoted\n",
             FormatBytes(CountField(packed, "bytes")),
             FormatBytes(CountField(answer.answer, "followed_bytes")),
             FormatBytes(CountField(answer.answer, "balanced_bytes")),
             FormatBytes(CountField(answer.answer, "demoted_bytes")));
  return kExitOk;
}

int RunNodeDrain(const std::string& socket_path, uint64_t node, bool json) {
  const Answer answer =
      AskDaemon(socket_path, {{"verb", "node"}, {"action", "drain"}, {"node", node}}, kWorkTimeout);
  if (!answer.ok()) return Fail(answer.message);
  const uint64_t left = CountField(answer.answer, "left_bytes");
  if (json) {
    PrintJson(answer.answer);
    return left == 0 ? kExitOk : kExitFailed;
  }
  fmt::print("node {}: {} moved away\n", node, FormatBytes(CountField(answer.answer, "moved_bytes")));
  if (left == 0) return kExitOk;
  const char* why = CountField(answer.answer, "without_target") != 0
                        ? "the other nodes have no room for it"
                        : "it is in use at the moment; try again";
  return Fail(fmt::format("{} of its memory had to stay: {}", FormatBytes(left), why));
}

int RunNodeOpen(const std::string& socket_path, uint64_t node) {
  const Answer answer =
      AskDaemon(socket_path, {{"verb", "node"}, {"action", "open"}, {"node", node}}, kStatTimeout);
  if (!answer.ok()) return Fail(answer.message);
  fmt::print("node {}: open\n", node);
  return kExitOk;
}

int RunNodeBalance(const std::string& socket_path, bool json) {
  const Answer answer = AskDaemon(socket_path, {{"verb", "node"}, {"action", "balance"}}, kWorkTimeout);
  if (!answer.ok()) return Fail(answer.message);
  if (json) return PrintJson(answer.answer);
  fmt::print("{} moved\n", FormatBytes(CountField(answer.answer, "moved_bytes")));
  return kExitOk;
}

}  // namespace uzswap::cli
