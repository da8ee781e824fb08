#include "tools/uzswap/stat_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "tools/uzswap/human.h"

namespace uzswap::cli {
namespace {

constexpr size_t kCommandColumn = 1;
constexpr size_t kMinCommandWidth = 7;
constexpr std::array kHeads = {"PID",   "COMMAND", "LIMIT", "RESIDENT", "STORED", "POOL",
                               "RATIO", "FAULTS",  "P50",   "P99",      "REFUSED"};
using Row = std::array<std::string, kHeads.size()>;

constexpr char kServedOnlyMark = '*';

Row RowOf(const ClientStat& c) {
  return {c.pid == 0 ? "?" : fmt::format("{}", c.pid),
          (c.comm.empty() ? std::string("?") : c.comm) + (c.agent ? "" : std::string(1, kServedOnlyMark)),
          c.limit_bytes == 0 ? "none" : FormatBytes(c.limit_bytes),
          FormatBytes(c.resident_bytes),
          FormatBytes(c.stored_bytes),
          FormatBytes(c.pool_bytes),
          FormatRatio(c.ratio),
          FormatCount(c.faults_stored()),
          FormatMicros(c.latency.p50_us),
          FormatMicros(c.latency.p99_us),
          FormatCount(c.refused_total())};
}

Row TotalsRow(const StatSnapshot& s) {
  uint64_t refused = 0;
  for (const ClientStat& c : s.clients) refused += c.refused_total();
  const StatTotals& t = s.totals;
  return {"",
          "total",
          "",
          FormatBytes(t.resident_bytes),
          FormatBytes(t.stored_bytes),
          FormatBytes(t.pool_bytes),
          FormatRatio(t.ratio),
          FormatCount(t.faults_stored),
          FormatMicros(t.latency.p50_us),
          FormatMicros(t.latency.p99_us),
          FormatCount(refused)};
}

std::array<size_t, kHeads.size()> Widths(const std::vector<Row>& rows) {
  std::array<size_t, kHeads.size()> widths;
  for (size_t i = 0; i < widths.size(); ++i) {
    widths[i] = std::string_view(kHeads[i]).size();
    for (const Row& row : rows) widths[i] = std::max(widths[i], row[i].size());
  }
  size_t total = widths.size() - 1;  // the blanks between
  for (size_t w : widths) total += w;
  if (total > kTableWidth) {
    const size_t spare = widths[kCommandColumn] - kMinCommandWidth;
    widths[kCommandColumn] -= std::min(spare, total - kTableWidth);
  }
  return widths;
}

template <typename Cells>
void AppendRow(std::string* out, const Cells& cells, const std::array<size_t, kHeads.size()>& widths) {
  std::string line;
  for (size_t i = 0; i < widths.size(); ++i) {
    if (i > 0) line += ' ';
    if (i == kCommandColumn) {
      line += fmt::format("{:<{}.{}}", std::string_view(cells[i]), widths[i], widths[i]);
    } else {
      line += fmt::format("{:>{}}", std::string_view(cells[i]), widths[i]);
    }
  }
  *out += line + '\n';
}

std::string DaemonLine(const StatSnapshot& s) {
  return fmt::format("{} {}, up {}: {}, {}, pool limit {}, metadata {}\n",
                     s.embedded ? "embedded uzswapd" : "uzswapd", s.daemon_pid,
                     FormatDuration(s.uptime_seconds), s.codec, s.pool,
                     s.totals.pool_limit_bytes == 0 ? "none" : FormatBytes(s.totals.pool_limit_bytes),
                     FormatBytes(s.totals.metadata_bytes));
}

}  // namespace

std::string RenderStatTable(const StatSnapshot& snapshot) {
  if (snapshot.clients.empty()) {
    return "no client is attached; `uzswap run --limit SIZE -- CMD` starts one\n" + DaemonLine(snapshot);
  }
  std::vector<Row> rows;
  bool served_only = false;
  for (const ClientStat& c : snapshot.clients) {
    rows.push_back(RowOf(c));
    served_only |= !c.agent;
  }
  rows.push_back(TotalsRow(snapshot));
  const auto widths = Widths(rows);
  std::string out;
  AppendRow(&out, kHeads, widths);
  for (const Row& row : rows) AppendRow(&out, row, widths);
  if (served_only)
    out += "* a forked child without an agent of its own: its faults are served, it is not evicted\n";
  // Those whose pages are not kept as the daemon's line says.
  for (const ClientStat& c : snapshot.clients) {
    if (!c.pool.empty() && (c.pool != snapshot.pool || c.codec != snapshot.codec))
      out += fmt::format("{} is kept as {} in {}\n", c.pid == 0 ? "a child" : fmt::format("{}", c.pid),
                         c.codec, c.pool);
  }
  return out + DaemonLine(snapshot);
}

std::string RenderCounts(const std::vector<NamedCount>& counts) {
  std::vector<NamedCount> sorted;
  std::copy_if(counts.begin(), counts.end(), std::back_inserter(sorted),
               [](const auto& c) { return c.count != 0; });
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.count > b.count; });
  std::string out;
  for (const NamedCount& c : sorted) {
    std::string name = c.name;
    std::replace(name.begin(), name.end(), '_', ' ');
    out += fmt::format("{}{} {}", out.empty() ? "" : ", ", FormatCount(c.count), name);
  }
  return out.empty() ? "none" : out;
}

std::string RenderClientDetails(const ClientStat& c) {
  const auto line = [](std::string_view name, const std::string& value) {
    return fmt::format("  {:<10} {}\n", name, value);
  };
  std::string out =
      fmt::format("{} (pid {}, uid {}), client {}, {}\n", c.comm.empty() ? "?" : c.comm, c.pid, c.uid, c.id,
                  c.agent ? c.state : c.state + ", served but not evicted (no agent)");
  out += line("limit", c.limit_bytes == 0 ? "none" : FormatBytes(c.limit_bytes));
  out += line("resident",
              fmt::format("{}, peak {}", FormatBytes(c.resident_bytes), FormatBytes(c.resident_peak_bytes)));
  out += line("stored", fmt::format("{} ({} pages, of them {} same-filled), peak {}",
                                    FormatBytes(c.stored_bytes), FormatCount(c.stored_pages),
                                    FormatCount(c.same_filled_pages), FormatBytes(c.stored_peak_bytes)));
  const std::string as = c.pool.empty() ? "" : fmt::format(" ({}, {})", c.codec, c.pool);
  out += line("pool", fmt::format("{}, ratio {}, peak {}{}", FormatBytes(c.pool_bytes), FormatRatio(c.ratio),
                                  FormatBytes(c.pool_peak_bytes), as));
  out += line("evicted", fmt::format("{} pages", FormatCount(c.evicted_pages)));
  out += line("faults", RenderCounts(c.faults));
  out += line("latency",
              fmt::format("p50 {}, p99 {}, max {} (the daemon's share)", FormatMicros(c.latency.p50_us),
                          FormatMicros(c.latency.p99_us), FormatMicros(c.latency.max_us)));
  out += line("refused", RenderCounts(c.refused));
  out += line("events", RenderCounts(c.events));
  return out;
}

}  // namespace uzswap::cli
