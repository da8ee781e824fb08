#include "tools/uzswap/run_command.h"

#include <errno.h>
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>

#include "tools/uzswap/daemon_client.h"
#include "tools/uzswap/embedded_daemon.h"
#include "tools/uzswap/exit_codes.h"
#include "tools/uzswap/install_paths.h"
#include "tools/uzswap/kernel_checks.h"
#include "tools/uzswap/program_file.h"
#include "tools/uzswap/run_report.h"
#include "tools/uzswap/supervisor.h"

namespace uzswap::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// How often a report looks for new descendants while the program runs.
constexpr milliseconds kObserveInterval{500};

void Say(const std::string& text) { fmt::print(stderr, "uzswap: {}\n", text); }

std::string SearchPath() {
  const char* path = std::getenv("PATH");
  return path != nullptr ? path : "/bin:/usr/bin";  // what execvp takes
}

bool Quiet() { return std::getenv("UZSWAP_QUIET") != nullptr; }

std::vector<std::string> OwnEnvironment() {
  std::vector<std::string> out;
  for (char** e = environ; *e != nullptr; ++e) out.emplace_back(*e);
  return out;
}

void SetVariable(std::vector<std::string>* environment, const std::string& name, const std::string& value) {
  const std::string prefix = name + "=";
  std::erase_if(*environment, [&](const std::string& entry) { return entry.starts_with(prefix); });
  if (!value.empty()) environment->push_back(prefix + value);
}

int ExecFailure(const std::string& path, int error) {
  Say(fmt::format("{}: {}", path, std::strerror(error)));
  return error == ENOENT ? kExitNotFound : kExitNotExecutable;
}

// The system daemon's socket if one answers; else "" with a message where going on would surprise.
OrMessage<std::string> FindSystemDaemon(const RunOptions& options) {
  if (options.embedded) return std::string();
  const std::string socket = SocketPath(options.socket);
  const Answer answer = AskDaemon(socket, {{"verb", "ping"}}, kPingTimeout);
  if (answer.ok()) {
    if (options.pool_limit_bytes != 0) {
      return Message{
          fmt::format("--pool-limit is for a daemon of uzswap's own, and one listens at {} already, whose "
                      "pool limit was set at its start; leave --pool-limit out, or add --embedded",
                      socket)};
    }
    // Absolute: the program may change its directory before it starts another.
    std::error_code failed;
    const auto absolute = std::filesystem::absolute(socket, failed);
    return failed ? socket : absolute.string();
  }
  if (!options.socket.empty()) {
    return Message{answer.message + "; or leave --socket out: then uzswap starts one for this run"};
  }
  // That nobody listens is the ordinary case; that somebody does and does not answer is worth a word.
  const bool worth_telling =
      answer.result != AskResult::kNoDaemon || (answer.status != ENOENT && answer.status != ECONNREFUSED);
  if (worth_telling && !Quiet()) Say(answer.message + ". Starting an embedded one.");
  return std::string();
}

OrMessage<EmbeddedDaemon> StartEmbedded(const RunOptions& options, const Supervisor& supervisor) {
  std::vector<Check> checks = CheckDaemonRights();
  const std::vector<Check> kernel = CheckKernel();
  checks.insert(checks.end(), kernel.begin(), kernel.end());
  if (const std::string missing = RenderMissing(checks); !missing.empty()) {
    return Message{"no daemon listens, and none can be started here:\n" + missing +
                   "\n  `uzswap doctor` shows everything"};
  }
  OrMessage<std::string> program = FindDaemonProgram();
  if (!program.ok()) return Message{program.message()};
  const EmbeddedOptions embedded = {program.value(), options.codec, options.pool, options.pool_limit_bytes};
  OrMessage<EmbeddedDaemon> daemon = EmbeddedDaemon::Start(
      embedded, [&] { supervisor.RestoreInChild(); }, [&] { return supervisor.PendingEnd() != 0; });
  if (!daemon.ok()) return Message{"the embedded daemon did not start:\n" + daemon.message()};
  return daemon;
}

std::optional<StatSnapshot> Snapshot(const std::string& socket, bool include_gone) {
  const Answer answer = AskDaemon(socket, {{"verb", "stat"}, {"include_gone", include_gone}}, kStatTimeout);
  if (!answer.ok()) return std::nullopt;
  OrMessage<StatSnapshot> snapshot = ParseStat(answer.answer);
  if (!snapshot.ok()) return std::nullopt;
  return std::move(snapshot).value();
}

// A client becomes "gone" a moment after its process ended; its last figures are wanted.
std::optional<StatSnapshot> FinalSnapshot(const std::string& socket, uint64_t program_pid) {
  constexpr int kTries = 20;
  constexpr milliseconds kPause{25};
  std::optional<StatSnapshot> snapshot;
  for (int i = 0; i < kTries; ++i) {
    snapshot = Snapshot(socket, true);
    bool still_there = false;
    for (const ClientStat& c : snapshot ? snapshot->clients : std::vector<ClientStat>()) {
      still_there |= c.pid == program_pid && !c.gone();
    }
    if (!still_there) break;
    usleep(static_cast<useconds_t>(std::chrono::microseconds(kPause).count()));
  }
  return snapshot;
}

// Runs the program under supervision and prints what is to be said afterwards.
ProgramEnd Supervise(const RunOptions& options, const ProgramStart& start, Supervisor* supervisor,
                     EmbeddedDaemon* embedded, const std::string& socket, int* start_error) {
  RunClients clients;
  if (embedded == nullptr) {
    const auto before = Snapshot(socket, true);
    if (before) clients = RunClients(*before);
  }
  const auto began = steady_clock::now();
  *start_error = supervisor->Start(start);
  if (*start_error != 0) return {};
  const auto pid = static_cast<uint64_t>(supervisor->pid());

  const auto observe = [&] {
    if (!options.report || embedded != nullptr) return;
    if (const auto now = Snapshot(socket, false)) clients.Observe(*now, pid);
  };
  const auto on_child = [&](pid_t child) {
    if (embedded == nullptr || child != embedded->keeper_pid()) return;
    Say(fmt::format("the embedded daemon ended while {} was running; memory that it held is lost\n{}",
                    start.arguments[0], embedded->LogTail()));
  };
  const ProgramEnd end = supervisor->Wait(kObserveInterval, observe, on_child);
  if (!options.report) return end;

  const double seconds = std::chrono::duration<double>(steady_clock::now() - began).count();
  if (const auto last = FinalSnapshot(socket, pid)) {
    fmt::print(stderr, "{}", RenderRunReport(start.arguments[0], seconds, clients.Select(*last, pid)));
  } else {
    Say("no report: the daemon does not answer any more");
  }
  if (embedded != nullptr) {
    if (const std::string log = embedded->LogTail(); !log.empty()) fmt::print(stderr, "{}\n", log);
  }
  return end;
}

int RunSupervised(const RunOptions& options, const std::string& program, const std::string& agent,
                  std::string socket) {
  Supervisor supervisor;
  std::optional<EmbeddedDaemon> embedded;
  if (socket.empty()) {
    OrMessage<EmbeddedDaemon> started = StartEmbedded(options, supervisor);
    if (const int signal = supervisor.PendingEnd(); signal != 0) {
      if (started.ok()) started.value().Release();
      EndLike({true, signal});
    }
    if (!started.ok()) {
      Say(started.message());
      return kExitRunFailed;
    }
    embedded = std::move(started).value();
    socket = embedded->socket_path();
  }
  const ProgramStart start = {program, options.command,
                              ProgramEnvironment(OwnEnvironment(), options, agent, socket)};
  int start_error = 0;
  const ProgramEnd end =
      Supervise(options, start, &supervisor, embedded ? &*embedded : nullptr, socket, &start_error);
  if (embedded && !embedded->Release() && options.report) {
    Say(fmt::format(
        "processes that {} left behind go on using the embedded daemon; it ends with the last of them",
        options.command[0]));
  }
  if (start_error != 0) return ExecFailure(program, start_error);
  EndLike(end);
}

}  // namespace

std::vector<std::string> ProgramEnvironment(std::vector<std::string> base, const RunOptions& options,
                                            const std::string& agent, const std::string& socket) {
  std::string preload = agent;
  constexpr std::string_view kPreload = "LD_PRELOAD=";
  for (const std::string& entry : base) {
    if (!entry.starts_with(kPreload)) continue;
    // An agent that stands there already (uzswap under uzswap) is not named twice.
    std::string_view rest = std::string_view(entry).substr(kPreload.size());
    while (!rest.empty()) {
      const size_t separator = rest.find_first_of(": ");
      const std::string_view item = rest.substr(0, separator);
      if (!item.empty() && item != agent) preload += fmt::format(":{}", item);
      rest = separator == std::string_view::npos ? std::string_view() : rest.substr(separator + 1);
    }
  }
  SetVariable(&base, "LD_PRELOAD", preload);
  SetVariable(&base, "UZSWAP_SOCKET", socket);
  SetVariable(&base, "UZSWAP_LIMIT", options.limit_bytes == 0 ? "" : fmt::format("{}", options.limit_bytes));
  SetVariable(&base, "UZSWAP_CODEC", options.codec);
  SetVariable(&base, "UZSWAP_POOL", options.pool);
  return base;
}

int RunCommand(const RunOptions& options) {
  const ProgramLookup program = FindProgram(options.command[0], SearchPath());
  if (program.path.empty()) {
    Say(program.message);
    return program.exit_code;
  }
  if (const std::string why = CheckPreloadable(program.path, ExecIdentity::Current(), SearchPath());
      !why.empty()) {
    Say("cannot preload the agent: " + why);
    return kExitRunFailed;
  }
  const OrMessage<std::string> agent = FindAgentLibrary();
  if (!agent.ok()) {
    Say(agent.message());
    return kExitRunFailed;
  }
  const OrMessage<std::string> system = FindSystemDaemon(options);
  if (!system.ok()) {
    Say(system.message());
    return kExitRunFailed;
  }
  if (system.value().empty() || options.report) {
    return RunSupervised(options, program.path, agent.value(), system.value());
  }
  const ProgramStart start = {program.path, options.command,
                              ProgramEnvironment(OwnEnvironment(), options, agent.value(), system.value())};
  return ExecFailure(program.path, ExecProgram(start));
}

}  // namespace uzswap::cli
