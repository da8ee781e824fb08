// One connection of the control socket, until it is an attached client or is closed.
//
// Idea: a state machine fed with packets, so that a peer that stops in the middle costs a descriptor and
// nothing else. Everything that arrives is checked for size, magic, version and order; a mistake is answered
// with Refused.
//
// Threads: the server's thread alone.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "daemon/client/agent_channel.h"
#include "daemon/client/client.h"
#include "daemon/sys/packet_socket.h"
#include "daemon/sys/process_memory.h"
#include "daemon/sys/userfaultfd.h"

namespace uzswap {

struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
};

class Connection {
 public:
  enum class Next {
    kWait,  // for the next packet
    kClose,
    kAttached,  // client() is ready; from now on the socket carries doorbells and reports
    kRequest,   // request() holds a control request; the server answers
  };

  Connection(std::shared_ptr<const zp::UniqueFd> socket, PeerCredentials peer, ClientServices services)
      : socket_(std::move(socket)), peer_(peer), services_(services) {}

  Next OnReadable();
  const std::shared_ptr<const zp::UniqueFd>& socket() const { return socket_; }
  const PeerCredentials& peer() const { return peer_; }
  const std::shared_ptr<Client>& client() const { return client_; }
  const std::string& request() const { return request_; }
  std::chrono::steady_clock::time_point opened_at() const { return opened_at_; }
  // Why the last kClose happened; for the log.
  const std::string& reason() const { return reason_; }

 private:
  enum class State { kFresh, kWantContext, kWantReady, kWantProof, kAttached };

  Next OnHello(std::span<const std::byte> packet);
  Next OnContext(zp::UniqueFd fd);
  Next OnReady();
  Next OnProof(std::span<const std::byte> packet);
  Next Refuse(const std::string& reason);
  bool Reply(wire::MessageType type, int fd);

  std::shared_ptr<const zp::UniqueFd> socket_;
  const PeerCredentials peer_;
  ClientServices services_;
  const std::chrono::steady_clock::time_point opened_at_ = std::chrono::steady_clock::now();
  State state_ = State::kFresh;
  wire::Hello hello_{};
  zp::StoreAs store_as_;  // what the client asked for, or this daemon's default
  ProcessMemory memory_;
  Userfaultfd uffd_;
  std::unique_ptr<AgentChannel> channel_;
  uint64_t nonce_ = 0;
  std::shared_ptr<Client> client_;
  std::string request_;
  std::string reason_;
};

}  // namespace uzswap
