// How the bench fails: a measuring program has nothing to save, so whatever goes wrong ends the run with one
// line.
//
// Idea: BenchError is thrown where something fails and caught in main alone. Children are reaped and swap is
// switched off by the owners' destructors on the way. "This peer does not exist here" is not an error but an
// outcome: see Unavailable in swap_peer.h.
#pragma once

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>

namespace uzswap::bench {

class BenchError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// "what: strerror(errno)"
[[noreturn]] inline void ThrowErrno(const std::string& what) {
  throw BenchError(what + ": " + std::strerror(errno));
}

}  // namespace uzswap::bench
