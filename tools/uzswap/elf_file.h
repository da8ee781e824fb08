// The few facts of an ELF file that decide whether something can be preloaded into it.
#pragma once

#include <cstdint>
#include <string>

#include "libzpool/base/result.h"

namespace uzswap::cli {

struct ElfFacts {
  bool is_elf = false;  // false: none of the rest is meaningful
  bool is_64bit = false;
  bool is_little_endian = false;
  uint16_t type = 0;        // ET_EXEC, ET_DYN, …
  uint16_t machine = 0;     // EM_X86_64, …
  std::string interpreter;  // PT_INTERP: the dynamic linker; "" for a static program
};

// The machine that this build's agent runs on.
extern const uint16_t kOwnMachine;

// Reads the headers of the open file `fd`. Errors: kSystem (read failed), kCorrupt (a header points outside
// of the file or is absurd). Trusts nothing in the file; reads at most its headers and the interpreter's
// name. Only files of this machine's word size and byte order are read beyond the identification.
zp::Result<ElfFacts> ReadElf(int fd);

// "x86-64", "ARM", … or "machine 123".
std::string MachineName(uint16_t machine);

}  // namespace uzswap::cli
