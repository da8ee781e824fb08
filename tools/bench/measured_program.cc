#include "tools/bench/measured_program.h"

#include <chrono>
#include <thread>
#include <utility>

#include "tools/bench/error.h"
#include "tools/bench/interrupt.h"
#include "tools/bench/page_source.h"
#include "tools/uzswap/daemon_client.h"

namespace uzswap::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

constexpr std::chrono::milliseconds kDaemonTimeout{120'000};
// Mappings that are younger than the daemon's threshold are left alone for a while.
constexpr std::chrono::seconds kEvictPatience{20};
// The daemon may take a program's other cold pages first; so a little more is asked for.
constexpr uint64_t kSlackPages = 256;

std::vector<std::string> CommandLine(MeasuredProgram::Side side, const std::string& uzswap) {
  std::vector<std::string> worker{OwnPath(), "--worker"};
  if (side == MeasuredProgram::Side::kPeer) return worker;
  std::vector<std::string> command{uzswap, "run", "--"};
  command.insert(command.end(), worker.begin(), worker.end());
  return command;
}

}  // namespace

MeasuredProgram::MeasuredProgram(Side side, const std::string& uzswap)
    : side_(side), child_(CommandLine(side, uzswap), ChildProcess::Kind::kDiesWithParent) {
  const Json hello = child_.Read();
  pid_ = hello.at("pid").get<pid_t>();
  if (side_ == Side::kPeer) return;
  socket_ = cli::SocketPath(hello.at("socket").get<std::string>());
  daemon_pid_ = AskDaemon({{"verb", "ping"}}).at("pid").get<pid_t>();
}

Json MeasuredProgram::AskDaemon(const Json& request) const {
  CheckInterrupted();
  cli::Answer answer = cli::AskDaemon(socket_, request, kDaemonTimeout);
  if (!answer.ok())
    throw BenchError("the daemon, asked to " + request.at("verb").get<std::string>() + ": " + answer.message);
  return std::move(answer.answer);
}

void MeasuredProgram::Settle() const {
  WaitUntilIdle(pid_);
  if (daemon_pid_ != 0) WaitUntilIdle(daemon_pid_);
}

void MeasuredProgram::Fill(uint64_t pages, const std::string& source, uint64_t seed) {
  child_.Ask({{"op", "fill"}, {"pages", pages}, {"source", source}, {"seed", seed}});
  pages_ = pages;
}

uint64_t MeasuredProgram::GonePages() {
  const Json states = child_.Ask({{"op", "states"}});
  return states.at(side_ == Side::kOurs ? "absent" : "swapped").get<uint64_t>();
}

void MeasuredProgram::TakeAway(uint64_t pages, Eviction& eviction) {
  if (side_ == Side::kPeer) {
    eviction.wall_us += child_.Ask({{"op", "pageout"}}).at("wall_us").get<double>();
    return;
  }
  const auto before = Clock::now();
  AskDaemon({{"verb", "reclaim"}, {"pid", pid_}, {"bytes", (pages + kSlackPages) * kPageBytes}});
  eviction.wall_us += std::chrono::duration<double, std::micro>(Clock::now() - before).count();
}

Eviction MeasuredProgram::Evict() {
  child_.Ask({{"op", "dirty"}});
  Settle();
  Eviction eviction;
  const uint64_t gone_before = GonePages();  // 0, but for a page that no touch brought home
  const uint64_t program_before = ProcessCpuNs(pid_);
  const uint64_t daemon_before = daemon_pid_ == 0 ? 0 : ProcessCpuNs(daemon_pid_);
  const uint64_t kernel_before = kernel_threads_.CpuNs();
  uint64_t gone = gone_before;
  const auto deadline = Clock::now() + kEvictPatience;
  while (true) {
    TakeAway(pages_ - gone, eviction);
    const uint64_t before = std::exchange(gone, GonePages());
    if (gone >= pages_ || (gone == before && gone * 1000 >= pages_ * kEnoughPermille)) break;
    if (gone > before) continue;
    if (Clock::now() > deadline) {
      throw BenchError("only " + std::to_string(gone) + " of " + std::to_string(pages_) +
                       " pages could be evicted; nothing is measured");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  Settle();
  eviction.pages = gone - gone_before;
  eviction.program_us = static_cast<double>(ProcessCpuNs(pid_) - program_before) / 1e3;
  if (daemon_pid_ != 0)
    eviction.daemon_us = static_cast<double>(ProcessCpuNs(daemon_pid_) - daemon_before) / 1e3;
  eviction.kernel_us = static_cast<double>(kernel_threads_.CpuNs() - kernel_before) / 1e3;
  return eviction;
}

Json MeasuredProgram::TouchRandomly(uint64_t touches, uint64_t seed, unsigned gap_us) {
  return child_.Ask({{"op", "random"}, {"touches", touches}, {"seed", seed}, {"gap_us", gap_us}});
}

Json MeasuredProgram::TouchSequentially() {
  const uint64_t before = ProcessCpuNs(pid_) + (daemon_pid_ == 0 ? 0 : ProcessCpuNs(daemon_pid_));
  Json answer = child_.Ask({{"op", "sequential"}});
  const uint64_t after = ProcessCpuNs(pid_) + (daemon_pid_ == 0 ? 0 : ProcessCpuNs(daemon_pid_));
  const uint64_t pages = answer.at("pages").get<uint64_t>();
  answer["cpu_us_per_page"] =
      pages == 0 ? 0 : static_cast<double>(after - before) / 1e3 / static_cast<double>(pages);
  return answer;
}

void MeasuredProgram::Verify() {
  const uint64_t wrong = child_.Ask({{"op", "verify"}}).at("wrong").get<uint64_t>();
  if (wrong != 0) {
    throw BenchError(std::to_string(wrong) + " pages of " + (side_ == Side::kOurs ? "our" : "the peer's") +
                     " side came back WRONG; figures mean nothing until that is found");
  }
}

LoadRate MeasuredProgram::Load(const std::string& kind, unsigned milliseconds) {
  const Json answer = child_.Ask({{"op", "load"}, {"kind", kind}, {"milliseconds", milliseconds}});
  return {answer.at("operations_per_second").get<double>(),
          answer.at("operations_per_cpu_second").get<double>()};
}

Json MeasuredProgram::DaemonState() {
  if (side_ == Side::kPeer) return nullptr;
  Json state{{"ping", AskDaemon({{"verb", "ping"}})}};
  const Json stat = AskDaemon({{"verb", "stat"}, {"pid", pid_}});
  if (stat.contains("clients") && !stat["clients"].empty()) state["client"] = stat["clients"][0];
  if (stat.contains("totals")) state["totals"] = stat["totals"];
  return state;
}

}  // namespace uzswap::bench
