#include "tools/uzswap/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>

#include "daemon/options.h"
#include "daemon/wire/message.h"
#include "tools/uzswap/exit_codes.h"
#include "tools/uzswap/size_parse.h"

namespace uzswap::cli {
namespace {

constexpr size_t kHelpColumn = 26;

constexpr char kAbout[] =
    "uzswap gives programs a compressed swap of their own: their cold memory is kept compressed by the "
    "daemon uzswapd "
    "and comes back when it is touched. The programs need no change.";

constexpr char kFooter[] = R"(Examples:
  uzswap doctor                              is everything there that this machine needs?
  uzswap run --limit 512M --report -- redis-server
                                             keep at most 512 MiB resident, the rest compressed
  uzswap stat                                what every program has resident, stored, at what ratio
  uzswap limit 4711 1G                       change a running program's limit

`uzswap COMMAND --help` says more about each command.

Sizes: 512M, 1.5G, 64k or plain bytes; K, M, G, T are 1024-based.
Socket: --socket, else $UZSWAP_SOCKET, else /run/uzswap/uzswapd.sock.
Exit codes: 0 done; 1 failed, or (doctor) something is missing; 2 wrong usage.
  `uzswap run` ends as CMD does; 125, 126 and 127 are explained in `uzswap run --help`.)";

constexpr char kRunFooter[] = R"(Examples:
  uzswap run --limit 1.5G -- python3 train.py
  uzswap run --limit 256M --report -- sh -c 'make -j2'
  sudo uzswap run --limit 64M -- sort big.txt

The daemon: the system's, if one answers on the socket; else uzswap starts one for this run, which needs root (or what
`uzswap doctor` names) and ends with the last process that uses it.
The limit is one of resident memory and holds for each process by itself: CMD and every dynamically linked program
that it starts. Static and setuid programs cannot be attached; uzswap refuses to start them.

Environment: UZSWAP_SOCKET, UZSWAP_LIMIT, UZSWAP_CODEC and UZSWAP_POOL stand in for the options, UZSWAP_AGENT and
UZSWAPD name another libuzswap-agent.so and uzswapd, UZSWAP_QUIET=1 keeps agent and uzswap from remarks on stderr.

Exit code: CMD's, and if a signal ends CMD, the same signal ends uzswap. Signals sent to uzswap reach CMD.
  125 uzswap itself failed (and said why)   126 CMD cannot be executed   127 CMD was not found)";

constexpr char kControlFooter[] =
    "Root may steer every program, others those of their own. `uzswap stat` lists the pids.\n"
    "Exit codes: 0 done, 1 failed (no daemon, no such process, not permitted), 2 wrong usage.";

constexpr char kNodeFooter[] =
    "Compressed pages lie on the node where their program runs, while it has room. A node that was drained "
    "takes nothing "
    "new until `uzswap node open`.\n"
    "Moving is for root. Programs notice nothing of it.\n"
    "Exit codes: 0 done, 1 failed, or something had to stay, 2 wrong usage.";

constexpr char kStatFooter[] = R"(Columns:
  LIMIT     resident limit                     RATIO    STORED / POOL
  RESIDENT  memory that the program has now    FAULTS   pages brought back when they were touched
  STORED    memory taken from it, as it was    P50 P99  the daemon's share of such a fault
  POOL      what that takes, compressed        REFUSED  pages that could not be taken; PID names the reasons

Exit codes: 0 done, 1 failed (no daemon, no such process), 2 wrong usage.)";

// CLI11's help without its notes on variables, ranges and exclusions, which the texts tell; and with CMD,
// which is taken off before CLI11 looks (SplitCommand).
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter() { column_width(kHelpColumn); }
  std::string make_option_opts(const CLI::Option* option) const override {
    return option->get_option_text().empty() ? "" : " " + option->get_option_text();
  }
  std::string make_usage(const CLI::App* app, std::string name) const override {
    if (app->get_name() != "run") return CLI::Formatter::make_usage(app, name);
    return "\nUsage: uzswap run [OPTIONS] -- CMD [ARGS…]\n";
  }
};

// Distance in the sense of typing errors: insertions, deletions, replacements.
size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j < row.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

// The name nearest to `word` among `names`, "" if none is near.
std::string Nearest(const std::string& word, const std::vector<std::string>& names) {
  std::string best;
  size_t best_distance = 3;
  for (const std::string& name : names) {
    if (const size_t d = EditDistance(word, name); d < best_distance) {
      best_distance = d;
      best = name;
    }
  }
  return best;
}

bool LooksLikeOption(const std::string& word) { return word.size() > 1 && word[0] == '-'; }

std::string OptionName(const std::string& word) { return word.substr(0, word.find('=')); }

// Takes CMD and its arguments off the words of `run`, so that none of them is taken for an option of ours:
// what follows `--`, else what begins with the first word that is neither an option nor an option's value.
std::vector<std::string> SplitCommand(const CLI::App& run, std::vector<std::string>* words) {
  size_t at = 1;  // words[0] is "run"
  for (; at < words->size(); ++at) {
    const std::string& word = (*words)[at];
    if (word == "--" || !LooksLikeOption(word)) break;
    const CLI::Option* option = run.get_option_no_throw(OptionName(word));
    if (option != nullptr && option->get_items_expected_max() > 0 && word.find('=') == std::string::npos)
      ++at;
  }
  if (at >= words->size()) return {};
  const auto first = words->begin() + static_cast<ptrdiff_t>(at);
  std::vector<std::string> command(first + ((*words)[at] == "--" ? 1 : 0), words->end());
  words->erase(first, words->end());
  return command;
}

// What may have been meant by the first unknown word, for the line below CLI11's complaint.
std::string Hint(const CLI::App& app, const std::vector<std::string>& words) {
  const auto chosen = app.get_subcommands();
  if (chosen.empty()) {
    std::vector<std::string> names;
    for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
      names.push_back(sub->get_name());
    const std::string near = words.empty() ? "" : Nearest(words[0], names);
    if (!near.empty()) return fmt::format("Did you mean `uzswap {}`? ", near);
    if (!words.empty() && !LooksLikeOption(words[0])) {
      return fmt::format("To start a program: uzswap run --limit SIZE -- {}. ", words[0]);
    }
    return "";
  }
  std::vector<std::string> names;
  for (const CLI::Option* option : chosen[0]->get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  std::string hint;
  for (const std::string& word : words) {
    const std::string name = OptionName(word);
    if (!LooksLikeOption(name) || chosen[0]->get_option_no_throw(name) != nullptr) continue;
    if (const std::string near = Nearest(name, names); !near.empty())
      hint = fmt::format("Did you mean {}? ", near);
    if (chosen[0]->get_name() == "run") hint += "Options of CMD stand after `--`. ";
    break;
  }
  return hint;
}

int Complain(const std::string& command, const std::string& message, const std::string& hint) {
  fmt::print(stderr, "uzswap: {}\n{}See `uzswap {}--help`.\n", message, hint,
             command.empty() ? "" : command + " ");
  return command == "run" ? kExitRunFailed : kExitUsage;
}

// A size option's text, as typed; checked after parsing so that the message is our own.
bool TakeSize(const std::string& option, const std::string& text, uint64_t* bytes, std::string* message) {
  const OrMessage<uint64_t> size = ParseSize(text);
  if (size.ok()) {
    *bytes = size.value();
  } else {
    *message = fmt::format("{}: {}", option, size.message());
  }
  return size.ok();
}

// `limit PID none` and `limit PID 0` lift the limit.
bool MeansNoLimit(const std::string& text) { return text == "none" || text == "0"; }

}  // namespace

std::optional<CommandLine> ParseCommandLine(std::vector<std::string> words, int* exit_code) {
  CommandLine line;
  std::string limit, pool_limit, size;
  uint64_t pid = 0;

  CLI::App app(kAbout, "uzswap");
  app.footer(kFooter);
  app.set_version_flag("--version", std::string("uzswap ") + kVersionText, "print the version");
  app.set_help_flag("-h,--help", "print this help");
  app.require_subcommand(1);
  app.formatter(std::make_shared<HelpFormatter>());  // before the subcommands, which inherit it

  const auto add_socket = [](CLI::App* command, std::string* socket) {
    command->add_option("--socket", *socket, "the daemon's socket")->option_text("PATH");
  };
  const auto add_pid = [&](CLI::App* command, const char* about) {
    return command->add_option("PID", pid, about)->check(CLI::Range(uint64_t{1}, uint64_t{1} << 22));
  };

  CLI::App* run = app.add_subcommand("run", "start a program with its cold memory compressed");
  run->footer(kRunFooter);
  run->add_option("--limit", limit,
                  "keep at most this much resident, per process; default: no limit, attach only")
      ->option_text("SIZE")
      ->envname("UZSWAP_LIMIT");
  run->add_flag("--report", line.run.report, "print a summary on stderr at the end");
  run->add_option("--codec", line.run.codec, "how pages are compressed: lz4 (default) or raw")
      ->option_text("NAME")
      ->envname("UZSWAP_CODEC")
      ->check(CLI::IsMember({"lz4", "raw"}));
  run->add_option("--pool", line.run.pool,
                  "how compressed pages are kept: zsmalloc (default, dense) or zbud (two to a frame)")
      ->option_text("NAME")
      ->envname("UZSWAP_POOL")
      ->check(CLI::IsMember({"zsmalloc", "zbud"}));
  add_socket(run, &line.run.socket);
  CLI::Option* embedded =
      run->add_flag("--embedded", line.run.embedded, "start a daemon for this run even where one listens");
  embedded->excludes(run->get_option("--socket"));
  run->add_option("--pool-limit", pool_limit,
                  "most memory for compressed pages, of the daemon started for this run")
      ->option_text("SIZE");

  CLI::App* stat = app.add_subcommand("stat", "show what attached programs have resident and stored");
  stat->footer(kStatFooter);
  add_pid(stat, "show this process in detail");
  stat->add_flag("--json", line.json, "print the daemon's figures as JSON");
  add_socket(stat, &line.socket);

  CLI::App* doctor = app.add_subcommand("doctor", "check every requirement and name the fixes");
  doctor->footer("Exit codes: 0 all that is required is there, 1 something is missing.");
  doctor->add_flag("--json", line.json, "print the result as JSON");
  add_socket(doctor, &line.socket);

  CLI::App* limit_command = app.add_subcommand("limit", "change an attached program's resident limit");
  add_pid(limit_command, "the process")->required();
  limit_command->add_option("SIZE", size, "the new limit, or `none`")->required();
  add_socket(limit_command, &line.socket);
  limit_command->footer("Example: uzswap limit 4711 1.5G\n" + std::string(kControlFooter));

  CLI::App* reclaim = app.add_subcommand("reclaim", "take that much of a program's cold memory now");
  add_pid(reclaim, "the process")->required();
  reclaim->add_option("SIZE", size, "how much")->required();
  add_socket(reclaim, &line.socket);
  reclaim->footer("What is touched again comes back. Example: uzswap reclaim 4711 256M\n" +
                  std::string(kControlFooter));

  CLI::App* restore = app.add_subcommand("restore", "bring all of a program's memory home");
  add_pid(restore, "the process")->required();
  add_socket(restore, &line.socket);
  restore->footer("A limit that is set stays, and takes memory again. Example: uzswap restore 4711\n" +
                  std::string(kControlFooter));

  CLI::App* upgrade = app.add_subcommand("upgrade", "let another uzswapd go on in place of the running one");
  upgrade->add_option("PROGRAM", line.program,
                      "its path; without it the uzswapd that belongs to this uzswap");
  add_socket(upgrade, &line.socket);
  upgrade->footer(
      "Programs go on; their pages stay where they are. One that can't read the state says so, and nothing "
      "changes.\n" +
      std::string(kControlFooter));

  CLI::App* node = app.add_subcommand("node", "show and move what lies on the machine's NUMA nodes");
  node->require_subcommand(1);
  node->footer(kNodeFooter);
  const auto add_node_command = [&](const char* name, const char* about, bool of_one) {
    CLI::App* command = node->add_subcommand(name, about);
    if (of_one) command->add_option("NODE", line.node, "the node's number")->required();
    command->add_flag("--json", line.json, "print the daemon's answer as JSON");
    add_socket(command, &line.socket);
    return command;
  };
  const CLI::App* node_list = add_node_command("list", "what each node holds", false);
  const CLI::App* node_drain = add_node_command("drain", "move everything off a node, and close it", true);
  const CLI::App* node_open = add_node_command("open", "let a node take compressed pages again", true);
  (void)add_node_command("balance", "even out nodes that are nearly full, now", false);

  if (words.empty()) words = {"--help"};
  if (words[0] == "run") line.run.command = SplitCommand(*run, &words);
  try {
    app.parse(std::vector<std::string>(words.rbegin(), words.rend()));  // CLI11 takes them last first
  } catch (const CLI::Success& done) {
    *exit_code = app.exit(done);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    const auto chosen = app.get_subcommands();
    if (chosen.empty() && !LooksLikeOption(words[0])) {
      *exit_code = Complain("", fmt::format("'{}' is no command of uzswap", words[0]), Hint(app, words));
      return std::nullopt;
    }
    *exit_code = Complain(chosen.empty() ? "" : chosen[0]->get_name(), error.what(), Hint(app, words));
    return std::nullopt;
  }

  const CLI::App* chosen = app.get_subcommands()[0];
  const auto complain = [&](const std::string& message) {
    *exit_code = Complain(chosen->get_name(), message, "");
    return std::nullopt;
  };
  std::string message;
  if (const CLI::Option* given = chosen->get_option_no_throw("PID"); given != nullptr && given->count() > 0)
    line.pid = pid;
  if (chosen == run) {
    line.command = Command::kRun;
    if (line.run.command.empty())
      return complain("which program? Write: uzswap run --limit 512M -- CMD ARGS…");
    if (run->count("--limit") > 0) {
      if (!TakeSize("--limit", limit, &line.run.limit_bytes, &message)) return complain(message);
      if (line.run.limit_bytes == 0) return complain("--limit 0: leave --limit out for no limit");
      message = CheckResidentLimit(line.run.limit_bytes);
      if (!message.empty()) return complain("--limit: " + message);
    }
    if (run->count("--pool-limit") > 0) {
      if (!TakeSize("--pool-limit", pool_limit, &line.run.pool_limit_bytes, &message))
        return complain(message);
      if (line.run.pool_limit_bytes == 0)
        return complain("--pool-limit 0 would store nothing; leave it out for the default");
    }
  } else if (chosen == stat) {
    line.command = Command::kStat;
  } else if (chosen == doctor) {
    line.command = Command::kDoctor;
  } else if (chosen == limit_command) {
    line.command = Command::kLimit;
    if (!MeansNoLimit(size)) {
      if (!TakeSize("SIZE", size, &line.bytes, &message)) return complain(message);
      message = CheckResidentLimit(line.bytes);
      if (!message.empty()) return complain(message);
    }
  } else if (chosen == reclaim) {
    line.command = Command::kReclaim;
    if (!TakeSize("SIZE", size, &line.bytes, &message)) return complain(message);
  } else if (chosen == upgrade) {
    line.command = Command::kUpgrade;
  } else if (chosen == node) {
    const CLI::App* action = node->get_subcommands()[0];
    line.command = action == node_list    ? Command::kNodeList
                   : action == node_drain ? Command::kNodeDrain
                   : action == node_open  ? Command::kNodeOpen
                                          : Command::kNodeBalance;
  } else {
    line.command = Command::kRestore;
  }
  return line;
}

}  // namespace uzswap::cli
