// SIGINT, SIGTERM and SIGHUP become an exception at the next wait, so that every child is reaped and swap is
// off before the bench ends by that signal.
//
// Idea: the handler sets a flag; every wait of the bench is short or sliced and looks at it. No thread,
// nothing done in the handler.
#pragma once

#include <exception>

namespace uzswap::bench {

class Interrupted : public std::exception {
 public:
  explicit Interrupted(int signal_number) : signal_number_(signal_number) {}
  int signal_number() const { return signal_number_; }
  const char* what() const noexcept override { return "interrupted"; }

 private:
  int signal_number_;
};

void CatchInterrupts();
// Throws Interrupted if a signal has come.
void CheckInterrupted();
// Ends the process by the signal, as if it had never been caught.
[[noreturn]] void EndBySignal(int signal_number);

}  // namespace uzswap::bench
