#include "tools/uzswap/command_line.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tools/uzswap/doctor.h"
#include "tools/uzswap/exit_codes.h"

namespace uzswap::cli {
namespace {

using Words = std::vector<std::string>;

// What was understood; fails the test if it was refused.
CommandLine Good(const Words& words) {
  int exit_code = -1;
  auto line = ParseCommandLine(words, &exit_code);
  EXPECT_TRUE(line.has_value());
  return line.value_or(CommandLine{});
}

struct Complaint {
  int exit_code = -1;
  std::string text;
};

Complaint Bad(const Words& words) {
  Complaint complaint;
  testing::internal::CaptureStderr();
  EXPECT_FALSE(ParseCommandLine(words, &complaint.exit_code).has_value());
  complaint.text = testing::internal::GetCapturedStderr();
  return complaint;
}

TEST(CommandLine, WhatFollowsTheDashesIsTheCommand) {
  const CommandLine line = Good({"run", "--limit", "512M", "--report", "--", "ls", "--limit", "-x", "--"});
  EXPECT_EQ(line.command, Command::kRun);
  EXPECT_EQ(line.run.limit_bytes, 512u << 20);
  EXPECT_TRUE(line.run.report);
  EXPECT_EQ(line.run.command, (Words{"ls", "--limit", "-x", "--"}));
}

TEST(CommandLine, DashesMayBeLeftOut) {
  EXPECT_EQ(Good({"run", "ls", "-l"}).run.command, (Words{"ls", "-l"}));
  EXPECT_EQ(Good({"run", "--limit=64M", "--report", "ls", "--help"}).run.command, (Words{"ls", "--help"}));
  EXPECT_EQ(Good({"run", "--socket", "/a b", "--", "-strange"}).run.command, (Words{"-strange"}));
  EXPECT_EQ(Good({"run", "--socket", "/a b", "x"}).run.socket, "/a b");
}

TEST(CommandLine, UnknownOptionIsHintedAt) {
  const Complaint run = Bad({"run", "--limt", "5M", "--", "x"});
  EXPECT_EQ(run.exit_code, kExitRunFailed);
  EXPECT_NE(run.text.find("--limt"), std::string::npos) << run.text;
  EXPECT_NE(run.text.find("Did you mean --limit?"), std::string::npos) << run.text;
  const Complaint stat = Bad({"stat", "--jsn"});
  EXPECT_EQ(stat.exit_code, kExitUsage);
  EXPECT_NE(stat.text.find("Did you mean --json?"), std::string::npos) << stat.text;
  const Complaint verb = Bad({"stats"});
  EXPECT_EQ(verb.exit_code, kExitUsage);
  EXPECT_NE(verb.text.find("Did you mean `uzswap stat`?"), std::string::npos) << verb.text;
  EXPECT_NE(Bad({"redis-server"}).text.find("uzswap run --limit SIZE -- redis-server"), std::string::npos);
}

TEST(CommandLine, BadValuesAreRefused) {
  for (const Words& words :
       {Words{"run"}, Words{"run", "--limit", "64M"}, Words{"run", "--limit", "64M", "--"},
        Words{"run", "--limit", "12Q", "x"}, Words{"run", "--limit", "-5M", "--", "x"},
        Words{"run", "--limit", "50%", "x"}, Words{"run", "--limit", "", "--", "x"},
        Words{"run", "--limit", "4K", "x"}, Words{"run", "--limit", "0", "x"},
        Words{"run", "--codec", "zip", "x"}, Words{"run", "--pool", "pond", "x"},
        Words{"run", "--pool-limit", "0", "x"}, Words{"run", "--embedded", "--socket", "/s", "x"}}) {
    const Complaint complaint = Bad(words);
    EXPECT_EQ(complaint.exit_code, kExitRunFailed) << testing::PrintToString(words);
    EXPECT_NE(complaint.text.find("uzswap run --help"), std::string::npos) << complaint.text;
  }
  for (const Words& words :
       {Words{"stat", "x"}, Words{"stat", "0"}, Words{"stat", "-1"}, Words{"stat", "999999999"},
        Words{"stat", "1", "2"}, Words{"limit", "1"}, Words{"limit", "1", "x"}, Words{"limit", "1", "1M"},
        Words{"reclaim", "1"}, Words{"restore"}, Words{"--nonsense"}}) {
    EXPECT_EQ(Bad(words).exit_code, kExitUsage) << testing::PrintToString(words);
  }
}

TEST(CommandLine, OtherCommands) {
  EXPECT_FALSE(Good({"stat"}).pid.has_value());
  EXPECT_EQ(Good({"stat", "--json", "4711"}).pid, 4711u);
  EXPECT_EQ(Good({"limit", "7", "1.5G"}).bytes, 3u << 29);
  EXPECT_EQ(Good({"limit", "7", "none"}).bytes, 0u);
  EXPECT_EQ(Good({"limit", "7", "0"}).bytes, 0u);
  EXPECT_EQ(Good({"reclaim", "7", "1M"}).command, Command::kReclaim);
  EXPECT_EQ(Good({"restore", "7"}).command, Command::kRestore);
  EXPECT_TRUE(Good({"doctor", "--json"}).json);
}

TEST(CommandLine, LimitStandsInTheEnvironment) {
  setenv("UZSWAP_LIMIT", "64M", 1);
  EXPECT_EQ(Good({"run", "x"}).run.limit_bytes, 64u << 20);
  EXPECT_EQ(Good({"run", "--limit", "1G", "x"}).run.limit_bytes, 1u << 30);
  setenv("UZSWAP_LIMIT", "", 1);
  EXPECT_EQ(Good({"run", "x"}).run.limit_bytes, 0u);
  unsetenv("UZSWAP_LIMIT");
}

TEST(ProgramEnvironment, AgentStandsFirstAndOnce) {
  const auto preload = [](const char* before) {
    for (const std::string& e : ProgramEnvironment({before, "A=b"}, {}, "/agent.so", "/s")) {
      if (e.starts_with("LD_PRELOAD=")) return e;
    }
    return std::string();
  };
  EXPECT_EQ(preload("B=c"), "LD_PRELOAD=/agent.so");
  EXPECT_EQ(preload("LD_PRELOAD="), "LD_PRELOAD=/agent.so");
  EXPECT_EQ(preload("LD_PRELOAD=/x.so /y.so"), "LD_PRELOAD=/agent.so:/x.so:/y.so");
  EXPECT_EQ(preload("LD_PRELOAD=/x.so:/agent.so"), "LD_PRELOAD=/agent.so:/x.so");
}

TEST(ProgramEnvironment, TellsTheAgentWhatWasAskedFor) {
  RunOptions options;
  options.limit_bytes = 1 << 30;
  options.codec = "raw";
  const auto environment =
      ProgramEnvironment({"UZSWAP_LIMIT=1G", "UZSWAP_SOCKET=/old", "A=b"}, options, "/a.so", "/s");
  EXPECT_EQ(environment, (Words{"A=b", "LD_PRELOAD=/a.so", "UZSWAP_SOCKET=/s", "UZSWAP_LIMIT=1073741824",
                                "UZSWAP_CODEC=raw"}));
}

TEST(Doctor, Golden) {
  const std::vector<Check> checks = {{"kernel", CheckStatus::kOk, "6.18.0", ""},
                                     {"fork events", CheckStatus::kMissing, "not permitted", "be root"},
                                     {"memlock limit", CheckStatus::kNote, "64K", ""}};
  EXPECT_EQ(RenderDoctor(checks), R"(ok       kernel            6.18.0
MISSING  fork events       not permitted
                           fix: be root
note     memlock limit     64K

1 of uzswap's requirements is missing; the fixes are above.
)");
  const auto json = DoctorJson(checks);
  EXPECT_EQ(json["schema"], "uzswap.doctor/1");
  EXPECT_EQ(json["ok"], false);
  EXPECT_EQ(json["checks"][1]["status"], "missing");
  EXPECT_EQ(RenderMissing(checks), "  fork events: not permitted\n    fix: be root");
}

}  // namespace
}  // namespace uzswap::cli
