#include "tools/uzswap/embedded_daemon.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "tools/uzswap/daemon_client.h"
#include "tools/uzswap/stat_snapshot.h"

namespace uzswap::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr char kSocketName[] = "uzswapd.sock";
constexpr char kLogName[] = "uzswapd.log";
constexpr milliseconds kStartTimeout{15'000};
constexpr milliseconds kEndTimeout{5'000};
// For so long a process that has just ended may still look alive.
constexpr milliseconds kZombieTime{250};
// The daemon looks about every second whether forked children still live.
constexpr milliseconds kProbeTime{2'000};
constexpr milliseconds kPollSlice{50};
constexpr int kReadyFd = 3;  // in the daemon
constexpr size_t kLogTailBytes = 2000;

// A new directory of mode 0700, short enough for a socket's path; "" and errno if none can be made.
std::string MakeDirectory() {
  const char* wanted = std::getenv("TMPDIR");
  for (const std::string& parent : {std::string(wanted == nullptr ? "" : wanted), std::string("/tmp")}) {
    std::string path = parent + "/uzswap-XXXXXX";
    if (parent.empty() || path.size() + 1 + sizeof(kSocketName) > sizeof(sockaddr_un::sun_path)) continue;
    if (mkdtemp(path.data()) != nullptr) return path;
  }
  return "";
}

void RemoveDirectory(const std::string& directory) {
  for (const char* name : {kSocketName, kLogName}) unlink((directory + "/" + name).c_str());
  rmdir(directory.c_str());
}

// Moves `from` to the descriptor `to` of a child that is about to exec.
void Place(int from, int to) {
  if (from == to) {
    fcntl(to, F_SETFD, 0);
  } else {
    dup2(from, to);
  }
}

// The daemon's environment: without what makes a program a client.
std::vector<std::string> DaemonEnvironment() {
  std::vector<std::string> out;
  for (char** e = environ; *e != nullptr; ++e) {
    const std::string_view entry(*e);
    if (!entry.starts_with("LD_PRELOAD=") && !entry.starts_with("UZSWAP_")) out.emplace_back(entry);
  }
  return out;
}

struct Descriptors {
  zp::UniqueFd stdin_read, ready_write;
  int log;  // not owned
};

[[noreturn]] void ExecDaemon(const std::vector<char*>& arguments, const std::vector<char*>& environment,
                             const Descriptors& fds) {
  // Above the targets first, so that none is overwritten before it is placed.
  const int base = 16;
  const int in = fcntl(fds.stdin_read.get(), F_DUPFD, base);
  const int ready = fcntl(fds.ready_write.get(), F_DUPFD, base);
  const int log = fcntl(fds.log, F_DUPFD, base);
  Place(in, STDIN_FILENO);
  Place(log, STDOUT_FILENO);
  Place(log, STDERR_FILENO);
  Place(ready, kReadyFd);
  close_range(kReadyFd + 1, ~0u, 0);
  execve(arguments[0], arguments.data(), environment.data());
  dprintf(STDERR_FILENO, "%s: %s\n", arguments[0], std::strerror(errno));
  _exit(1);
}

// Waits for the end of the daemon and of its successors, which become this process's children, and tidies up.
// Holds nothing of the caller's: neither files nor its terminal.
[[noreturn]] void Keep(pid_t daemon, const std::string& directory) {
  const int null_fd = open("/dev/null", O_RDWR);
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(null_fd, fd);
  close_range(STDERR_FILENO + 1, ~0u, 0);
  while (daemon > 0 && (waitpid(-1, nullptr, 0) >= 0 || errno == EINTR)) {
  }
  RemoveDirectory(directory);
  _exit(0);
}

enum class Readiness { kReady, kEnded, kTimeout, kInterrupted };

Readiness AwaitReady(int fd, const std::function<bool()>& interrupted) {
  const auto deadline = steady_clock::now() + kStartTimeout;
  while (steady_clock::now() < deadline) {
    pollfd one = {fd, POLLIN, 0};
    if (poll(&one, 1, static_cast<int>(kPollSlice.count())) > 0) {
      char byte;
      return read(fd, &byte, 1) == 1 ? Readiness::kReady : Readiness::kEnded;
    }
    if (interrupted()) return Readiness::kInterrupted;
  }
  return Readiness::kTimeout;
}

}  // namespace

OrMessage<EmbeddedDaemon> EmbeddedDaemon::Start(const EmbeddedOptions& options,
                                                const std::function<void()>& restore_signals,
                                                const std::function<bool()>& interrupted) {
  EmbeddedDaemon daemon;
  daemon.directory_ = MakeDirectory();
  if (daemon.directory_.empty()) {
    return Message{fmt::format(
        "cannot make a directory for the embedded daemon's socket: {}; set TMPDIR to a writable one",
        std::strerror(errno))};
  }
  daemon.socket_path_ = daemon.directory_ + "/" + kSocketName;
  // Kept open here: what the daemon said is wanted also when its directory is gone.
  daemon.log_.reset(
      open((daemon.directory_ + "/" + kLogName).c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600));

  std::vector<std::string> arguments = {options.program,     "--embedded", "--socket",
                                        daemon.socket_path_, "--ready-fd", std::to_string(kReadyFd),
                                        "--log-level",       "warn"};
  const auto add = [&](const char* name, const std::string& value) {
    if (!value.empty()) arguments.insert(arguments.end(), {name, value});
  };
  add("--codec", options.codec);
  add("--pool", options.pool);
  add("--pool-limit", options.pool_limit_bytes == 0 ? "" : std::to_string(options.pool_limit_bytes));
  std::vector<std::string> environment = DaemonEnvironment();
  std::vector<char*> argument_pointers, environment_pointers;
  for (std::string& a : arguments) argument_pointers.push_back(a.data());
  for (std::string& e : environment) environment_pointers.push_back(e.data());
  argument_pointers.push_back(nullptr);
  environment_pointers.push_back(nullptr);

  int lifeline[2] = {-1, -1};
  int ready[2] = {-1, -1};
  Descriptors fds = {.log = daemon.log_.get()};
  const bool pipes = pipe2(lifeline, O_CLOEXEC) == 0 && pipe2(ready, O_CLOEXEC) == 0;
  fds.stdin_read.reset(lifeline[0]);
  daemon.lifeline_.reset(lifeline[1]);
  zp::UniqueFd ready_read(ready[0]);
  fds.ready_write.reset(ready[1]);
  daemon.keeper_ = pipes && daemon.log_.valid() ? fork() : -1;
  if (daemon.keeper_ < 0) {
    const int error = errno;
    RemoveDirectory(daemon.directory_);
    return Message{fmt::format("cannot start the embedded daemon: {}", std::strerror(error))};
  }
  if (daemon.keeper_ == 0) {
    setsid();
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
    (void)!chdir("/");
    const pid_t child = fork();
    if (child == 0) {
      restore_signals();
      daemon.lifeline_.reset();
      ExecDaemon(argument_pointers, environment_pointers, fds);
    }
    Keep(child, daemon.directory_);
  }
  fds.ready_write.reset();  // else the daemon's end would not close that pipe
  fds.stdin_read.reset();

  const Readiness readiness = AwaitReady(ready_read.get(), interrupted);
  if (readiness == Readiness::kReady) return daemon;
  std::string log = daemon.LogTail();
  if (readiness == Readiness::kTimeout) {
    log +=
        fmt::format("{}it was not ready within {} s", log.empty() ? "" : "\n", kStartTimeout.count() / 1000);
  }
  if (readiness == Readiness::kInterrupted) log = "interrupted";
  daemon.Release();
  return Message{log.empty() ? "the embedded daemon ended without a word" : log};
}

std::string EmbeddedDaemon::LogTail() const {
  struct stat st;
  if (!log_.valid() || fstat(log_.get(), &st) != 0) return "";
  std::string text(kLogTailBytes, '\0');
  const off_t from = std::max<off_t>(0, st.st_size - static_cast<off_t>(text.size()));
  const ssize_t n = pread(log_.get(), text.data(), text.size(), from);
  text.resize(n > 0 ? static_cast<size_t>(n) : 0);
  if (from > 0) text.erase(0, text.find('\n') + 1);  // the first line is cut
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

EmbeddedDaemon::Users EmbeddedDaemon::FindUsers() const {
  const Answer answer = AskDaemon(socket_path_, {{"verb", "stat"}}, kPingTimeout);
  if (!answer.ok()) return Users::kNone;
  const OrMessage<StatSnapshot> snapshot = ParseStat(answer.answer);
  if (!snapshot.ok()) return Users::kNone;
  Users users = Users::kNone;
  for (const ClientStat& c : snapshot.value().clients) {
    if (c.pid == 0) {
      users = Users::kUnknown;
    } else if (kill(static_cast<pid_t>(c.pid), 0) == 0 || errno == EPERM) {
      return Users::kLiving;
    }
  }
  return users;
}

bool EmbeddedDaemon::Release() {
  lifeline_.reset();
  const auto start = steady_clock::now();
  milliseconds pause{1};
  for (;;) {
    if (waitpid(keeper_, nullptr, WNOHANG) != 0) return true;  // ended, or was reaped before
    const auto waited = steady_clock::now() - start;
    if (waited > kEndTimeout) return false;
    if (waited > kZombieTime) {
      const Users users = FindUsers();
      if (users == Users::kLiving || (users == Users::kUnknown && waited > kProbeTime)) return false;
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, kPollSlice);
  }
}

}  // namespace uzswap::cli
