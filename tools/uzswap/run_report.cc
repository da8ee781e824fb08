#include "tools/uzswap/run_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "libzpool/base/units.h"
#include "tools/uzswap/human.h"
#include "tools/uzswap/stat_table.h"

namespace uzswap::cli {
namespace {

// More processes than this are summed up: a build has hundreds.
constexpr size_t kMaxDetailed = 4;
constexpr int kMaxDepth = 64;  // of a family; /proc may show a loop while pids are reused

std::string ClientBlock(const ClientStat& c) {
  const auto line = [](std::string_view name, const std::string& value) {
    return fmt::format("  {:<9} {}\n", name, value);
  };
  std::string out;
  out += line("resident", fmt::format("peak {} ({})", FormatBytes(c.resident_peak_bytes),
                                      c.limit_bytes == 0 ? std::string("no limit")
                                                         : "limit " + FormatBytes(c.limit_bytes)));
  if (c.evicted_pages == 0) {
    out += line("stored", "nothing: it never had to give a page away");
  } else {
    const double ratio = c.pool_peak_bytes == 0 ? 0
                                                : static_cast<double>(c.stored_peak_bytes) /
                                                      static_cast<double>(c.pool_peak_bytes);
    out += line("stored", fmt::format("peak {}, in a pool of {} (ratio {})", FormatBytes(c.stored_peak_bytes),
                                      FormatBytes(c.pool_peak_bytes), FormatRatio(ratio)));
    out += line("evicted", fmt::format("{} pages ({})", FormatCount(c.evicted_pages),
                                       FormatBytes(c.evicted_pages * zp::kPageBytes)));
    out += line("faults", fmt::format("{} from the pool, p50 {}, p99 {}, max {}",
                                      FormatCount(c.faults_stored()), FormatMicros(c.latency.p50_us),
                                      FormatMicros(c.latency.p99_us), FormatMicros(c.latency.max_us)));
  }
  out += line("refused", RenderCounts(c.refused));
  return out;
}

std::string Name(const ClientStat& c) {
  return fmt::format("{} ({})", c.comm.empty() ? "?" : c.comm,
                     c.pid == 0 ? std::string("a forked child") : fmt::format("pid {}", c.pid));
}

}  // namespace

bool DescendsFrom(uint64_t pid, uint64_t ancestor) {
  for (int depth = 0; depth < kMaxDepth && pid > 1; ++depth) {
    if (pid == ancestor) return true;
    std::ifstream file(fmt::format("/proc/{}/stat", pid));
    std::string text;
    if (!std::getline(file, text, '\0')) return false;
    const size_t after_name = text.rfind(')');  // the name may hold anything
    char state = 0;
    unsigned long long parent = 0;
    if (after_name == std::string::npos ||
        std::sscanf(text.c_str() + after_name + 1, " %c %llu", &state, &parent) != 2) {
      return false;
    }
    pid = parent;
  }
  return false;
}

RunClients::RunClients(const StatSnapshot& before) {
  for (const ClientStat& c : before.clients) foreign_.insert(c.id);
}

void RunClients::Observe(const StatSnapshot& now, uint64_t program_pid) {
  if (all_) return;
  for (const ClientStat& c : now.clients) {
    if (c.gone() || foreign_.contains(c.id) || family_.contains(c.id) || c.pid == 0) continue;
    (DescendsFrom(c.pid, program_pid) ? family_ : foreign_).insert(c.id);
  }
}

std::vector<ClientStat> RunClients::Select(const StatSnapshot& snapshot, uint64_t program_pid) const {
  std::vector<ClientStat> ours;
  for (const ClientStat& c : snapshot.clients) {
    if (all_ || family_.contains(c.id) || (c.pid == program_pid && !foreign_.contains(c.id)))
      ours.push_back(c);
  }
  std::stable_sort(ours.begin(), ours.end(), [](const ClientStat& a, const ClientStat& b) {
    return a.resident_peak_bytes > b.resident_peak_bytes;
  });
  return ours;
}

std::string RenderRunReport(const std::string& command, double seconds,
                            const std::vector<ClientStat>& clients) {
  std::string out;
  if (clients.empty()) {
    return fmt::format(
        "uzswap: {} ended after {} and never attached to the daemon: it ran natively, without a limit.\n"
        "  Its agent says why on the program's stderr, unless UZSWAP_QUIET is set or the program drops "
        "LD_PRELOAD.\n",
        command, FormatDuration(seconds));
  }
  const size_t detailed = std::min(clients.size(), kMaxDetailed);
  out += clients.size() == 1
             ? fmt::format("uzswap: {} ended after {}\n", Name(clients[0]), FormatDuration(seconds))
             : fmt::format("uzswap: {} ended after {}, {} processes attached\n", command,
                           FormatDuration(seconds), clients.size());
  for (size_t i = 0; i < detailed; ++i) {
    if (clients.size() > 1) out += fmt::format(" {}\n", Name(clients[i]));
    out += ClientBlock(clients[i]);
  }
  if (detailed < clients.size()) {
    uint64_t evicted = 0;
    uint64_t faults = 0;
    for (size_t i = detailed; i < clients.size(); ++i) {
      evicted += clients[i].evicted_pages;
      faults += clients[i].faults_stored();
    }
    out += fmt::format(" {} more, smaller: {} pages evicted, {} faults from the pool\n",
                       clients.size() - detailed, FormatCount(evicted), FormatCount(faults));
  }
  return out;
}

}  // namespace uzswap::cli
