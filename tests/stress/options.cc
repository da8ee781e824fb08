#include "tests/stress/options.h"

#include <getopt.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace uzswap::stress {
namespace {

constexpr char kHelp[] =
    "Usage: verifier [OPTION]...\n"
    "Threads read and write memory whose every word says what it should be; a swapped, stale or zero page is "
    "told.\n\n"
    "  --threads N          workers (8)\n"
    "  --megabytes N        of verified memory (512)\n"
    "  --malloc-percent N   of it from malloc, the rest from mmap (40)\n"
    "  --seconds S          of work, before everything is verified once more (10)\n"
    "  --seed N             of the operations (drawn from the clock)\n"
    "  --fork-every-ms N    least time between two forks of a thread (1000)\n"
    "  --hang-seconds N     without any operation done: report a hang (60)\n"
    "  --no-fork --no-maps --no-heap --no-direct --no-threads --no-helpers\n"
    "                       leave out forks; madvise, munmap, mremap, mprotect; free, realloc; O_DIRECT;\n"
    "                       short-lived threads; the hand-over pair and the mprotect loop\n"
    "  --keep-at-once       take MADV_WIPEONFORK back while the child begins, not when it has ended\n"
    "  --plant WHAT         do damage that must be found: zero, stale, swap, flip, fault, hang\n"
    "  --stop-on-failure    SIGSTOP itself after a report, for a debugger\n\n"
    "Exit status: 0 all words right, 1 a wrong word, 2 usage, 3 a hang or no memory.\n";

constexpr const char* kPlants[] = {"nothing", "zero", "stale", "swap", "flip", "fault", "hang"};

[[noreturn]] void Usage(const char* what, const char* value) {
  fprintf(stderr, "verifier: %s: %s\n%s", what, value, kHelp);
  exit(2);
}

uint64_t Number(const char* name, const char* text, uint64_t least, uint64_t most) {
  char* end = nullptr;
  const unsigned long long value = strtoull(text, &end, 0);
  if (*text == 0 || *end != 0 || value < least || value > most) Usage(name, text);
  return value;
}

}  // namespace

Options ParseOptions(int argc, char** argv) {
  enum {
    kThreads = 256,
    kMegabytes,
    kMallocPercent,
    kSeconds,
    kSeed,
    kForkEvery,
    kHang,
    kPlant,
    kHelpOption
  };
  Options options;
  int no_fork = 0, no_maps = 0, no_heap = 0, no_direct = 0, no_threads = 0, no_helpers = 0, keep = 0,
      stop = 0;
  const option table[] = {{"threads", required_argument, nullptr, kThreads},
                          {"megabytes", required_argument, nullptr, kMegabytes},
                          {"malloc-percent", required_argument, nullptr, kMallocPercent},
                          {"seconds", required_argument, nullptr, kSeconds},
                          {"seed", required_argument, nullptr, kSeed},
                          {"fork-every-ms", required_argument, nullptr, kForkEvery},
                          {"hang-seconds", required_argument, nullptr, kHang},
                          {"plant", required_argument, nullptr, kPlant},
                          {"no-fork", no_argument, &no_fork, 1},
                          {"no-maps", no_argument, &no_maps, 1},
                          {"no-heap", no_argument, &no_heap, 1},
                          {"no-direct", no_argument, &no_direct, 1},
                          {"no-threads", no_argument, &no_threads, 1},
                          {"no-helpers", no_argument, &no_helpers, 1},
                          {"keep-at-once", no_argument, &keep, 1},
                          {"stop-on-failure", no_argument, &stop, 1},
                          {"help", no_argument, nullptr, kHelpOption},
                          {nullptr, 0, nullptr, 0}};
  for (int found; (found = getopt_long(argc, argv, "", table, nullptr)) != -1;) {
    switch (found) {
      case 0:
        break;
      case kThreads:
        options.threads = static_cast<uint32_t>(Number("--threads", optarg, 1, 256));
        break;
      case kMegabytes:
        options.megabytes = static_cast<uint32_t>(Number("--megabytes", optarg, 16, 24576));
        break;
      case kMallocPercent:
        options.malloc_percent = static_cast<uint32_t>(Number("--malloc-percent", optarg, 0, 90));
        break;
      case kSeconds: {
        char* end = nullptr;
        options.seconds = strtod(optarg, &end);
        if (*end != 0 || !(options.seconds >= 0 && options.seconds < 1e6)) Usage("--seconds", optarg);
        break;
      }
      case kSeed:
        options.seed = Number("--seed", optarg, 0, UINT64_MAX);
        break;
      case kForkEvery:
        options.fork_every_ms = static_cast<uint32_t>(Number("--fork-every-ms", optarg, 0, 1000000));
        break;
      case kHang:
        options.hang_seconds = static_cast<uint32_t>(Number("--hang-seconds", optarg, 1, 100000));
        break;
      case kPlant:
        for (size_t i = 0; i < sizeof(kPlants) / sizeof(*kPlants); ++i) {
          if (strcmp(optarg, kPlants[i]) == 0) options.plant = static_cast<Plant>(i);
        }
        if (options.plant == Plant::kNothing) Usage("--plant", optarg);
        break;
      case kHelpOption:
        fputs(kHelp, stdout);
        exit(0);
      default:
        Usage("option", "see above");
    }
  }
  if (optind != argc) Usage("unexpected argument", argv[optind]);
  options.forks = !no_fork;
  options.maps = !no_maps;
  options.heap = !no_heap;
  options.direct = !no_direct;
  options.threads_come_and_go = !no_threads;
  options.helpers = !no_helpers;
  options.keep_at_once = keep;
  options.stop_on_failure = stop;
  if (options.seed == 0) {
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    options.seed = static_cast<uint64_t>(now.tv_sec) * 1000000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
  }
  return options;
}

std::string ReplayLine(const Options& options) {
  char text[512];
  snprintf(text, sizeof text,
           "verifier --threads %u --megabytes %u --malloc-percent %u --seconds %g --seed %llu "
           "--fork-every-ms %u%s%s%s%s%s%s%s%s%s",
           options.threads, options.megabytes, options.malloc_percent, options.seconds,
           static_cast<unsigned long long>(options.seed), options.fork_every_ms,
           options.forks ? "" : " --no-fork", options.maps ? "" : " --no-maps",
           options.heap ? "" : " --no-heap", options.direct ? "" : " --no-direct",
           options.threads_come_and_go ? "" : " --no-threads", options.helpers ? "" : " --no-helpers",
           options.keep_at_once ? " --keep-at-once" : "", options.plant == Plant::kNothing ? "" : " --plant ",
           options.plant == Plant::kNothing ? "" : kPlants[static_cast<size_t>(options.plant)]);
  return text;
}

}  // namespace uzswap::stress
