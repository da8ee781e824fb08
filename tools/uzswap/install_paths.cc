#include "tools/uzswap/install_paths.h"

#include <fmt/format.h>
#include <limits.h>
#include <unistd.h>

#include <cstdlib>
#include <vector>

#include "tools/uzswap/program_file.h"

// Directories of the installation, from meson's options.
#if !defined(UZSWAP_SBIN_DIR) || !defined(UZSWAP_LIB_DIR) || !defined(UZSWAP_LIB_NAME)
#error "meson.build defines the installation's directories"
#endif

namespace uzswap::cli {
namespace {

constexpr char kDaemonName[] = "uzswapd";
constexpr char kAgentName[] = "libuzswap-agent.so";

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The absolute path without symbolic links, or "" if nothing is there.
std::string Resolve(const std::string& path) {
  char resolved[PATH_MAX];
  return realpath(path.c_str(), resolved) != nullptr ? resolved : "";
}

std::string Join(const std::vector<std::string>& paths) {
  std::string out;
  for (const std::string& p : paths) out += (out.empty() ? "" : ", ") + p;
  return out;
}

}  // namespace

std::string ExecutableDirectory() {
  char path[PATH_MAX];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof(path));
  if (n <= 0 || n == static_cast<ssize_t>(sizeof(path))) return "";
  const std::string text(path, static_cast<size_t>(n));
  return text.substr(0, text.rfind('/'));
}

OrMessage<std::string> FindDaemonProgram() {
  const std::string named = Environment("UZSWAPD");
  if (!named.empty()) {
    const std::string path = Resolve(named);
    if (!path.empty() && access(path.c_str(), X_OK) == 0) return path;
    return Message{
        fmt::format("UZSWAPD names {}, which is no program that you may execute; unset it, or set it to {}",
                    named, kDaemonName)};
  }
  const std::string here = ExecutableDirectory();
  const std::vector<std::string> places = {
      here + "/../../daemon/" + kDaemonName,
      std::string(UZSWAP_SBIN_DIR "/") + kDaemonName,
      here + "/../sbin/" + kDaemonName,  // an installation that was moved as a whole
      here + "/" + kDaemonName,
  };
  for (const std::string& place : places) {
    const std::string path = Resolve(place);
    if (!path.empty() && access(path.c_str(), X_OK) == 0) return path;
  }
  const ProgramLookup found = FindProgram(kDaemonName, Environment("PATH"));
  if (!found.path.empty()) return Resolve(found.path);
  return Message{
      fmt::format("{} is not installed (looked in {} and $PATH); install the whole of uzswap, or put its "
                  "directory into PATH",
                  kDaemonName, Join(places))};
}

OrMessage<std::string> FindAgentLibrary() {
  const std::string here = ExecutableDirectory();
  const std::string named = Environment("UZSWAP_AGENT");
  std::vector<std::string> places = {named};
  if (named.empty()) {
    places = {here + "/../agent/" + kAgentName, std::string(UZSWAP_LIB_DIR "/uzswap/") + kAgentName,
              here + "/../" UZSWAP_LIB_NAME "/uzswap/" + kAgentName};
  }
  for (const std::string& place : places) {
    std::string path = Resolve(place);
    if (path.empty()) continue;
    if (const std::string why = CheckSharedObject(path); !why.empty()) {
      return Message{fmt::format(
          "the agent library cannot be used: {}; set UZSWAP_AGENT to a {} of this release", why, kAgentName)};
    }
    if (path.find_first_of(": ") != std::string::npos) {
      return Message{
          fmt::format("the agent library's path '{}' has a blank or a colon, which LD_PRELOAD takes as a "
                      "separator; copy the library elsewhere and set UZSWAP_AGENT to it",
                      path)};
    }
    return path;
  }
  return Message{
      fmt::format("the agent library is not there (looked in {}); install the whole of uzswap, or set "
                  "UZSWAP_AGENT to a {}",
                  Join(places), kAgentName)};
}

}  // namespace uzswap::cli
