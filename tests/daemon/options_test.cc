#include "daemon/options.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "daemon/wire/message.h"

namespace uzswap {
namespace {

std::optional<Options> Parse(std::vector<const char*> args, int* status) {
  args.insert(args.begin(), "uzswapd");
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  auto options = ParseOptions(static_cast<int>(args.size()), const_cast<char**>(args.data()), status);
  (void)testing::internal::GetCapturedStdout();
  (void)testing::internal::GetCapturedStderr();
  return options;
}

TEST(Options, Defaults) {
  unsetenv("UZSWAP_SOCKET");
  int status = -1;
  const auto options = Parse({}, &status);
  ASSERT_TRUE(options.has_value());
  EXPECT_EQ(options->socket_path, wire::kDefaultSocketPath);
  EXPECT_FALSE(options->embedded);
  EXPECT_EQ(options->ready_fd, -1);
  EXPECT_EQ(options->codec, "lz4");
  EXPECT_EQ(options->pool, "zsmalloc");
  EXPECT_EQ(options->pool_limit_bytes, 0u);
}

TEST(Options, EnvironmentNamesTheSocketAndTheOptionWins) {
  setenv("UZSWAP_SOCKET", "/tmp/a", 1);
  int status = -1;
  EXPECT_EQ(Parse({}, &status)->socket_path, "/tmp/a");
  EXPECT_EQ(Parse({"--socket", "/tmp/b"}, &status)->socket_path, "/tmp/b");
  setenv("UZSWAP_SOCKET", "", 1);
  EXPECT_EQ(Parse({}, &status)->socket_path, wire::kDefaultSocketPath);
  unsetenv("UZSWAP_SOCKET");
}

TEST(Options, EverythingElse) {
  int status = -1;
  const auto options = Parse(
      {"--embedded", "--ready-fd", "7", "--codec", "raw", "--pool-limit", "512M", "--log-level", "debug"},
      &status);
  ASSERT_TRUE(options.has_value());
  EXPECT_TRUE(options->embedded);
  EXPECT_EQ(options->ready_fd, 7);
  EXPECT_EQ(options->codec, "raw");
  EXPECT_EQ(options->pool_limit_bytes, uint64_t{512} << 20);
  EXPECT_EQ(options->log_level, "debug");
}

TEST(Options, HelpAndVersionEndWellAndMistakesEndBadly) {
  for (const char* good : {"--help", "--version"}) {
    int status = -1;
    EXPECT_FALSE(Parse({good}, &status).has_value());
    EXPECT_EQ(status, 0) << good;
  }
  const std::vector<std::vector<const char*>> mistakes = {{"--no-such"},
                                                          {"--codec", "gzip"},
                                                          {"--pool", "slab"},
                                                          {"--pool-limit", "many"},
                                                          {"--pool-limit", "-1"},
                                                          {"--ready-fd", "x"},
                                                          {"--log-level", "loud"},
                                                          {"--socket"},
                                                          {"surplus"}};
  for (const auto& args : mistakes) {
    int status = -1;
    EXPECT_FALSE(Parse(args, &status).has_value()) << args[0];
    EXPECT_EQ(status, 2) << args[0];
  }
}

}  // namespace
}  // namespace uzswap
