#include "tools/bench/worker.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "tools/bench/error.h"
#include "tools/bench/load.h"
#include "tools/bench/page_source.h"
#include "tools/bench/region.h"

namespace uzswap::bench {
namespace {

using Json = nlohmann::json;

void Answer(const Json& answer) {
  std::printf("%s\n", answer.dump().c_str());
  std::fflush(stdout);
}

Json CountStates(const Region& region) {
  size_t counts[3] = {};
  for (const PageState state : region.States()) ++counts[static_cast<size_t>(state)];
  return {{"present", counts[static_cast<size_t>(PageState::kPresent)]},
          {"swapped", counts[static_cast<size_t>(PageState::kSwapped)]},
          {"absent", counts[static_cast<size_t>(PageState::kAbsent)]}};
}

Json Serve(const Json& request, std::unique_ptr<Region>& region) {
  const std::string op = request.at("op");
  if (op == "load") {
    const std::chrono::milliseconds duration(request.at("milliseconds").get<int64_t>());
    const LoadRate rate = RunLoad(request.at("kind"), duration);
    return {{"operations_per_second", rate.per_second}, {"operations_per_cpu_second", rate.per_cpu_second}};
  }
  if (op == "fill") {
    const PageSource source = PageSource::Load(request.at("source"), request.at("seed"));
    region = std::make_unique<Region>(source, request.at("pages").get<size_t>());
    return Json::object();
  }
  if (region == nullptr) throw BenchError(op + " before fill");
  if (op == "dirty") {
    region->Dirty();
    return Json::object();
  }
  if (op == "pageout") {
    const auto before = std::chrono::steady_clock::now();
    region->PageOut();
    const auto took = std::chrono::steady_clock::now() - before;
    return {{"wall_us", std::chrono::duration<double, std::micro>(took).count()}};
  }
  if (op == "states") return CountStates(*region);
  if (op == "random") {
    return region->TouchRandomly(request.at("touches").get<size_t>(), request.at("seed").get<uint64_t>(),
                                 request.at("gap_us").get<unsigned>());
  }
  if (op == "sequential") return region->TouchSequentially();
  if (op == "verify") return {{"wrong", region->CountWrong()}};
  throw BenchError("unknown request " + op);
}

}  // namespace

int WorkerMain() {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const char* socket = std::getenv("UZSWAP_SOCKET");
  Answer({{"pid", ::getpid()}, {"socket", socket == nullptr ? "" : socket}});
  std::unique_ptr<Region> region;
  std::string line;
  while (std::getline(std::cin, line)) {
    try {
      Answer(Serve(Json::parse(line), region));
    } catch (const std::exception& failure) {
      Answer({{"error", failure.what()}});
    }
  }
  return 0;
}

}  // namespace uzswap::bench
