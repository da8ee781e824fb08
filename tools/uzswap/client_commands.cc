#include "tools/uzswap/client_commands.h"

#include <fmt/format.h>

#include <cstdio>

#include "libzpool/base/units.h"
#include "tools/uzswap/daemon_client.h"
#include "tools/uzswap/exit_codes.h"
#include "tools/uzswap/human.h"
#include "tools/uzswap/json_field.h"
#include "tools/uzswap/stat_table.h"

namespace uzswap::cli {
namespace {

int Fail(const std::string& message) {
  fmt::print(stderr, "uzswap: {}\n", message);
  return kExitFailed;
}

std::string PagesText(uint64_t pages) {
  return fmt::format("{} pages ({})", FormatCount(pages), FormatBytes(pages * zp::kPageBytes));
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
  if (json) {
    fmt::print("{}\n", answer.answer.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    return kExitOk;
  }
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

}  // namespace uzswap::cli
