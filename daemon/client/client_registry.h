// All clients, and what is remembered of the last that ended.
//
// Threads: thread-safe. A Client lives while anybody holds its shared_ptr; Remove makes it unfindable.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "daemon/client/client.h"
#include "libzpool/base/mutex.h"

namespace uzswap {

class ClientRegistry {
 public:
  void Add(std::shared_ptr<Client> client);
  // The client, or null if it was not there. Its last figures are kept in `gone()`.
  std::shared_ptr<Client> Remove(uint32_t id);
  std::shared_ptr<Client> Find(uint32_t id) const;
  std::vector<std::shared_ptr<Client>> All() const;
  std::vector<std::shared_ptr<Client>> FindPid(pid_t pid) const;
  size_t size() const;
  bool had_any() const;

  // Figures of ended clients, oldest first, as JSON text made by `describe` at their end.
  static constexpr size_t kGoneKept = 64;
  void RememberGone(std::string description);
  std::vector<std::string> Gone() const;

 private:
  mutable zp::SharedMutex mu_;
  std::unordered_map<uint32_t, std::shared_ptr<Client>> clients_ ZP_GUARDED_BY(mu_);
  std::deque<std::string> gone_ ZP_GUARDED_BY(mu_);
  bool had_any_ ZP_GUARDED_BY(mu_) = false;
};

}  // namespace uzswap
