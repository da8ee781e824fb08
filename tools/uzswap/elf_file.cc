#include "tools/uzswap/elf_file.h"

#include <elf.h>
#include <fmt/format.h>
#include <limits.h>
#include <unistd.h>

#include <bit>
#include <cstring>

namespace uzswap::cli {

#if defined(__x86_64__)
const uint16_t kOwnMachine = EM_X86_64;
#elif defined(__aarch64__)
const uint16_t kOwnMachine = EM_AARCH64;
#else
#error "name this machine's ELF number here"
#endif

namespace {

// Reads exactly `bytes`, or says that the file is shorter.
zp::Status ReadExactly(int fd, void* to, size_t bytes, uint64_t offset) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n =
        pread(fd, static_cast<char*>(to) + done, bytes - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return zp::ErrnoError("read the program's header");
    if (n == 0) return zp::Error{zp::Errc::kCorrupt, 0, "truncated ELF file"};
    done += static_cast<size_t>(n);
  }
  return zp::OkStatus();
}

}  // namespace

zp::Result<ElfFacts> ReadElf(int fd) {
  ElfFacts facts;
  unsigned char ident[EI_NIDENT + 4] = {};  // e_type and e_machine follow at the same place in both classes
  if (zp::Status got = ReadExactly(fd, ident, sizeof(ident), 0); !got.ok()) {
    if (got.error().code == zp::Errc::kCorrupt) return facts;  // too short to be ELF
    return got.error();
  }
  if (std::memcmp(ident, ELFMAG, SELFMAG) != 0) return facts;

  facts.is_elf = true;
  facts.is_64bit = ident[EI_CLASS] == ELFCLASS64;
  facts.is_little_endian = ident[EI_DATA] == ELFDATA2LSB;
  const auto half = [&](size_t at) {
    return static_cast<uint16_t>(facts.is_little_endian ? ident[at] | ident[at + 1] << 8
                                                        : ident[at + 1] | ident[at] << 8);
  };
  facts.type = half(EI_NIDENT);
  facts.machine = half(EI_NIDENT + 2);
  if (!facts.is_64bit || facts.is_little_endian != (std::endian::native == std::endian::little)) return facts;

  Elf64_Ehdr header;
  ZP_TRY(ReadExactly(fd, &header, sizeof(header), 0));
  if (header.e_phnum == 0) return facts;
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phoff > INT64_MAX / 2) {
    return zp::Error{zp::Errc::kCorrupt, 0, "malformed ELF header"};
  }
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment;
    ZP_TRY(ReadExactly(fd, &segment, sizeof(segment), header.e_phoff + i * sizeof(segment)));
    if (segment.p_type != PT_INTERP) continue;
    if (segment.p_filesz < 2 || segment.p_filesz > PATH_MAX || segment.p_offset > INT64_MAX / 2) {
      return zp::Error{zp::Errc::kCorrupt, 0, "malformed ELF interpreter"};
    }
    std::string name(segment.p_filesz, '\0');
    ZP_TRY(ReadExactly(fd, name.data(), name.size(), segment.p_offset));
    facts.interpreter = name.c_str();  // ends at its NUL
    break;
  }
  return facts;
}

std::string MachineName(uint16_t machine) {
  switch (machine) {
    case EM_X86_64:
      return "x86-64";
    case EM_386:
      return "x86 (32-bit)";
    case EM_AARCH64:
      return "ARM64";
    case EM_ARM:
      return "ARM (32-bit)";
    case EM_RISCV:
      return "RISC-V";
    case EM_PPC64:
      return "POWER";
    case EM_S390:
      return "s390";
    default:
      return fmt::format("machine {}", machine);
  }
}

}  // namespace uzswap::cli
