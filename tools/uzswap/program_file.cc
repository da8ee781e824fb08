#include "tools/uzswap/program_file.h"

#include <elf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "libzpool/base/fd.h"
#include "tools/uzswap/elf_file.h"
#include "tools/uzswap/exit_codes.h"

namespace uzswap::cli {
namespace {

// The kernel follows `#!` four times and reads 256 bytes of the line (BINPRM_BUF_SIZE).
constexpr int kMaxInterpreters = 5;
constexpr size_t kScriptLineBytes = 256;

struct FileError {
  int exit_code;
  std::string message;
};

// Whether execve would take the file, as far as stat and access tell.
std::optional<FileError> CheckExecutable(const std::string& path) {
  struct stat st;
  if (stat(path.c_str(), &st) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return FileError{kExitNotFound, path + ": not found"};
    return FileError{kExitNotExecutable, fmt::format("{}: {}", path, std::strerror(errno))};
  }
  if (S_ISDIR(st.st_mode)) return FileError{kExitNotExecutable, path + " is a directory"};
  if (!S_ISREG(st.st_mode)) return FileError{kExitNotExecutable, path + " is not a regular file"};
  if (faccessat(AT_FDCWD, path.c_str(), X_OK, AT_EACCESS) != 0) {
    struct statvfs fs;
    if (statvfs(path.c_str(), &fs) == 0 && (fs.f_flag & ST_NOEXEC) != 0) {
      return FileError{kExitNotExecutable, path + " is on a file system mounted noexec"};
    }
    return FileError{
        kExitNotExecutable,
        fmt::format("{}: not executable by you ({}); `chmod +x` may be missing", path, std::strerror(errno))};
  }
  return std::nullopt;
}

// The words of a `#!` line as the kernel sees them: the interpreter and at most one argument.
struct ScriptLine {
  std::string interpreter;
  std::string argument;
};

std::optional<ScriptLine> ReadScriptLine(int fd) {
  char buffer[kScriptLineBytes];
  const ssize_t n = pread(fd, buffer, sizeof(buffer), 0);
  if (n < 2 || buffer[0] != '#' || buffer[1] != '!') return std::nullopt;
  std::string_view line(buffer + 2, static_cast<size_t>(n) - 2);
  line = line.substr(0, line.find_first_of(std::string_view("\n\0", 2)));
  const auto trim = [](std::string_view s) {
    const size_t first = s.find_first_not_of(" \t");
    if (first == std::string_view::npos) return std::string_view();
    return s.substr(first, s.find_last_not_of(" \t") - first + 1);
  };
  line = trim(line);
  const size_t space = line.find_first_of(" \t");
  if (space == std::string_view::npos) return ScriptLine{std::string(line), ""};
  return ScriptLine{std::string(line.substr(0, space)), std::string(trim(line.substr(space)))};
}

std::string_view Basename(std::string_view path) { return path.substr(path.find_last_of('/') + 1); }

// The program that `env ARGUMENT` starts: the first word that is neither an option nor NAME=value.
// "" if that takes more of env(1) than is worth copying.
std::string EnvTarget(std::string_view argument) {
  while (!argument.empty()) {
    const size_t space = argument.find_first_of(" \t");
    const std::string_view word = argument.substr(0, space);
    argument = space == std::string_view::npos ? std::string_view() : argument.substr(space + 1);
    if (word.empty() || word == "-S" || word == "-i" || word == "--split-string" ||
        word.find('=') != std::string_view::npos) {
      continue;
    }
    if (word.front() == '-') return "";
    return std::string(word);
  }
  return "";
}

// The dynamic linker itself (`/lib64/ld-linux-x86-64.so.2 PROGRAM`) has no interpreter, and yet reads
// LD_PRELOAD.
bool IsDynamicLinker(std::string_view path) {
  const std::string_view name = Basename(path);
  return name == "ld.so" || (name.starts_with("ld-") && name.find(".so") != std::string_view::npos);
}

// Whether the file's capabilities would be raised by execve: any permitted bit. -1: has none.
bool HasFileCapabilities(int fd) {
  vfs_ns_cap_data data = {};
  const ssize_t n = fgetxattr(fd, "security.capability", &data, sizeof(data));
  if (n < static_cast<ssize_t>(sizeof(uint32_t) * 3)) return false;
  if (data.data[0].permitted != 0) return true;
  return n >= static_cast<ssize_t>(sizeof(vfs_cap_data)) && data.data[1].permitted != 0;
}

// Why execve of the open file starts it in secure-execution mode; "" if it does not.
std::string SecureExecReason(int fd, const ExecIdentity& who) {
  if (who.real_uid != who.effective_uid || who.real_gid != who.effective_gid) {
    return "uzswap itself runs with an effective user or group other than its real one";
  }
  struct stat st;
  struct statvfs fs;
  if (who.no_new_privs || fstat(fd, &st) != 0) return "";
  if (fstatvfs(fd, &fs) == 0 && (fs.f_flag & ST_NOSUID) != 0) return "";
  if ((st.st_mode & S_ISUID) != 0 && st.st_uid != who.real_uid) {
    return fmt::format("it is setuid (to uid {})", st.st_uid);
  }
  // Without the group's x bit, S_ISGID means mandatory locking and raises nothing.
  if ((st.st_mode & S_ISGID) != 0 && (st.st_mode & S_IXGRP) != 0 && st.st_gid != who.real_gid) {
    return fmt::format("it is setgid (to gid {})", st.st_gid);
  }
  if (who.real_uid != 0 && HasFileCapabilities(fd)) return "it has file capabilities";
  return "";
}

std::string CheckElf(const std::string& path, const ElfFacts& elf, int fd, const ExecIdentity& identity) {
  if (!elf.is_64bit || elf.machine != kOwnMachine) {
    return fmt::format("{} is a {} program, the agent is built for {}: run a build of it for {}", path,
                       MachineName(elf.machine), MachineName(kOwnMachine), MachineName(kOwnMachine));
  }
  if (elf.type != ET_EXEC && elf.type != ET_DYN) {
    return path + " is an ELF file but no program (an object file or a core dump)";
  }
  if (const std::string reason = SecureExecReason(fd, identity); !reason.empty()) {
    return fmt::format(
        "{}: {}, and the dynamic linker ignores LD_PRELOAD for a program that gains privileges; run uzswap "
        "as the "
        "user that it changes to (sudo uzswap run …), or a copy of the program without that",
        path, reason);
  }
  if (elf.interpreter.empty() && !IsDynamicLinker(path)) {
    return path +
           " is statically linked: it has no dynamic linker that would load the agent; use a dynamically "
           "linked "
           "build of it";
  }
  if (!elf.interpreter.empty() && access(elf.interpreter.c_str(), X_OK) != 0) {
    return fmt::format(
        "{} needs the dynamic linker {}, which cannot be executed here ({}); is its libc installed?", path,
        elf.interpreter, std::strerror(errno));
  }
  return "";
}

}  // namespace

ExecIdentity ExecIdentity::Current() {
  return {getuid(), geteuid(), getgid(), getegid(), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1};
}

ProgramLookup FindProgram(const std::string& command, const std::string& search_path) {
  if (command.empty()) return {"", kExitNotFound, "the command is empty"};
  if (command.find('/') != std::string::npos) {
    if (auto error = CheckExecutable(command)) return {"", error->exit_code, error->message};
    return {command, 0, ""};
  }
  // As execvp: go on after a file that may not be executed, but remember it.
  std::optional<FileError> denied;
  size_t from = 0;
  while (from <= search_path.size()) {
    const size_t to = std::min(search_path.find(':', from), search_path.size());
    const std::string directory = search_path.substr(from, to - from);
    from = to + 1;
    std::string candidate = directory.empty() ? "./" + command : directory + "/" + command;
    auto error = CheckExecutable(candidate);
    if (!error) return {std::move(candidate), 0, ""};
    if (error->exit_code == kExitNotExecutable && !denied) denied = std::move(error);
  }
  if (denied) return {"", denied->exit_code, denied->message};
  return {"", kExitNotFound, fmt::format("{}: command not found (PATH={})", command, search_path)};
}

std::string CheckPreloadable(const std::string& path, const ExecIdentity& identity,
                             const std::string& search_path) {
  std::string current = path;
  for (int depth = 0; depth <= kMaxInterpreters; ++depth) {
    zp::UniqueFd fd(open(current.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!fd.valid()) {
      if (current == path) return "";  // execute-only: execve takes it, and so does the dynamic linker
      return fmt::format("{} is a script for {}, which cannot be opened: {}", path, current,
                         std::strerror(errno));
    }
    zp::Result<ElfFacts> elf = ReadElf(fd.get());
    if (!elf.ok()) return fmt::format("{}: {}", current, elf.error().op);
    if (elf.value().is_elf) {
      std::string why = CheckElf(current, elf.value(), fd.get(), identity);
      if (!why.empty() && current != path) why = fmt::format("{} is a script for {}: {}", path, current, why);
      return why;
    }
    const std::optional<ScriptLine> script = ReadScriptLine(fd.get());
    if (!script || script->interpreter.empty()) {
      current = "/bin/sh";  // execvp hands a text without `#!` to the shell
      continue;
    }
    current = script->interpreter;
    if (Basename(current) == "env") {
      const std::string target = EnvTarget(script->argument);
      if (target.empty()) continue;
      const ProgramLookup found = FindProgram(target, search_path);
      if (found.path.empty()) return fmt::format("{} is a script for {}: {}", path, target, found.message);
      current = found.path;
    }
  }
  return path + ": its `#!` interpreters are scripts in turn, deeper than the kernel follows";
}

std::string CheckSharedObject(const std::string& path) {
  zp::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return fmt::format("{}: {}", path, std::strerror(errno));
  zp::Result<ElfFacts> elf = ReadElf(fd.get());
  if (!elf.ok()) return fmt::format("{}: {}", path, elf.error().op);
  if (!elf.value().is_elf || elf.value().type != ET_DYN) return path + " is not a shared object";
  if (!elf.value().is_64bit || elf.value().machine != kOwnMachine) {
    return fmt::format("{} is built for {}, this machine is {}", path, MachineName(elf.value().machine),
                       MachineName(kOwnMachine));
  }
  return "";
}

}  // namespace uzswap::cli
