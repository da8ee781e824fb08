// Stops the agent's thread exactly before or after a UFFDIO_MOVE, by ptrace.
//
// Idea: what pause points are for the daemon, this is for the agent, which is the one that is shipped.
// Threads: all calls from one thread (ptrace's rule). The destructor lets the agent go.
#pragma once

#include <sys/types.h>

#include <cstdint>

namespace uzswap::test {

class AgentTracer {
 public:
  explicit AgentTracer(int agent_tid);
  ~AgentTracer() { Detach(); }
  AgentTracer(const AgentTracer&) = delete;
  AgentTracer& operator=(const AgentTracer&) = delete;

  struct Move {
    uint64_t dst = 0, src = 0, len = 0;
  };
  // Runs the agent to its next UFFDIO_MOVE and stops it before that is done: it holds the gate.
  Move RunToMoveEntry();
  // From there: lets the MOVE happen and stops the agent before it knows. Returns the ioctl's result.
  int64_t RunToMoveExit();
  // Runs the agent to its next MOVE or to its report, whichever comes first. False: the report.
  bool RunToMoveEntryOrReport(Move* move);
  void Detach();

 private:
  // Goes on to the next stop at a system call; true at its entry.
  bool Step(uint64_t* number, uint64_t (&args)[6], int64_t* ret);

  const int tid_;
  bool attached_ = false;
};

}  // namespace uzswap::test
