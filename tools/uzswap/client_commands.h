// `uzswap stat`, `limit`, `reclaim`, `restore`, `node`: one question to a running daemon each.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace uzswap::cli {

// All return kExitOk, or kExitFailed with the reason on stderr: no daemon, no such process, not permitted.

// The table of all clients, or one process in detail. `json`: the daemon's own answer.
int RunStat(const std::string& socket_path, std::optional<uint64_t> pid, bool json);

// Sets the resident limit of an attached process; 0: none.
int RunLimit(const std::string& socket_path, uint64_t pid, uint64_t bytes);

// Takes that much of its coldest memory now.
int RunReclaim(const std::string& socket_path, uint64_t pid, uint64_t bytes);

// Brings all of its memory home. Also kExitFailed if some pages could not be.
int RunRestore(const std::string& socket_path, uint64_t pid);

// What the pool has on each NUMA node.
int RunNodeList(const std::string& socket_path, bool json);

// Moves everything off a node. Also kExitFailed if something had to stay.
int RunNodeDrain(const std::string& socket_path, uint64_t node, bool json);

// Lets another program (a newer uzswapd; empty: the one that belongs to this uzswap) go on in place of the
// running daemon, and waits until it does.
int RunUpgrade(const std::string& socket_path, std::string program);

int RunNodeOpen(const std::string& socket_path, uint64_t node);
int RunNodeBalance(const std::string& socket_path, bool json);

}  // namespace uzswap::cli
