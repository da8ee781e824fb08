// The CLI's side of the control socket: one question, one answer (daemon/wire/control.md).
//
// Each call makes a connection of its own, so nothing here has a state between calls. The answer comes as
// JSON in a memfd; whatever the other side sends, however wrong, ends in an outcome, not in an exception.
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace uzswap::cli {

enum class AskResult {
  kAnswered,  // `answer` is the daemon's JSON
  kRefused,   // the daemon said no: `status` is an errno value, `message` its text
  kNoDaemon,  // nobody listens there (or may be asked): `status` is connect's errno, `message` names the fix
  kBroken,    // something listens that does not speak the protocol, or not in time: `message` says which
};

struct Answer {
  AskResult result = AskResult::kBroken;
  int status = 0;
  nlohmann::json answer;
  std::string message;

  bool ok() const { return result == AskResult::kAnswered; }
};

// How long a person waits before a hung daemon is called hung. Restore and reclaim move gigabytes.
inline constexpr std::chrono::milliseconds kPingTimeout{2000};
inline constexpr std::chrono::milliseconds kStatTimeout{10'000};
inline constexpr std::chrono::milliseconds kWorkTimeout{600'000};

// Sends `request` to the daemon at `socket_path` and waits for its answer. Blocks up to `timeout` for each of
// sending and receiving.
Answer AskDaemon(const std::string& socket_path, const nlohmann::json& request,
                 std::chrono::milliseconds timeout);

// The socket to talk to: `option` if not empty, else $UZSWAP_SOCKET, else the system daemon's.
std::string SocketPath(const std::string& option);

}  // namespace uzswap::cli
