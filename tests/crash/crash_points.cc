// Makes a uzswapd that dies by SIGKILL at a named point: UZSWAP_TEST_CRASH=NAME:N:FILE, at the N-th time that
// a thread passes the pause point NAME (libzpool/base/pause_point.h), once: FILE is made then, and whoever
// finds it there lives on. So a successor, which inherits the environment, dies at a point only if nobody
// did.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#include "libzpool/base/pause_point.h"

namespace {

struct Crash {
  std::string name, file;
  long wanted = 0;
  std::atomic<long> passed{0};
};
Crash* crash = nullptr;

void OnPoint(const char* name) {
  if (crash->name != name || crash->passed.fetch_add(1) + 1 != crash->wanted) return;
  const int made = open(crash->file.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
  if (made < 0) return;
  (void)kill(getpid(), SIGKILL);
  pause();
}

const bool installed = [] {
  const char* setting = getenv("UZSWAP_TEST_CRASH");
  const char* first = setting == nullptr ? nullptr : strchr(setting, ':');
  const char* second = first == nullptr ? nullptr : strchr(first + 1, ':');
  if (second == nullptr) return false;
  crash = new Crash;
  crash->name.assign(setting, first);
  crash->wanted = atol(first + 1);
  crash->file = second + 1;
  zp::SetPauseHandler(OnPoint);
  return true;
}();

}  // namespace
