#include "tools/uzswap/program_file.h"

#include <elf.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "libzpool/base/fd.h"
#include "tools/uzswap/elf_file.h"
#include "tools/uzswap/exit_codes.h"

namespace uzswap::cli {
namespace {

constexpr char kLinker[] = "/bin/sh";  // anything that may be executed

// A directory with programs made by hand; removed at the end.
class ProgramFile : public testing::Test {
 protected:
  ProgramFile() {
    char path[] = "/tmp/uzswap-cli-test-XXXXXX";
    directory_ = mkdtemp(path);
  }
  ~ProgramFile() override { std::filesystem::remove_all(directory_); }

  std::string Path(const std::string& name) const { return directory_ + "/" + name; }

  std::string Write(const std::string& name, const std::string& content, mode_t mode = 0755) {
    std::ofstream(Path(name), std::ios::binary) << content;
    chmod(Path(name).c_str(), mode);
    return Path(name);
  }

  // An ELF file of this machine; `interpreter` "": static.
  static std::string Elf(const std::string& interpreter, uint16_t type = ET_DYN,
                         uint16_t machine = kOwnMachine) {
    Elf64_Ehdr header = {};
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_type = type;
    header.e_machine = machine;
    header.e_phoff = sizeof(header);
    header.e_phentsize = sizeof(Elf64_Phdr);
    Elf64_Phdr load = {};
    load.p_type = PT_LOAD;
    std::string out;
    header.e_phnum = interpreter.empty() ? 1 : 2;
    out.append(reinterpret_cast<const char*>(&header), sizeof(header));
    out.append(reinterpret_cast<const char*>(&load), sizeof(load));
    if (!interpreter.empty()) {
      Elf64_Phdr interp = {};
      interp.p_type = PT_INTERP;
      interp.p_offset = out.size() + sizeof(interp);
      interp.p_filesz = interpreter.size() + 1;
      out.append(reinterpret_cast<const char*>(&interp), sizeof(interp));
      out += interpreter + '\0';
    }
    return out;
  }

  std::string Check(const std::string& path, const ExecIdentity& who = Me()) const {
    return CheckPreloadable(path, who, directory_ + ":/usr/bin:/bin");
  }

  static ExecIdentity Me() { return {getuid(), getuid(), getgid(), getgid(), false}; }

  std::string directory_;
};

bool Says(const std::string& text, const std::string& word) { return text.find(word) != std::string::npos; }

TEST_F(ProgramFile, DynamicProgramIsFine) {
  EXPECT_EQ(Check(Write("dynamic", Elf(kLinker))), "");
  EXPECT_EQ(Check(Write("no-pie", Elf(kLinker, ET_EXEC))), "");
  EXPECT_EQ(Check("/proc/self/exe"), "");
}

TEST_F(ProgramFile, StaticProgramIsRefused) {
  EXPECT_TRUE(Says(Check(Write("static", Elf("", ET_EXEC))), "statically linked"));
  EXPECT_TRUE(Says(Check(Write("static-pie", Elf("", ET_DYN))), "statically linked"));
}

TEST_F(ProgramFile, DynamicLinkerItselfIsFine) {
  EXPECT_EQ(Check(Write("ld-linux-x86-64.so.2", Elf(""))), "");
  EXPECT_TRUE(Says(Check(Write("ld-tool", Elf(""))), "statically linked"));
}

TEST_F(ProgramFile, OtherMachinesAreNamed) {
  const uint16_t other = kOwnMachine == EM_AARCH64 ? EM_X86_64 : EM_AARCH64;
  EXPECT_TRUE(Says(Check(Write("other", Elf(kLinker, ET_DYN, other))), MachineName(other)));
  std::string narrow = Elf(kLinker);
  narrow[EI_CLASS] = ELFCLASS32;
  narrow[EI_NIDENT + 2] = EM_386;
  EXPECT_TRUE(Says(Check(Write("narrow", narrow)), "32-bit"));
}

TEST_F(ProgramFile, ObjectFilesAndMissingLinkersAreRefused) {
  EXPECT_TRUE(Says(Check(Write("object", Elf("", ET_REL))), "no program"));
  EXPECT_TRUE(Says(Check(Write("orphan", Elf("/nowhere/ld-none.so"))), "/nowhere/ld-none.so"));
}

TEST_F(ProgramFile, ScriptsAreFollowedToTheirInterpreter) {
  Write("dynamic", Elf(kLinker));
  Write("static", Elf("", ET_EXEC));
  EXPECT_EQ(Check(Write("good", "#!" + Path("dynamic") + "\nx\n")), "");
  EXPECT_EQ(Check(Write("argument", "#! \t" + Path("dynamic") + " -x y \n")), "");
  EXPECT_EQ(Check(Write("chain", "#!" + Path("good") + "\n")), "");
  EXPECT_EQ(Check(Write("plain", "echo no hash-bang\n")), "");  // /bin/sh
  EXPECT_EQ(Check(Write("empty", "")), "");
  const std::string why = Check(Write("bad", "#!" + Path("static") + "\nx\n"));
  EXPECT_TRUE(Says(why, "statically linked")) << why;
  EXPECT_TRUE(Says(why, "bad is a script for")) << why;
  EXPECT_TRUE(Says(Check(Write("none", "#!/nowhere/interpreter\n")), "/nowhere/interpreter"));
  EXPECT_TRUE(Says(Check(Write("loop", "#!" + Path("loop") + "\n")), "deeper"));
}

TEST_F(ProgramFile, EnvIsLookedThrough) {
  Write("dynamic", Elf(kLinker));
  Write("static", Elf("", ET_EXEC));
  EXPECT_EQ(Check(Write("good", "#!/usr/bin/env dynamic\n")), "");
  EXPECT_EQ(Check(Write("split", "#!/usr/bin/env -S A=b dynamic -x\n")), "");
  EXPECT_EQ(Check(Write("strange", "#!/usr/bin/env -u X dynamic\n")), "");  // env itself is fine
  EXPECT_TRUE(Says(Check(Write("bad", "#!/usr/bin/env static\n")), "statically linked"));
  EXPECT_TRUE(Says(Check(Write("none", "#!/usr/bin/env no-such-program\n")), "not found"));
}

TEST_F(ProgramFile, SetuidIsRefusedOnlyWhenItChangesTheUser) {
  const std::string mine = Write("mine", Elf(kLinker), 04755);
  EXPECT_EQ(Check(mine), "");
  ExecIdentity other = Me();
  other.real_uid = other.effective_uid = Me().real_uid + 1;
  EXPECT_TRUE(Says(Check(mine, other), "setuid"));
  other.no_new_privs = true;  // the bit is without effect then
  EXPECT_EQ(Check(mine, other), "");
}

TEST_F(ProgramFile, SetgidIsRefusedOnlyWhenItChangesTheGroup) {
  const std::string program = Write("program", Elf(kLinker));
  chmod(program.c_str(), 02755);
  ExecIdentity other = Me();
  other.real_gid = other.effective_gid = Me().real_gid + 1;
  EXPECT_EQ(Check(program), "");
  EXPECT_TRUE(Says(Check(program, other), "setgid"));
  chmod(program.c_str(), 02745);  // without the group's x it means something else
  EXPECT_EQ(Check(program, other), "");
}

TEST_F(ProgramFile, ScriptsSetuidBitIsWithoutEffectTheInterpretersCounts) {
  Write("interpreter", Elf(kLinker), 04755);
  ExecIdentity other = Me();
  other.real_uid = other.effective_uid = Me().real_uid + 1;
  EXPECT_EQ(Check(Write("script", "#!/bin/sh\n", 04755), other), "");
  EXPECT_TRUE(Says(Check(Write("through", "#!" + Path("interpreter") + "\n"), other), "setuid"));
}

TEST_F(ProgramFile, UzswapItselfWithOtherEffectiveUserIsRefused) {
  ExecIdentity mixed = Me();
  mixed.effective_uid = Me().real_uid + 1;
  EXPECT_TRUE(Says(Check(Write("program", Elf(kLinker)), mixed), "uzswap itself"));
}

TEST_F(ProgramFile, DamagedElfNeverCrashes) {
  const std::string good = Elf(kLinker);
  for (size_t length = 0; length <= good.size(); ++length) (void)Check(Write("cut", good.substr(0, length)));
  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) {
    std::string bad = good;
    for (int flips = 1 + static_cast<int>(random() % 4); flips > 0; --flips) {
      bad[random() % bad.size()] = static_cast<char>(random());
    }
    (void)Check(Write("bad", bad));
  }
}

TEST_F(ProgramFile, LookupFollowsExecvp) {
  std::filesystem::create_directory(Path("first"));
  std::filesystem::create_directory(Path("second"));
  std::filesystem::create_directory(Path("first/directory"));
  Write("first/plain", "x", 0644);
  Write("second/plain", "x", 0755);
  Write("first/only-plain", "x", 0644);
  const std::string search = Path("first") + ":" + Path("second");
  EXPECT_EQ(FindProgram("plain", search).path,
            Path("second/plain"));  // goes on after what cannot be executed
  EXPECT_EQ(FindProgram("only-plain", search).exit_code, kExitNotExecutable);
  EXPECT_EQ(FindProgram("no-such-program", search).exit_code, kExitNotFound);
  EXPECT_EQ(FindProgram("", search).exit_code, kExitNotFound);
  EXPECT_EQ(FindProgram(Path("first/directory"), search).exit_code, kExitNotExecutable);
  EXPECT_EQ(FindProgram(Path("second/plain"), "").path, Path("second/plain"));
  EXPECT_EQ(FindProgram(Path("first/plain/below"), "").exit_code, kExitNotFound);
}

TEST_F(ProgramFile, SharedObjectIsChecked) {
  EXPECT_EQ(CheckSharedObject(Write("good.so", Elf(""))), "");
  EXPECT_NE(CheckSharedObject(Write("text.so", "INPUT(libc.so)")), "");
  EXPECT_NE(CheckSharedObject(Path("none.so")), "");
}

}  // namespace
}  // namespace uzswap::cli
