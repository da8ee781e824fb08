#include "tests/uffd/app.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace uzswap::test {
namespace {

[[noreturn]] void Die(const char* what) {
  fprintf(stderr, "tests/uffd: %s: %s\n", what, strerror(errno));
  abort();
}

std::string ReadFile(const std::string& path) {
  std::string text;
  FILE* file = fopen(path.c_str(), "re");
  if (file == nullptr) return text;
  char chunk[4096];
  for (size_t got = 0; (got = fread(chunk, 1, sizeof(chunk), file)) > 0;) text.append(chunk, got);
  fclose(file);
  return text;
}

}  // namespace

char ThreadState(pid_t pid, int tid) {
  const std::string stat =
      ReadFile("/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/stat");
  const size_t end = stat.rfind(')');
  return end == std::string::npos || end + 2 >= stat.size() ? '\0' : stat[end + 2];
}

App::App(const std::string& socket_path, uint64_t limit_bytes, std::vector<std::string> variables) {
  shared_fd_ = memfd_create("uffd-test", 0);
  if (shared_fd_ < 0 || ftruncate(shared_fd_, sizeof(Shared)) != 0) Die("memfd");
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd_, 0);
  if (memory == MAP_FAILED) Die("mmap");
  shared_ = static_cast<Shared*>(memory);
  const char* program = getenv("UZSWAP_TEST_APP");
  const char* agent = getenv("UZSWAP_TEST_AGENT");
  if (program == nullptr || agent == nullptr) Die("UZSWAP_TEST_APP and UZSWAP_TEST_AGENT must be set");
  const std::string number = std::to_string(shared_fd_);
  variables.push_back(std::string("LD_PRELOAD=") + agent);
  variables.push_back("UZSWAP_SOCKET=" + socket_path);
  variables.push_back("UZSWAP_LIMIT=" + std::to_string(limit_bytes));
  std::vector<char*> envp;
  for (std::string& variable : variables) envp.push_back(variable.data());
  envp.push_back(nullptr);
  char* argv[] = {const_cast<char*>(program), const_cast<char*>(number.c_str()), nullptr};
  pid_ = vfork();  // NOLINT(clang-analyzer-*): nothing but execve follows
  if (pid_ == 0) {
    execve(program, argv, envp.data());
    _exit(127);
  }
  if (pid_ < 0) Die("fork");
}

App::~App() {
  Kill();
  (void)munmap(shared_, sizeof(Shared));
  (void)close(shared_fd_);
}

void App::Kill() {
  if (pid_ < 0) return;
  (void)kill(pid_, SIGKILL);
  (void)waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void App::WaitReady() {
  while (shared_->ready.load() == 0) {
    FutexWait(shared_->ready, 0, 100);
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) Die("the application ended before it was ready");
  }
  for (unsigned box = 0; box < kFirstThreads; ++box) {
    auto& word = reinterpret_cast<std::atomic<uint32_t>&>(shared_->boxes[box].tid);
    while (word.load() == 0) FutexWait(word, 0, 100);
  }
}

int App::agent_tid() const {
  const std::string tasks = "/proc/" + std::to_string(pid_) + "/task";
  int found = -1;
  DIR* dir = opendir(tasks.c_str());
  if (dir == nullptr) return -1;
  while (const dirent* entry = readdir(dir)) {
    if (ReadFile(tasks + "/" + entry->d_name + "/comm") == "uzswap-agent\n") found = atoi(entry->d_name);
  }
  closedir(dir);
  return found;
}

uint64_t App::scratch_address() {
  const std::string maps = ReadFile("/proc/" + std::to_string(pid_) + "/maps");
  const size_t name = maps.find("/memfd:uffd-test");
  if (name == std::string::npos) Die("no shared mapping in the application");
  const size_t line = maps.rfind('\n', name) + 1;
  return strtoull(maps.c_str() + line, nullptr, 16) + offsetof(Shared, scratch);
}

void App::Post(unsigned box, Op op, std::initializer_list<int64_t> args) {
  Mailbox& mailbox = shared_->boxes[box];
  mailbox.op = op;
  std::fill(std::begin(mailbox.args), std::end(mailbox.args), 0);
  std::copy(args.begin(), args.end(), std::begin(mailbox.args));
  mailbox.state = kPosted;
  FutexWake(mailbox.state);
}

bool App::Wait(unsigned box, int timeout_ms) {
  timespec begin{};
  clock_gettime(CLOCK_MONOTONIC, &begin);
  for (;;) {
    const uint32_t state = shared_->boxes[box].state.load();
    if (state == kDone) return true;
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    const int64_t passed = (now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1'000'000;
    if (passed >= timeout_ms) return false;
    FutexWait(shared_->boxes[box].state, state,
              static_cast<int>(std::min<int64_t>(timeout_ms - passed + 1, 100)));
  }
}

int64_t App::Call(unsigned box, Op op, std::initializer_list<int64_t> args) {
  Post(box, op, args);
  if (!Wait(box)) Die("the application does not answer");
  return result(box);
}

void App::PostSyscall(unsigned box, long number, std::initializer_list<int64_t> args) {
  Mailbox& mailbox = shared_->boxes[box];
  mailbox.op = Op::kSyscall;
  std::fill(std::begin(mailbox.args), std::end(mailbox.args), 0);
  mailbox.args[0] = number;
  std::copy(args.begin(), args.end(), std::begin(mailbox.args) + 1);
  mailbox.state = kPosted;
  FutexWake(mailbox.state);
}

int64_t App::Syscall(unsigned box, long number, std::initializer_list<int64_t> args) {
  PostSyscall(box, number, args);
  if (!Wait(box)) Die("the application's system call does not return");
  return result(box);
}

uint64_t App::FreeAddress() {
  const uint64_t address = next_address_;
  next_address_ += uint64_t{1} << 32;
  return address;
}

uint64_t App::Map(uint64_t pages, int protection) {
  const uint64_t address = FreeAddress();
  const int64_t got = Syscall(0, SYS_mmap,
                              {static_cast<int64_t>(address), static_cast<int64_t>(pages * kPage), protection,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0});
  if (got != static_cast<int64_t>(address)) Die("mmap in the application");
  (void)Syscall(0, SYS_madvise, {got, static_cast<int64_t>(pages * kPage), MADV_NOHUGEPAGE});
  return address;
}

uint64_t App::MapFilled(uint64_t pages) {
  const uint64_t address = Map(pages);
  (void)Call(0, Op::kFill, {static_cast<int64_t>(address), static_cast<int64_t>(pages), 1});
  return address;
}

bool App::IsPresent(uint64_t address, pid_t pid) const {
  const std::string path = "/proc/" + std::to_string(pid == 0 ? pid_ : pid) + "/pagemap";
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  uint64_t entry = 0;
  (void)!pread(fd, &entry, sizeof(entry), static_cast<off_t>(address / kPage * 8));
  (void)close(fd);
  return (entry >> 63) != 0;
}

void App::WaitBlocked(unsigned box) const {
  // Running its operation and asleep: in the kernel, for something that the test or uzswap has to do.
  for (;;) {
    const bool running = shared_->boxes[box].state.load() == kRunning;
    const char state = ThreadState(pid_, tid(box));
    if (running && (state == 'S' || state == 'D')) return;
    sched_yield();
  }
}

}  // namespace uzswap::test
