#include "daemon/keeper/handover.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace uzswap {
namespace {

constexpr std::chrono::seconds kPatience{10};
constexpr size_t kMostWords = 400;
constexpr int kTableFd = 3;  // in the program

// What comes through `fd` until it is closed, or until the patience ends (then `*in_time` is false).
std::string Listen(int fd, bool* in_time) {
  std::string words;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd one{fd, POLLIN, 0};
    *in_time = left.count() > 0;
    if (!*in_time) return words;
    if (poll(&one, 1, static_cast<int>(left.count())) <= 0) continue;
    char text[256];
    const ssize_t got = read(fd, text, sizeof(text));
    if (got <= 0) return words;
    words.append(text, std::min(static_cast<size_t>(got), kMostWords - std::min(kMostWords, words.size())));
  }
}

}  // namespace

std::string WhyNotSuccessor(const std::string& program, const ClientTable& table) {
  if (program.empty() || program[0] != '/' || program.size() >= sizeof(TableHeader::successor))
    return "the program has to be named by an absolute path";
  int ends[2] = {-1, -1};
  if (pipe2(ends, O_CLOEXEC) != 0) return std::string("a pipe: ") + strerror(errno);
  const zp::UniqueFd reader(ends[0]);
  zp::UniqueFd writer(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, writer.get(), STDERR_FILENO);
  posix_spawn_file_actions_adddup2(&actions, table.fd(), kTableFd);
  const std::string number = std::to_string(kTableFd);
  const char* arguments[] = {program.c_str(), "--check-state", number.c_str(), nullptr};
  pid_t pid = 0;
  const int error =
      posix_spawn(&pid, program.c_str(), &actions, nullptr, const_cast<char* const*>(arguments), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return program + ": " + strerror(error);
  writer.reset();
  bool in_time = true;
  std::string words = Listen(reader.get(), &in_time);
  if (!in_time) (void)kill(pid, SIGKILL);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return "";
  while (!words.empty() && words.back() == '\n') words.pop_back();
  return words.empty() ? program + " does not say that it could go on; is it a uzswapd?" : words;
}

}  // namespace uzswap
