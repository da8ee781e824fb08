#include "tools/uzswap/setup_checks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "libzpool/base/fd.h"
#include "tools/agent/agent_state.h"
#include "tools/uzswap/daemon_client.h"
#include "tools/uzswap/human.h"
#include "tools/uzswap/install_paths.h"
#include "tools/uzswap/json_field.h"

namespace uzswap::cli {
namespace {

// The kernel's default; a program whose memory is evicted in pieces needs more mappings than natively.
constexpr uint64_t kUsualMapCount = 65530;
// Of the first pid namespace of a machine: PROC_PID_INIT_INO of include/linux/proc_ns.h.
constexpr char kInitialPidNamespace[] = "pid:[4026531836]";
// Yama's scope in which nobody may look into another process.
constexpr uint64_t kYamaNobody = 3;

std::string ReadFile(const char* path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The number that `path` begins with, or `otherwise`.
uint64_t ReadNumber(const char* path, uint64_t otherwise) {
  uint64_t number = 0;
  return std::ifstream(path) >> number ? number : otherwise;
}

// The value of a "Name:\tvalue" line of /proc/self/status; "" if there is none.
std::string StatusField(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(name + ":\t")) return line.substr(name.size() + 2);
  }
  return "";
}

struct Output {
  int status = -1;   // of waitpid
  std::string text;  // stdout and stderr
};

// What `path` prints with those variables added to the environment.
Output RunWith(const std::string& path, const std::vector<std::string>& added) {
  int fds[2];
  Output output;
  if (pipe2(fds, O_CLOEXEC) != 0) return output;
  zp::UniqueFd in(fds[0]);
  zp::UniqueFd out(fds[1]);
  const pid_t child = fork();
  if (child < 0) return output;
  if (child == 0) {
    dup2(out.get(), STDOUT_FILENO);
    dup2(out.get(), STDERR_FILENO);
    for (const std::string& variable : added) putenv(const_cast<char*>(variable.c_str()));
    execl(path.c_str(), path.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  out.reset();
  char buffer[4096];
  for (;;) {
    const ssize_t n = read(in.get(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    output.text.append(buffer, static_cast<size_t>(n));
  }
  waitpid(child, &output.status, 0);
  return output;
}

// The dynamic linker's own list of what it would load into this very program (as ldd does it).
Check CheckPreload(const std::string& agent) {
  Check check{.name = "LD_PRELOAD", .detail = "the dynamic linker loads the agent"};
  const Output output = RunWith("/proc/self/exe", {"LD_TRACE_LOADED_OBJECTS=1", "LD_PRELOAD=" + agent});
  const bool complaint = output.text.find("cannot be preloaded") != std::string::npos ||
                         output.text.find("not found") != std::string::npos;
  if (output.status == 0 && !complaint && output.text.find(agent) != std::string::npos) return check;
  check.status = CheckStatus::kMissing;
  std::string said = output.text.substr(0, output.text.find('\n'));
  if (!complaint) said = "it was ignored (a privileged uzswap, or a security policy?)";
  check.detail = fmt::format("the dynamic linker does not load the agent: {}", said);
  check.fix = "reinstall uzswap for this machine's C library, and run it without setuid or file capabilities";
  return check;
}

Check CheckMemlock() {
  Check check{.name = "memlock limit"};
  rlimit limit = {};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  check.detail = limit.rlim_cur == RLIM_INFINITY ? "unlimited" : FormatBytes(limit.rlim_cur);
  const bool may_lock = geteuid() == 0;
  if (limit.rlim_cur < agent::kArenaBytes && !may_lock) {
    check.status = CheckStatus::kNote;
    check.detail += fmt::format(", the agent would like to lock {}; the kernel may then swap its stack out",
                                FormatBytes(agent::kArenaBytes));
    check.fix = "ulimit -l 1024, or LimitMEMLOCK=1M in a systemd unit";
  }
  return check;
}

Check CheckMapCount() {
  const uint64_t count = ReadNumber("/proc/sys/vm/max_map_count", kUsualMapCount);
  Check check{.name = "vm.max_map_count", .detail = fmt::format("{}", count)};
  if (count < kUsualMapCount) {
    check.status = CheckStatus::kNote;
    check.detail += ", little for a program whose memory is evicted in pieces";
    check.fix = fmt::format("sysctl vm.max_map_count={}", kUsualMapCount * 4);
  }
  return check;
}

Check CheckYama() {
  const uint64_t scope = ReadNumber("/proc/sys/kernel/yama/ptrace_scope", 0);
  Check check{.name = "ptrace",
              .detail = fmt::format("allowed to a daemon with CAP_SYS_PTRACE (Yama scope {})", scope)};
  if (scope >= kYamaNobody) {
    check.status = CheckStatus::kMissing;
    check.detail =
        "kernel.yama.ptrace_scope=3: nobody may look into a process, so the daemon cannot prove whose memory "
        "it is";
    check.fix = "boot with kernel.yama.ptrace_scope=2 or less; 3 cannot be undone on a running kernel";
  }
  return check;
}

void AddContainerNotes(std::vector<Check>* checks) {
  char name[64] = {};
  const ssize_t n = readlink("/proc/self/ns/pid", name, sizeof(name) - 1);
  if (n > 0 && std::strcmp(name, kInitialPidNamespace) != 0) {
    checks->push_back(
        {"pid namespace", CheckStatus::kNote, "not the machine's own: this looks like a container",
         "run the daemon in this container or on the host; one in another container cannot serve you"});
  }
  if (StatusField("Seccomp") == "2") {
    checks->push_back(
        {"seccomp", CheckStatus::kNote,
         "a filter is active here; what it forbids of the above is shown as missing",
         "docker run --security-opt seccomp=PROFILE, with userfaultfd, ioctl and close_range allowed"});
  }
  if (ReadFile("/proc/self/status").empty()) {
    checks->push_back({"/proc", CheckStatus::kMissing, "not mounted", "mount -t proc proc /proc"});
  }
}

}  // namespace

Check CheckDaemon(const std::string& socket_path, bool* answers) {
  Check check{.name = "daemon"};
  const Answer answer = AskDaemon(socket_path, {{"verb", "ping"}}, kPingTimeout);
  *answers = answer.ok();
  if (answer.ok()) {
    check.detail = fmt::format("answers at {} (pid {}, version {})", socket_path,
                               CountField(answer.answer, "pid"), TextField(answer.answer, "version"));
    return check;
  }
  check.status = CheckStatus::kNote;
  check.detail = answer.message;
  return check;
}

std::vector<Check> CheckAgent() {
  const OrMessage<std::string> agent = FindAgentLibrary();
  if (!agent.ok()) return {{"agent library", CheckStatus::kMissing, agent.message(), ""}};
  return {{"agent library", CheckStatus::kOk, agent.value(), ""}, CheckPreload(agent.value())};
}

std::vector<Check> CheckSurroundings() {
  std::vector<Check> checks = {CheckMemlock(), CheckMapCount(), CheckYama()};
  AddContainerNotes(&checks);
  return checks;
}

}  // namespace uzswap::cli
