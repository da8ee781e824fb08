// Features of the kernel that look at, limit or confine a program's memory.
#include <elf.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "tests/e2e/corners/corner.h"

namespace uzswap::corners {
namespace {

constexpr size_t kPages = 64;
constexpr size_t kHugePages = 512;  // of 4 KiB in 2 MiB

// A word of /sys, as it stands there; "" if it is not there.
std::string ReadWord(const char* path) {
  char text[256] = {};
  FILE* file = fopen(path, "re");
  if (file == nullptr) return "";
  const size_t got = fread(text, 1, sizeof(text) - 1, file);
  (void)fclose(file);
  return {text, got};
}

// Bytes of huge pages in the mapping that begins at `at`.
size_t HugeBytes(const std::byte* at) {
  FILE* file = fopen("/proc/self/smaps", "re");
  char line[512];
  bool here = false;
  size_t kib = 0;
  while (file != nullptr && fgets(line, sizeof(line), file) != nullptr) {
    unsigned long start = 0, end = 0;
    if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
      here = start <= reinterpret_cast<uintptr_t>(at) && reinterpret_cast<uintptr_t>(at) < end;
    if (here && sscanf(line, "AnonHugePages: %zu", &kib) == 1) break;
  }
  if (file != nullptr) (void)fclose(file);
  return kib * 1024;
}

void HugePages() {
  const Memory memory = Map(3 * kHugePages, kHugePages * kPage);
  if (madvise(memory.at, memory.bytes(), MADV_HUGEPAGE) != 0) Skip("MADV_HUGEPAGE: %s", strerror(errno));
  memory.Fill(1);
  if (HugeBytes(memory.at) == 0) Skip("the kernel gives no huge pages");
  memory.Evict();
  Expect(IsNative() || HugeBytes(memory.at) == 0, "a huge page stayed");
  memory.Check(1, "a huge page, evicted");
  memory.Fill(2);
  memory.Evict();
  memory.Check(2, "what was huge, evicted again");
  // One that is shared with a child, which splits it and writes to it.
  const Memory other = Map(kHugePages, kHugePages * kPage);
  (void)madvise(other.at, other.bytes(), MADV_HUGEPAGE);
  other.Fill(3);
  InChild([&] {
    other.Part(100, 100).Fill(4);
    other.Part(0, 100).Check(3, "a huge page in the child");
    other.Part(100, 100).Check(4, "a huge page, written in the child");
  });
  other.Evict();
  other.Check(3, "a huge page, shared and evicted");
}

// Same pages that the kernel has merged: shared, so they are left alone until they are written.
void SamePageMerging() {
  if (ReadWord("/sys/kernel/mm/ksm/run") != "1\n") Skip("KSM does not run here");
  const Memory memory = Map(kPages);
  for (size_t page = 0; page < kPages; ++page) {
    Memory one = memory.Part(page, 1);
    one.first = 0;
    one.Fill(1);
  }
  Expect(madvise(memory.at, memory.bytes(), MADV_MERGEABLE) == 0, "madvise: %s", strerror(errno));
  for (int tries = 0; tries < 300 && ReadWord("/proc/self/ksm_merging_pages") == "0\n"; ++tries)
    usleep(100'000);
  if (ReadWord("/proc/self/ksm_merging_pages") == "0\n") Skip("KSM merges nothing");
  if (!IsNative()) (void)Ask("evict %d", getpid());
  for (size_t page = 0; page < kPages; ++page) {
    Memory one = memory.Part(page, 1);
    one.first = 0;
    one.Check(1, "merged");
  }
  memory.Fill(2);
  memory.Evict();
  memory.Check(2, "merged, written and evicted");
}

// The program's own userfaultfd: its ranges are its own.
int OwnUserfaultfd() {
  int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
  uffdio_api api{};
  api.api = UFFD_API;
  if (fd < 0 || ioctl(fd, UFFDIO_API, &api) != 0) Skip("userfaultfd: %s", strerror(errno));
  return fd;
}

long Register(int fd, const Memory& memory) {
  uffdio_register registration{};
  registration.range = {reinterpret_cast<uintptr_t>(memory.at), memory.bytes()};
  registration.mode = UFFDIO_REGISTER_MODE_MISSING;
  return ioctl(fd, UFFDIO_REGISTER, &registration);
}

void ServesItsOwnFaults() {
  const int fd = OwnUserfaultfd();
  const Memory memory = Map(kPages);
  memory.Part(0, 32).Fill(1);
  Expect(Register(fd, memory) == 0, "UFFDIO_REGISTER: %s", strerror(errno));
  // The other half is missing: a thread of the program fills it.
  const Memory source = Map(1);
  std::thread handler([&] {
    for (size_t served = 0; served < 32;) {
      pollfd waiting{fd, POLLIN, 0};
      (void)poll(&waiting, 1, -1);
      uffd_msg message{};
      if (read(fd, &message, sizeof(message)) != sizeof(message)) continue;
      const uint64_t at = message.arg.pagefault.address / kPage * kPage;
      Memory content = source;
      content.first = (at - reinterpret_cast<uintptr_t>(memory.at)) / kPage;
      content.Fill(1);
      uffdio_copy copy{at, reinterpret_cast<uintptr_t>(source.at), kPage, 0, 0};
      Expect(ioctl(fd, UFFDIO_COPY, &copy) == 0, "UFFDIO_COPY: %s", strerror(errno));
      ++served;
    }
  });
  memory.Check(1, "served by the program itself");
  handler.join();
  memory.Stays("not_ours");
  memory.Check(1, "registered by the program");
  // Beside it everything is as ever.
  const Memory other = MapEvicted(kPages);
  other.Check(1, "beside what the program registered");
  (void)close(fd);
  memory.Evict();
  memory.Check(1, "given up by the program's userfaultfd");
}

void RegistersWhatIsEvicted() {
  const int fd = OwnUserfaultfd();
  const Memory memory = MapEvicted(kPages);
  Known("register_evicted", "%s", Outcome(Register(fd, memory)).c_str());
  memory.Check(1, "to be registered by the program while it was evicted");
  (void)close(fd);
  if (IsNative()) return;
  memory.Evict();
  memory.Check(1, "behind a refused registration");
}

// What asks for presence sees that evicted pages are not there; what asks for writes may see one too many.
void Residency() {
  const Memory memory = MapEvicted(8);
  unsigned char there[8] = {};
  Expect(mincore(memory.at, memory.bytes(), there) == 0, "mincore: %s", strerror(errno));
  Known("mincore_evicted", "%d", there[0] & 1);
  void* pages[1] = {memory.at};
  int status[1] = {-1};
  const long moved = syscall(SYS_move_pages, 0, 1, pages, nullptr, status, 0);
  if (moved == 0) Known("move_pages_evicted", "%s", status[0] >= 0 ? "a node" : strerrorname_np(-status[0]));
  memory.Check(1, "after it was asked where it is");
  Expect(mincore(memory.at, memory.bytes(), there) == 0 && there[0] == 1, "mincore of what is home");
}

void SoftDirty() {
  const Memory memory = Map(8);
  memory.Fill(1);
  const int clear = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  const auto dirty = [&](size_t page) {
    uint64_t entry = 0;
    const auto offset =
        static_cast<off_t>(reinterpret_cast<uintptr_t>(memory.page(page)) / kPage * sizeof(entry));
    if (pread(pagemap, &entry, sizeof(entry), offset) != sizeof(entry)) Fail("pagemap: %s", strerror(errno));
    return (entry >> 55 & 1) != 0;
  };
  if (!dirty(0)) Skip("this kernel has no soft-dirty bits");
  if (clear < 0 || write(clear, "4", 1) != 1) Skip("clear_refs: %s", strerror(errno));
  Expect(!dirty(0), "clear_refs clears nothing");
  memory.Evict();
  memory.Check(1, "evicted while writes are tracked");
  Dirty(memory.page(3));
  Expect(dirty(3), "a write was not noticed");  // a page that came home may count as written, too
}

// An address space or data limit: what is evicted counts as ever, and no more than natively fits.
void AddressSpaceLimit(int resource) {
  const Memory memory = MapEvicted(kPages);
  rlimit limit{};
  char line[256];
  unsigned long virtual_kib = 0;
  FILE* file = fopen("/proc/self/status", "re");
  const char* key = resource == RLIMIT_AS ? "VmSize: %lu" : "VmData: %lu";
  while (file != nullptr && fgets(line, sizeof(line), file) != nullptr &&
         sscanf(line, key, &virtual_kib) != 1) {
  }
  if (file != nullptr) (void)fclose(file);
  limit.rlim_cur = limit.rlim_max = virtual_kib * 1024 + 1024 * kPage;
  Expect(setrlimit(resource, &limit) == 0, "setrlimit: %s", strerror(errno));
  const auto map = [](size_t pages) {
    return mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  };
  void* fits = map(512);
  Say("what fits: %s", fits == MAP_FAILED ? strerrorname_np(errno) : "0");
  Say("what does not fit: %s", map(1024) == MAP_FAILED ? strerrorname_np(errno) : "0");
  memory.Check(1, "under a limit of the address space");
  Memory more{static_cast<std::byte*>(fits), 512, 0};
  more.Fill(2);
  memory.Evict();
  Say("still does not fit: %s", map(1024) == MAP_FAILED ? strerrorname_np(errno) : "0");
  memory.Check(1, "evicted under a limit of the address space");
  more.Check(2, "evicted under a limit of the address space");
}
void LimitOfAddressSpace() { AddressSpaceLimit(RLIMIT_AS); }
void LimitOfData() { AddressSpaceLimit(RLIMIT_DATA); }

// Filters: for this thread or for all, that answer with an error or kill.
void Filter(uint32_t action, std::vector<uint32_t> calls, unsigned flags) {
  std::vector<sock_filter> code{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
  for (size_t i = 0; i < calls.size(); ++i)
    code.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], static_cast<uint8_t>(calls.size() - i), 0));
  code.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  code.push_back(BPF_STMT(BPF_RET | BPF_K, action));
  sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
  Expect(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "prctl: %s", strerror(errno));
  const long set = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
  if (set != 0 && errno == ENOSYS) Skip("no seccomp filters");
  Expect(set == 0, "seccomp: %s", set > 0 ? "a thread cannot take the filter" : strerror(errno));
}

void UnderAFilter(uint32_t action, unsigned flags) {
  const Memory before = MapEvicted(kPages);
  const Memory later = Map(kPages);
  later.Fill(2);
  Filter(action, {SYS_ioctl, SYS_openat, SYS_getdents64, SYS_close}, flags);
  before.Part(0, 32).Check(1, "evicted before the filter came");
  for (int round = 0; round < 3 && !IsNative(); ++round) (void)Ask("evict %d", getpid());
  before.Check(1, "behind a filter");
  later.Check(2, "behind a filter");
  later.Fill(3);
  for (int round = 0; round < 3 && !IsNative(); ++round) (void)Ask("evict %d", getpid());
  later.Check(3, "written behind a filter");
  InChild([&] {
    before.Check(1, "in a child behind a filter");
    later.Check(3, "in a child behind a filter");
  });
  Say("lives on behind its filter");
}
void FilterThatRefuses() { UnderAFilter(SECCOMP_RET_ERRNO | EPERM, 0); }
void FilterThatRefusesAll() { UnderAFilter(SECCOMP_RET_ERRNO | EPERM, SECCOMP_FILTER_FLAG_TSYNC); }
void FilterThatKills() { UnderAFilter(SECCOMP_RET_KILL_PROCESS, 0); }
void FilterThatKillsAll() { UnderAFilter(SECCOMP_RET_KILL_PROCESS, SECCOMP_FILTER_FLAG_TSYNC); }
void FilterThatTrapsAll() { UnderAFilter(SECCOMP_RET_TRAP, SECCOMP_FILTER_FLAG_TSYNC); }

// Nothing of /proc, /dev or the daemon's socket is to be seen any more.
void ChangeRoot() {
  if (getuid() != 0) Skip("needs root");
  const Memory memory = MapEvicted(kPages);
  Expect(mkdir("empty", 0700) == 0 && chroot("empty") == 0 && chdir("/") == 0, "chroot: %s", strerror(errno));
  memory.Check(1, "in an empty root");
  memory.Fill(2);
  memory.Evict();
  memory.Check(2, "evicted in an empty root");
  std::thread([&] { memory.Check(2, "in a thread in an empty root"); }).join();
  memory.Evict();
  InChild([&] { memory.Check(2, "in a child in an empty root"); });
}

// Namespaces that a program makes for itself. A user namespace is for processes of one thread alone: the
// agent is one too many.
void OwnNamespaces() {
  const Memory memory = MapEvicted(kPages);
  InChild([&] {
    Say("a user namespace, in a child: %s", Outcome(unshare(CLONE_NEWUSER)).c_str());
    memory.Check(1, "in a user namespace");
  });
  memory.Evict();
  Say("a mount namespace: %s", Outcome(unshare(CLONE_NEWNS)).c_str());
  Say("a network: %s", Outcome(unshare(CLONE_NEWNET)).c_str());
  Say("a pid namespace: %s", Outcome(unshare(CLONE_NEWPID)).c_str());
  memory.Check(1, "in namespaces of its own");
  memory.Evict();
  // Its first process in there, and, when that has ended, its last.
  InChild([&] { memory.Check(1, "in a child in namespaces of its own"); });
  memory.Evict();
  Known("user_namespace", "%s", Outcome(unshare(CLONE_NEWUSER)).c_str());
  memory.Check(1, "in a user namespace");
}

// The driver starts this one in namespaces, or under a memory cgroup, or with a limit of its own.
void InAContainer() {
  const Memory memory = MapEvicted(kPages);
  memory.Check(1, "in a container");
  memory.Fill(2);
  memory.Evict();
  InChild([&] { memory.Check(2, "in a child, in a container"); });
  memory.Check(2, "evicted in a container");
  Say("works in a container");
}

// Three times what its memory cgroup allows; natively it would be killed.
void MoreThanItsGroupAllows() {
  const Memory memory = Map(40 * kHugePages);  // 80 MiB
  for (uint64_t generation = 1; generation <= 2; ++generation) {
    // At 200 MiB a second: as fast as it could it might pass any limit for a moment.
    for (size_t at = 0; at < memory.pages; at += 256) {
      memory.Part(at, 256).Fill(generation);
      usleep(5000);
    }
    memory.Check(generation, "more than the memory cgroup allows");
  }
  Say("%zu pages", memory.pages);
}

// What a core file holds of a page: "right", "zero", "wrong", or "none" if it has no such segment.
std::string InCore(const char* path, const Memory& memory, size_t page) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  Elf64_Ehdr header{};
  if (fd < 0 || pread(fd, &header, sizeof(header), 0) != sizeof(header))
    Fail("the core file: %s", strerror(errno));
  const auto address = reinterpret_cast<uintptr_t>(memory.page(page));
  std::string found = "none";
  for (unsigned n = 0; n < header.e_phnum; ++n) {
    Elf64_Phdr segment{};
    const auto offset = static_cast<off_t>(header.e_phoff + n * sizeof(segment));
    if (pread(fd, &segment, sizeof(segment), offset) != sizeof(segment)) break;
    if (segment.p_type != PT_LOAD || address < segment.p_vaddr ||
        address >= segment.p_vaddr + segment.p_filesz)
      continue;
    uint64_t word = 1;
    (void)!pread(fd, &word, sizeof(word), static_cast<off_t>(segment.p_offset + address - segment.p_vaddr));
    found = word == PatternWord(1, page, 0) ? "right" : word == 0 ? "zero" : "wrong";
  }
  (void)close(fd);
  return found;
}

void CoreDump() {
  const rlimit all{RLIM_INFINITY, RLIM_INFINITY};
  if (setrlimit(RLIMIT_CORE, &all) != 0) Skip("RLIMIT_CORE: %s", strerror(errno));
  if (ReadWord("/proc/sys/kernel/core_pattern") != "core\n" ||
      ReadWord("/proc/sys/kernel/core_uses_pid") != "0\n")
    Skip("core dumps go elsewhere here");
  const Memory memory = MapEvicted(kPages);
  const pid_t child = fork();
  if (child == 0) {
    memory.Part(0, 1).Check(1, "in a child that dumps core");  // that one is home
    abort();
  }
  int status = 0;
  (void)waitpid(child, &status, 0);
  Say("ended by signal %d", WTERMSIG(status));
  if (!WCOREDUMP(status)) Skip("no core was dumped");
  Say("home, in the core: %s", InCore("core", memory, 0).c_str());
  Known("core_of_evicted", "%s", InCore("core", memory, 40).c_str());
  memory.Check(1, "behind a child that dumped core");
}

}  // namespace

std::vector<Corner> KernelCorners() {
  return {{"huge_pages", HugePages},
          {"ksm", SamePageMerging},
          {"own_userfaultfd", ServesItsOwnFaults},
          {"userfaultfd_after_eviction", RegistersWhatIsEvicted},
          {"residency", Residency},
          {"soft_dirty", SoftDirty},
          {"limit_of_address_space", LimitOfAddressSpace},
          {"limit_of_data", LimitOfData},
          {"seccomp_refuses", FilterThatRefuses},
          {"seccomp_refuses_all_threads", FilterThatRefusesAll},
          {"seccomp_kills", FilterThatKills},
          {"seccomp_kills_all_threads", FilterThatKillsAll},
          {"seccomp_traps_all_threads", FilterThatTrapsAll},
          {"chroot", ChangeRoot},
          {"own_namespaces", OwnNamespaces},
          {"_container", InAContainer},
          {"_memory_cgroup", MoreThanItsGroupAllows},
          {"core_dump", CoreDump}};
}

}  // namespace uzswap::corners
