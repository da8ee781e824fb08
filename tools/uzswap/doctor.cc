#include "tools/uzswap/doctor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "tools/uzswap/exit_codes.h"
#include "tools/uzswap/kernel_checks.h"
#include "tools/uzswap/setup_checks.h"

namespace uzswap::cli {
namespace {

constexpr int kNameWidth = 17;

const char* StatusWord(CheckStatus status) {
  switch (status) {
    case CheckStatus::kOk:
      return "ok";
    case CheckStatus::kMissing:
      return "MISSING";
    case CheckStatus::kNote:
      return "note";
  }
  return "";
}

size_t CountMissing(const std::vector<Check>& checks) {
  return static_cast<size_t>(std::count_if(checks.begin(), checks.end(),
                                           [](const Check& c) { return c.status == CheckStatus::kMissing; }));
}

}  // namespace

std::string RenderMissing(const std::vector<Check>& checks) {
  std::string out;
  for (const Check& c : checks) {
    if (c.status != CheckStatus::kMissing) continue;
    if (!out.empty()) out += '\n';
    out += fmt::format("  {}: {}", c.name, c.detail);
    if (!c.fix.empty()) out += "\n    fix: " + c.fix;
  }
  return out;
}

std::vector<Check> Examine(const std::string& socket_path) {
  bool daemon_answers = false;
  std::vector<Check> checks = {CheckDaemon(socket_path, &daemon_answers)};
  const auto add = [&](std::vector<Check> more) { checks.insert(checks.end(), more.begin(), more.end()); };
  add(CheckKernel());
  std::vector<Check> rights = CheckDaemonRights();
  for (Check& c : rights) {
    if (!daemon_answers || c.status != CheckStatus::kMissing) continue;
    c.status = CheckStatus::kNote;
    c.detail += "; not needed: the running daemon has it";
    c.fix = "";
  }
  add(std::move(rights));
  add(CheckAgent());
  add(CheckSurroundings());
  return checks;
}

std::string RenderDoctor(const std::vector<Check>& checks) {
  std::string out;
  for (const Check& c : checks) {
    out += fmt::format("{:<8} {:<{}} {}\n", StatusWord(c.status), c.name, kNameWidth, c.detail);
    if (!c.fix.empty()) out += fmt::format("{:<8} {:<{}} fix: {}\n", "", "", kNameWidth, c.fix);
  }
  const size_t missing = CountMissing(checks);
  if (missing == 0) {
    out += "\nEverything that uzswap needs is there. Try: uzswap run --limit 64M --report -- CMD\n";
  } else {
    out += fmt::format("\n{} of uzswap's requirements {} missing; the fixes are above.\n", missing,
                       missing == 1 ? "is" : "are");
  }
  return out;
}

nlohmann::json DoctorJson(const std::vector<Check>& checks) {
  nlohmann::json list = nlohmann::json::array();
  for (const Check& c : checks) {
    std::string status = StatusWord(c.status);
    std::transform(status.begin(), status.end(), status.begin(),
                   [](char x) { return static_cast<char>(x | 0x20); });
    list.push_back({{"name", c.name}, {"status", status}, {"detail", c.detail}, {"fix", c.fix}});
  }
  return {{"schema", "uzswap.doctor/1"}, {"ok", CountMissing(checks) == 0}, {"checks", std::move(list)}};
}

int RunDoctor(const std::string& socket_path, bool json) {
  const std::vector<Check> checks = Examine(socket_path);
  if (json) {
    fmt::print("{}\n", DoctorJson(checks).dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    fmt::print("{}", RenderDoctor(checks));
  }
  return CountMissing(checks) == 0 ? kExitOk : kExitFailed;
}

}  // namespace uzswap::cli
