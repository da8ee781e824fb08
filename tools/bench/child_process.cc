#include "tools/bench/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "tools/bench/error.h"
#include "tools/bench/interrupt.h"

namespace uzswap::bench {
namespace {

using Clock = std::chrono::steady_clock;

// A keeper may have to read gigabytes back before swap is off; a worker only has to leave its loop.
constexpr std::chrono::seconds kKeeperPatience{120};
constexpr std::chrono::seconds kWorkerPatience{5};

// Whether `fd` became readable before the deadline.
bool WaitUntil(int fd, Clock::time_point deadline, bool interruptible) {
  constexpr std::int64_t kSliceMs = 200;
  while (true) {
    if (interruptible) CheckInterrupted();
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return false;
    pollfd entry{fd, POLLIN, 0};
    const int n = ::poll(&entry, 1, static_cast<int>(std::min<std::int64_t>(left, kSliceMs)));
    if (n > 0) return true;
    if (n < 0 && errno != EINTR) return false;
  }
}

// Between fork and exec in a process with threads: system calls alone.
[[noreturn]] void BecomeChild(char* const* argv, int in, int out, pid_t parent, ChildProcess::Kind kind) {
  if (kind == ChildProcess::Kind::kDiesWithParent) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);
  } else {
    ::setsid();
  }
  ::dup2(in, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  ::execvp(argv[0], argv);
  static constexpr char kText[] = "{\"error\":\"cannot be started\"}\n";
  [[maybe_unused]] const ssize_t n = ::write(STDOUT_FILENO, kText, sizeof(kText) - 1);
  ::_exit(127);
}

}  // namespace

std::string OwnPath() {
  char path[4096];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof(path));
  if (n <= 0 || n == static_cast<ssize_t>(sizeof(path))) ThrowErrno("/proc/self/exe");
  return std::string(path, static_cast<size_t>(n));
}

ChildProcess::ChildProcess(std::vector<std::string> argv, Kind kind) : kind_(kind), name_(argv.at(0)) {
  std::vector<char*> pointers;
  pointers.reserve(argv.size() + 1);
  for (std::string& argument : argv) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  int down[2];
  int up[2];
  if (::pipe2(down, O_CLOEXEC) != 0) ThrowErrno("pipe");
  const zp::UniqueFd child_in(down[0]);
  to_child_.reset(down[1]);
  if (::pipe2(up, O_CLOEXEC) != 0) ThrowErrno("pipe");
  from_child_.reset(up[0]);
  const zp::UniqueFd child_out(up[1]);
  const pid_t self = ::getpid();
  pid_ = ::fork();
  if (pid_ == 0) BecomeChild(pointers.data(), child_in.get(), child_out.get(), self, kind);
  if (pid_ < 0) ThrowErrno("fork");
}

ChildProcess::~ChildProcess() { Stop(); }

int ChildProcess::Stop() {
  if (pid_ <= 0) return 0;
  to_child_.reset();
  const auto deadline = Clock::now() + (kind_ == Kind::kCleansUpByItself ? kKeeperPatience : kWorkerPatience);
  const zp::UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  if (!pidfd.valid() || !WaitUntil(pidfd.get(), deadline, /*interruptible=*/false)) ::kill(pid_, SIGKILL);
  from_child_.reset();
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return status;
}

nlohmann::json ChildProcess::Read(std::chrono::seconds timeout) {
  const auto deadline = Clock::now() + timeout;
  while (true) {
    const size_t end = buffer_.find('\n');
    if (end != std::string::npos) {
      nlohmann::json answer = nlohmann::json::parse(buffer_.substr(0, end), nullptr, false);
      buffer_.erase(0, end + 1);
      if (answer.is_discarded() || !answer.is_object())
        throw BenchError(name_ + " wrote something else than an answer");
      if (answer.contains("error")) throw BenchError(name_ + ": " + answer["error"].get<std::string>());
      return answer;
    }
    if (!WaitUntil(from_child_.get(), deadline, /*interruptible=*/true)) {
      throw BenchError(name_ + " did not answer within " + std::to_string(timeout.count()) + " s");
    }
    char chunk[4096];
    const ssize_t n = ::read(from_child_.get(), chunk, sizeof(chunk));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw BenchError(name_ + " ended before it answered");
    buffer_.append(chunk, static_cast<size_t>(n));
  }
}

nlohmann::json ChildProcess::Ask(const nlohmann::json& request, std::chrono::seconds timeout) {
  const std::string line = request.dump() + "\n";
  size_t sent = 0;
  while (sent < line.size()) {
    const ssize_t n = ::write(to_child_.get(), line.data() + sent, line.size() - sent);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw BenchError(name_ + " has ended");
    sent += static_cast<size_t>(n);
  }
  return Read(timeout);
}

}  // namespace uzswap::bench
