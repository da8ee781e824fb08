#include "tools/bench/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <initializer_list>

namespace uzswap::bench {
namespace {

volatile sig_atomic_t caught_signal = 0;

void Remember(int signal_number) { caught_signal = signal_number; }

}  // namespace

void CatchInterrupts() {
  struct sigaction action {};
  action.sa_handler = Remember;
  for (const int signal_number : {SIGINT, SIGTERM, SIGHUP}) ::sigaction(signal_number, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
}

void CheckInterrupted() {
  if (caught_signal != 0) throw Interrupted(caught_signal);
}

void EndBySignal(int signal_number) {
  ::signal(signal_number, SIG_DFL);
  ::raise(signal_number);
  ::_exit(128 + signal_number);
}

}  // namespace uzswap::bench
