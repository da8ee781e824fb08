#include "tools/bench/report.h"

#include <fmt/format.h>
#include <lz4.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "tools/bench/kernel_knob.h"

namespace uzswap::bench {
namespace {

std::string Date() {
  const time_t now = ::time(nullptr);
  tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  ::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

// The value of "key : value" in a file of such lines.
std::string Field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind(key, 0) != 0) continue;
    const size_t colon = line.find(':');
    const size_t start = colon == std::string::npos ? colon : line.find_first_not_of(" \t", colon + 1);
    if (start != std::string::npos) return line.substr(start);
  }
  return "";
}

// How busy the machine is: of what else runs there depends how much the figures are worth.
double LoadAverage() {
  double load = 0;
  return ::getloadavg(&load, 1) == 1 ? load : 0;
}

// No host name: a result is meant to be shown around.
nlohmann::json Machine() {
  utsname names{};
  ::uname(&names);
  return {{"kernel", names.release},
          {"architecture", names.machine},
          {"cpu", Field("/proc/cpuinfo", "model name")},
          {"cpus", ::sysconf(_SC_NPROCESSORS_ONLN)},
          {"memory_bytes", ::sysconf(_SC_PHYS_PAGES) * ::sysconf(_SC_PAGESIZE)},
          {"clocksource", ReadKnob("/sys/devices/system/clocksource/clocksource0/current_clocksource")},
          {"transparent_hugepage", ReadKnob("/sys/kernel/mm/transparent_hugepage/enabled")},
          {"load_average_at_start", LoadAverage()},
          {"vm_page_cluster", ReadKnob("/proc/sys/vm/page-cluster")}};
}

std::string Number(std::optional<double> value) {
  if (!value) return "-";
  const double size = std::fabs(*value);
  return size >= 1000  ? fmt::format("{:.0f}", *value)
         : size >= 100 ? fmt::format("{:.1f}", *value)
                       : fmt::format("{:.3f}", *value);
}

std::optional<double> Ratio(std::optional<double> ours, std::optional<double> peer) {
  if (!ours || !peer || *peer == 0) return std::nullopt;
  return *ours / *peer;
}

nlohmann::json OrNull(std::optional<double> value) {
  if (!value) return nullptr;
  return std::round(*value * 1e6) / 1e6;
}

}  // namespace

Report::Report(const std::string& command) {
  document_["schema"] = "uzswap.bench/1";
  document_["command"] = command;
  document_["date"] = Date();
  document_["machine"] = Machine();
  document_["versions"] = {{"uzswap_bench", UZSWAP_VERSION},
                           {"lz4", LZ4_versionString()},
                           {"zstd", ZSTD_versionString()},
                           {"compiler", __VERSION__},
#ifdef __OPTIMIZE__
                           {"optimized", true}};
#else
                           {"optimized", false}};
#endif
  document_["results"] = nlohmann::json::object();
}

void Report::Add(const std::string& name, std::optional<double> ours, std::optional<double> peer,
                 const std::string& meaning) {
  rows_.push_back({name, ours, peer, meaning});
  document_["results"][name] = {
      {"ours", OrNull(ours)}, {"peer", OrNull(peer)}, {"ratio", OrNull(Ratio(ours, peer))}};
}

std::string Report::Table() const {
  size_t width = 6;
  for (const Row& row : rows_) width = std::max(width, row.name.size());
  const nlohmann::json peer = document_.value("peer", nlohmann::json::object());
  const std::string kind = peer.value("kind", "peer");
  std::string text = fmt::format("{:<{}}  {:>10}  {:>10}  {:>7}\n", "", width, "uzswap", kind, "ratio");
  for (const Row& row : rows_) {
    text += fmt::format("{:<{}}  {:>10}  {:>10}  {:>7}  {}\n", row.name, width, Number(row.ours),
                        Number(row.peer), Number(Ratio(row.ours, row.peer)), row.meaning);
  }
  if (kind != "none" && !peer.value("available", true))
    text += fmt::format("no {}: {}\n", kind, peer.value("reason", ""));
  return text;
}

}  // namespace uzswap::bench
