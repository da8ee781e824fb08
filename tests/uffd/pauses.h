// Stops threads of the daemon's classes at ZP_PAUSE_POINTs, so that a test drives an exact order.
//
// Idea: Arm(name) stops the next thread that reaches the point, once, until Release(name). Everything else
// passes. Threads: any.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>

namespace uzswap::test {

class Pauses {
 public:
  static Pauses& Get();

  void Arm(const std::string& name);
  // Returns when a thread stands at the point.
  void WaitReached(const std::string& name);
  // Whether a thread stood there since Arm; does not wait.
  bool Reached(const std::string& name);
  // Lets the thread go on; forgets the point.
  void Release(const std::string& name);
  void ReleaseAll();

 private:
  enum class State { kArmed, kReached, kReleased };
  static void Handle(const char* name);
  void Stop(const std::string& name);

  std::mutex mu_;
  std::condition_variable changed_;
  std::map<std::string, State> points_;
};

}  // namespace uzswap::test
