// `uzswap stat` for people: the table of all clients, and one client in detail.
//
// The table fits 80 columns unless pids or counts are unusually wide; columns are only as wide as they must
// be, and COMMAND is cut to what is left. Text in, text out: golden tests compare it.
#pragma once

#include <cstdint>
#include <string>

#include "tools/uzswap/stat_snapshot.h"

namespace uzswap::cli {

inline constexpr unsigned kTableWidth = 80;

// One line per client, then a line of totals and what the daemon is. Ends with a newline.
std::string RenderStatTable(const StatSnapshot& snapshot);

// Everything known of one client, with refusals and events by reason.
std::string RenderClientDetails(const ClientStat& client);

// "12 busy, 3 hole": greatest first, nothing that is zero; "none" if all are.
std::string RenderCounts(const std::vector<NamedCount>& counts);

}  // namespace uzswap::cli
