#include "daemon/sys/machine_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

namespace uzswap {
namespace {

TEST(MachineMemory, IsReadFromMeminfo) {
  const std::string path = testing::TempDir() + "meminfo-" + std::to_string(getpid());
  std::ofstream(path) << "MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:    300 kB\n"
                         "SwapFree:         50 kB\nHugePages_Total:       0\n";
  EXPECT_EQ(AvailableBytes(path), 350u * 1024);
  std::ofstream(path) << "nothing like it\n";
  EXPECT_EQ(AvailableBytes(path), std::nullopt);
  std::remove(path.c_str());
  EXPECT_EQ(AvailableBytes(path), std::nullopt);
  EXPECT_GT(AvailableBytes().value(), 0u);
}

TEST(MachineMemory, PagesGoHomeIntoWhatIsFreeAndWhatTheyFree) {
  EXPECT_EQ(MissingToBringHome(1000, 400, 600), 0u);
  EXPECT_EQ(MissingToBringHome(1001, 400, 600), 1u);
  EXPECT_EQ(MissingToBringHome(0, 0, 0), 0u);
  EXPECT_EQ(MissingToBringHome(~uint64_t{0}, 0, std::nullopt), 0u);
}

}  // namespace
}  // namespace uzswap
