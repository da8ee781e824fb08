// The daemon's end of one agent: its ring, its gate and its socket.
//
// Idea: one command at a time. Post writes it to the ring and rings the bell; the ring's command word says
// what became of it, and the agent's report is only the bell in the other direction: so a successor that
// takes over ring and socket in the middle of a command knows all that there is to know. What the agent may
// corrupt is read as a hint only (daemon/wire/ring.h).
//
// Threads: Post, Await and Revoke belong to whoever holds the client's eviction lock. The gate belongs to the
// holder of the client's reader lock. result() and CopyPage() are for any thread.
// Failure: an agent that does not answer is an outcome; the client then is served, but not evicted from.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "daemon/wire/ring.h"
#include "libzpool/base/fd.h"
#include "libzpool/base/mapping.h"
#include "libzpool/base/result.h"

namespace uzswap {

class AgentChannel {
 public:
  static zp::Result<std::unique_ptr<AgentChannel>> Create();
  // Takes over the ring of another daemon's client. kInvalid: it is none.
  static zp::Result<std::unique_ptr<AgentChannel>> Adopt(zp::UniqueFd ring);

  int ring_fd() const { return ring_fd_.get(); }
  int socket_fd() const { return socket_ == nullptr ? -1 : socket_->get(); }
  void SetSocket(std::shared_ptr<const zp::UniqueFd> socket) { socket_ = std::move(socket); }

  // Whether a command can be posted: an agent whose command was revoked while it ran must first be done with
  // it.
  bool Ready();
  // Forgets the results of the last command. Before slots point at them: a fault believes what it finds
  // there.
  void ResetResults();
  // kBusy if the agent is not ready, kGone if its socket is closed. `pages` are addresses, at most
  // kRingSlots.
  zp::Status Post(wire::Opcode opcode, std::span<const uint64_t> pages, uint64_t seq);
  enum class AwaitOutcome { kDone, kTimeout, kGone };
  AwaitOutcome Await(std::chrono::milliseconds timeout);
  // Takes back a posted command. True if the agent had not begun: nothing happened. False: it is running;
  // then the caller must make its MOVEs fail (see Client::RevokeLocked) and call MarkRevoked.
  bool RevokePending();
  void MarkRevoked();

  // The gate. TryTakeGate spins and sleeps for at most `patience`.
  bool TryTakeGate(std::chrono::microseconds patience);
  void ReleaseGate();
  // After UNREGISTER of staging: no MOVE can succeed any more; whoever holds the gate has lost it.
  void SeizeGate();
  void PublishEventSeq(uint64_t seq) { ring()->header.event_seq.store(seq, std::memory_order_release); }

  uint32_t result(uint32_t slot) const { return ring()->result[slot].load(std::memory_order_acquire); }
  // The slot's page, as a copy that can't change. The agent, or another of our threads that settles what the
  // agent left, may write it at the same time.
  void CopyPage(uint32_t slot, std::byte* to) const;
  void SetPage(uint32_t slot, const std::byte* from);
  void SetCopied(uint32_t slot) { ring()->result[slot].store(wire::kCopied, std::memory_order_release); }
  // Records of a finished kOpThreads, copied out; nothing if the agent could not list the threads.
  std::optional<std::vector<wire::ThreadRecord>> Threads() const;

 private:
  AgentChannel(zp::UniqueFd fd, zp::Mapping mapping)
      : ring_fd_(std::move(fd)), mapping_(std::move(mapping)) {}
  wire::Ring* ring() const { return reinterpret_cast<wire::Ring*>(mapping_.data()); }
  // Nothing is posted, or all that was is over.
  bool Settled() const;
  // Takes the reports that wait, which say no more than "look at the ring".
  void TakeReports();

  zp::UniqueFd ring_fd_;
  zp::Mapping mapping_;
  std::shared_ptr<const zp::UniqueFd> socket_;
  bool gone_ = false;
};

}  // namespace uzswap
