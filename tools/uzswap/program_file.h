// The program that `uzswap run` is to start: where it is, and whether the agent can be preloaded into it.
//
// Idea: what cannot be preloaded is found out before anything is started, because afterwards it is silent: a
// static program has no dynamic linker that would read LD_PRELOAD, and for one that gains privileges the
// dynamic linker drops it (secure-execution mode, ld.so(8)). The rules below are those of the kernel's execve
// (security/commoncap.c, fs/binfmt_script.c) and of glibc's ld.so.
// Trade-off: a security module may also demand secure execution, and binfmt_misc may start anything; neither
// can be seen from here. `run --report` says afterwards if nothing attached.
#pragma once

#include <string>

#include "tools/uzswap/or_message.h"

namespace uzswap::cli {

// Who is about to call execve. Injected so that the rules are testable without changing identity.
struct ExecIdentity {
  unsigned real_uid = 0;
  unsigned effective_uid = 0;
  unsigned real_gid = 0;
  unsigned effective_gid = 0;
  bool no_new_privs = false;  // then set-id bits and file capabilities are without effect

  static ExecIdentity Current();
};

struct ProgramLookup {
  std::string path;     // "" if not found; else what to execute
  int exit_code = 0;    // kExitNotFound or kExitNotExecutable if path is ""
  std::string message;  // for the person, if path is ""
};

// Finds `command` as execvp(3) does: by its path if it has a slash, else along $PATH (`search_path`).
ProgramLookup FindProgram(const std::string& command, const std::string& search_path);

// "" if the dynamic linker will load the agent into the program at `path`, else why not and what to do.
// Follows `#!` lines, also through env(1). What cannot be read (execute-only files) is taken to be fine.
std::string CheckPreloadable(const std::string& path, const ExecIdentity& identity,
                             const std::string& search_path);

// "" if the file at `path` is a shared object that a program of this machine type can load, else why not.
std::string CheckSharedObject(const std::string& path);

}  // namespace uzswap::cli
