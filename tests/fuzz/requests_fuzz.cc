// Control requests: any text gets an answer that is JSON, and an error exactly where the status says so.
//
// Input: a byte, whether root asks; then the request's text.
#include <nlohmann/json.hpp>
#include <string>

#include "daemon/control/requests.h"
#include "libzpool/base/check.h"
#include "tests/daemon/made_daemon.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using uzswap::Reply;
  static auto* const daemon = new uzswap::MadeDaemon;
  static auto* const registry = new uzswap::ClientRegistry;
  static auto* const pool_keeper = new uzswap::PoolKeeper(*daemon->store);
  static const uzswap::Options options;
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const Reply reply = uzswap::HandleRequest(
      text, {*registry, *daemon->store, *daemon->index_arena, *pool_keeper, *daemon->table, options, 1.5,
             uzswap::Restarts{}, data[0] % 2 == 0 ? 0u : 1000u});
  const auto check = [](const std::string& answer, bool failed) {
    const auto json = nlohmann::json::parse(answer, nullptr, false);
    ZP_CHECK(json.is_object(), "an answer that is no JSON object");
    ZP_CHECK(json.contains("error") == failed, "an answer that does not fit its status");
  };
  if (!reply.later) {
    check(reply.json, reply.status != 0);
  } else if (!reply.hand_over) {  // which would execute what the text names
    (void)reply.later();
  }
  return 0;
}
