// Memory that somebody else reads or writes: the kernel, a device, another process.
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/aio_abi.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <thread>

#include "tests/e2e/corners/corner.h"

namespace uzswap::corners {
namespace {

constexpr size_t kPages = 64;

// A file in the working directory, where O_DIRECT may work.
int OpenFile(int more_flags) {
  const int fd = open("corner.file", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | more_flags, 0600);
  if (fd < 0 && (more_flags & O_DIRECT) != 0) Skip("no O_DIRECT here: %s", strerror(errno));
  if (fd < 0) Fail("a file: %s", strerror(errno));
  return fd;
}

// System calls that read and write evicted memory, and find their arguments there.
void SystemCalls() {
  const Memory memory = MapEvicted(kPages);
  const Memory target = Map(kPages);
  target.Fill(9);
  const int fd = OpenFile(0);
  Say("write: %zd", write(fd, memory.at, memory.bytes()));
  target.Evict();
  Say("pread: %zd", pread(fd, target.at, target.bytes(), 0));
  memory.At(target.at).Check(1, "read back");
  // Vectors, the vector itself evicted.
  const Memory vectors = Map(1);
  auto* vector = reinterpret_cast<iovec*>(vectors.at);
  for (size_t i = 0; i < 16; ++i) vector[i] = {target.page(4 * i), 4 * kPage};
  target.Fill(9);
  target.Evict();
  vectors.Evict();
  Say("preadv: %zd", preadv(fd, vector, 16, 0));
  memory.At(target.at).Check(1, "read back by a vector");
  for (const Memory& all : {memory, target, vectors}) all.Evict();
  Say("pwritev: %zd", pwritev(fd, vector, 16, 0));
  memory.Check(1, "the other memory");
  // A socket pair, its message header and control data evicted.
  int ends[2];
  Expect(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0, "socketpair: %s", strerror(errno));
  const Memory headers = Map(2);
  auto* header = new (headers.at) msghdr{};
  auto* piece = new (headers.page(1)) iovec{memory.at, 2 * kPage};
  header->msg_iov = piece;
  header->msg_iovlen = 1;
  memory.Evict();
  headers.Evict();
  Say("sendmsg: %zd", sendmsg(ends[0], header, 0));
  piece->iov_base = target.page(8);
  target.Fill(9);
  target.Evict();
  headers.Evict();
  Say("recvmsg: %zd", recvmsg(ends[1], header, MSG_DONTWAIT));
  memory.Part(0, 2).At(target.page(8)).Check(1, "received");
  // Paths, structures, random bytes.
  const Memory small = Map(8);
  memset(small.at, 0x55, small.bytes());
  (void)snprintf(reinterpret_cast<char*>(small.at), kPage, "corner.file");
  auto* status = reinterpret_cast<struct stat*>(small.page(1));
  small.Evict();
  Say("stat: %s", Outcome(stat(reinterpret_cast<char*>(small.at), status)).c_str());
  Say("size: %ld", static_cast<long>(status->st_size));
  small.Evict();
  Say("getcwd: %s", getcwd(reinterpret_cast<char*>(small.page(2)), kPage) != nullptr ? "0" : "failed");
  Say("getrandom: %zd", getrandom(small.page(3), kPage, 0));
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLOUT;
  (void)epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event);
  small.Evict();
  Say("epoll_wait: %d", epoll_wait(epoll, reinterpret_cast<epoll_event*>(small.page(4)), 8, 0));
  auto* word = reinterpret_cast<volatile uint64_t*>(small.page(5));
  Expect(word[0] == 0x5555555555555555, "a page that nothing was read into");
}

void PipesAndSplice() {
  const Memory memory = MapEvicted(kPages);
  int ends[2];
  Expect(pipe(ends) == 0, "pipe: %s", strerror(errno));
  const Memory target = Map(8);
  // vmsplice: the pipe holds the pages themselves.
  iovec piece{memory.at, 8 * kPage};
  Say("vmsplice: %zd", vmsplice(ends[1], &piece, 1, 0));
  memory.Evict();
  Say("read: %zd", read(ends[0], target.at, 8 * kPage));
  memory.Part(0, 8).At(target.at).Check(1, "vmspliced, evicted, and read");
  memory.Check(1, "vmspliced and evicted");
  // What is written between vmsplice and the read is in the pipe natively. Here the page was replaced by a
  // copy.
  Expect(vmsplice(ends[1], &piece, 1, 0) == 8 * static_cast<ssize_t>(kPage), "vmsplice: %s", strerror(errno));
  memory.Evict();
  memory.Part(0, 8).Fill(2);
  Expect(read(ends[0], target.at, 8 * kPage) == 8 * static_cast<ssize_t>(kPage), "read: %s", strerror(errno));
  const bool sees = *reinterpret_cast<volatile uint64_t*>(target.at) == PatternWord(2, 0, 0);
  Known("vmsplice_then_write", "%s", sees ? "new" : "old");
  memory.Part(0, 8).At(target.at).Check(sees ? 2 : 1, "in the pipe");
  // From a file to the pipe and into evicted memory.
  const int fd = OpenFile(0);
  Expect(write(fd, memory.page(8), 8 * kPage) == 8 * static_cast<ssize_t>(kPage), "write: %s",
         strerror(errno));
  off_t from = 0;
  Say("sendfile: %zd", sendfile(ends[1], fd, &from, 8 * kPage));
  target.Fill(9);
  target.Evict();
  Say("read: %zd", read(ends[0], target.at, 8 * kPage));
  memory.Part(8, 8).At(target.at).Check(1, "sent from a file");
}

// A device, where the disk has one: pages are pinned while it reads and writes them.
void Direct() {
  const int fd = OpenFile(O_DIRECT);
  const Memory memory = MapEvicted(256);
  Expect(pwrite(fd, memory.at, memory.bytes(), 0) == static_cast<ssize_t>(memory.bytes()),
         "O_DIRECT write: %s", strerror(errno));
  const Memory target = Map(256);
  std::atomic<bool> stop{false};
  std::thread evictor([&] {
    while (!stop && !IsNative()) (void)Ask("evict %d", getpid());
  });
  for (int round = 0; round < 100; ++round) {
    target.Fill(9);
    Expect(pread(fd, target.at, target.bytes(), 0) == static_cast<ssize_t>(target.bytes()),
           "O_DIRECT read: %s", strerror(errno));
    memory.At(target.at).Check(1, "read by a device");
  }
  stop = true;
  evictor.join();
  target.Evict();
  memory.At(target.at).Check(1, "read by a device, then evicted");
}

void PosixAio() {
  aio_context_t context = 0;
  if (syscall(SYS_io_setup, 8, &context) != 0) Skip("aio: %s", strerror(errno));
  const int fd = OpenFile(O_DIRECT);
  const Memory memory = MapEvicted(kPages);
  Expect(pwrite(fd, memory.at, memory.bytes(), 0) == static_cast<ssize_t>(memory.bytes()), "write: %s",
         strerror(errno));
  const Memory target = Map(kPages);
  target.Fill(9);
  const Memory control = Map(2);
  auto* block = new (control.at) iocb{};
  block->aio_fildes = static_cast<uint32_t>(fd);
  block->aio_lio_opcode = IOCB_CMD_PREAD;
  block->aio_buf = reinterpret_cast<uintptr_t>(target.at);
  block->aio_nbytes = target.bytes();
  auto** list = new (control.page(1)) iocb* {block};
  target.Evict();
  control.Evict();
  Say("io_submit: %ld", syscall(SYS_io_submit, context, 1, list));
  io_event event{};
  Say("io_getevents: %ld, %lld", syscall(SYS_io_getevents, context, 1, 1, &event, nullptr), event.res);
  memory.At(target.at).Check(1, "read by aio");
}

// Through io_uring: by its worker threads into missing memory, into buffers that it has pinned, and by a
// kernel thread.
void IoUring(unsigned flags, bool fixed) {
  io_uring ring;
  const int made = io_uring_queue_init(8, &ring, flags);
  if (made != 0) Skip("io_uring: %s", strerror(-made));
  const int fd = OpenFile(0);
  const Memory memory = MapEvicted(kPages);
  Expect(write(fd, memory.at, memory.bytes()) == static_cast<ssize_t>(memory.bytes()), "write: %s",
         strerror(errno));
  const Memory target = Map(kPages);
  target.Fill(9);
  target.Evict();
  const iovec buffer{target.at, target.bytes()};
  if (fixed) {
    const int registered = io_uring_register_buffers(&ring, &buffer, 1);
    if (registered != 0) Skip("io_uring's buffers: %s", strerror(-registered));
    target.Stays("pinned");
    target.Check(9, "in a pinned buffer");
  }
  for (int round = 0; round < 3; ++round) {
    io_uring_sqe* entry = io_uring_get_sqe(&ring);
    if (fixed) {
      io_uring_prep_read_fixed(entry, fd, target.at, static_cast<unsigned>(target.bytes()), 0, 0);
    } else {
      io_uring_prep_read(entry, fd, target.at, static_cast<unsigned>(target.bytes()), 0);
    }
    if (round == 1) entry->flags |= IOSQE_ASYNC;  // by a worker, at once
    Expect(io_uring_submit(&ring) == 1, "io_uring_submit");
    io_uring_cqe* done = nullptr;
    Expect(io_uring_wait_cqe(&ring, &done) == 0, "io_uring_wait_cqe");
    Say("read: %d", done->res);
    io_uring_cqe_seen(&ring, done);
    memory.At(target.at).Check(1, "read by io_uring");
    target.Fill(9);
    if (!fixed) target.Evict();
  }
  if (fixed) {
    // What the kernel writes to the pinned pages is what the program sees, whatever was tried in between.
    Expect(io_uring_unregister_buffers(&ring) == 0, "io_uring_unregister_buffers");
    target.Evict();
    target.Check(9, "released and evicted");
  }
  io_uring_queue_exit(&ring);
}
void IoUringPlain() { IoUring(0, false); }
void IoUringFixed() { IoUring(0, true); }
void IoUringPolled() { IoUring(IORING_SETUP_SQPOLL, false); }

// TCP with MSG_ZEROCOPY: the network holds the pages until they are acknowledged.
void ZeroCopy() {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(listener, 1) != 0)
    Skip("no loopback network: %s", strerror(errno));
  (void)getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
  const int sender = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(sender, reinterpret_cast<sockaddr*>(&address), length) != 0)
    Skip("no loopback network: %s", strerror(errno));
  const int receiver = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  const int on = 1;
  if (setsockopt(sender, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) != 0)
    Skip("no MSG_ZEROCOPY: %s", strerror(errno));
  const Memory memory = MapEvicted(8);
  const Memory target = Map(8);
  target.Fill(9);
  for (int round = 0; round < 5; ++round) {
    memory.Evict();
    ssize_t sent = 0;
    while (sent < static_cast<ssize_t>(memory.bytes())) {
      const ssize_t now =
          send(sender, memory.at + sent, memory.bytes() - static_cast<size_t>(sent), MSG_ZEROCOPY);
      Expect(now > 0, "send: %s", strerror(errno));
      sent += now;
    }
    memory.Evict();  // while it is on its way
    target.Evict();
    ssize_t got = 0;
    while (got < sent) {
      const ssize_t now = recv(receiver, target.at + got, static_cast<size_t>(sent - got), 0);
      Expect(now > 0, "recv: %s", strerror(errno));
      got += now;
    }
    memory.At(target.at).Check(1, "received");
    memory.Check(1, "sent");
    target.Fill(9);
  }
}

// Another process looks: process_vm_readv waits for the page as the program would; /proc/PID/mem does not.
void SeenFromOutside() {
  const Memory memory = MapEvicted(8);
  const auto shown = [&](const char* how, size_t page) {
    return Ask("%s %d %lu %zu", how, getpid(), reinterpret_cast<uintptr_t>(memory.page(page)), size_t{16});
  };
  uint64_t words[2] = {PatternWord(1, 0, 0), PatternWord(1, 0, 1)};
  char expected[64] = {};
  const auto expect_page = [&](uint64_t page) {
    words[0] = PatternWord(1, page, 0);
    words[1] = PatternWord(1, page, 1);
    unsigned char bytes[sizeof(words)] = {};
    memcpy(bytes, words, sizeof(words));
    for (size_t i = 0; i < sizeof(words); ++i) (void)snprintf(expected + 2 * i, 3, "%02x", bytes[i]);
    return std::string(expected);
  };
  Say("process_vm_readv: %s",
      shown("vm_readv", 0) == expect_page(0) ? "right" : shown("vm_readv", 0).c_str());
  const std::string mem = shown("mem", 1);
  Known("proc_mem_evicted", "%s", mem == expect_page(1) ? "right" : mem.c_str());
  // Written from outside, evicted.
  Say("process_vm_writev: %s",
      Ask("vm_writev %d %lu 0102030405060708", getpid(), reinterpret_cast<uintptr_t>(memory.page(2)))
          .c_str());
  Expect(*reinterpret_cast<volatile uint64_t*>(memory.page(2)) == 0x0807060504030201,
         "what was written from outside");
  memory.page(2)[0] = std::byte{0};
  memory.Part(2, 1).Fill(1);
  memory.Evict();
  if (!IsNative()) (void)Ask("restore %d", getpid());
  Say("/proc/PID/mem after restore: %s",
      shown("mem", 3) == expect_page(3) ? "right" : shown("mem", 3).c_str());
  memory.Check(1, "looked at from outside");
}

// A debugger: PTRACE_PEEKDATA and POKEDATA. What is not in memory it cannot see, and is told so.
void Debugged() {
  const Memory memory = MapEvicted(8);
  int ends[2];
  Expect(pipe(ends) == 0, "pipe: %s", strerror(errno));
  const pid_t self = getpid();
  const pid_t debugger = fork();
  if (debugger == 0) {
    if (ptrace(PTRACE_ATTACH, self, 0, 0) != 0) Skip("ptrace: %s", strerror(errno));
    int status = 0;
    (void)waitpid(self, &status, __WALL);
    const auto peek = [&](size_t page) {
      errno = 0;
      const long word = ptrace(PTRACE_PEEKDATA, self, memory.page(page), 0);
      if (errno != 0) return std::string(strerrorname_np(errno));
      return std::string(static_cast<uint64_t>(word) == PatternWord(1, page, 0) ? "right" : "wrong");
    };
    Known("peek_evicted", "%s", peek(0).c_str());
    Known("poke_evicted", "%s", Outcome(ptrace(PTRACE_POKEDATA, self, memory.page(1), 42)).c_str());
    if (!IsNative()) (void)Ask("restore %d", self);
    Say("peek after restore: %s", peek(2).c_str());
    Say("poke after restore: %s", Outcome(ptrace(PTRACE_POKEDATA, self, memory.page(3), 42)).c_str());
    (void)ptrace(PTRACE_DETACH, self, 0, 0);
    (void)!write(ends[1], "x", 1);
    _exit(0);
  }
  char word = 0;
  while (read(ends[0], &word, 1) < 0) {
  }
  AwaitChild(debugger);
  Expect(*reinterpret_cast<volatile uint64_t*>(memory.page(3)) == 42, "what the debugger wrote");
  memory.Evict();
  Expect(*reinterpret_cast<volatile uint64_t*>(memory.page(3)) == 42, "what the debugger wrote, evicted");
  memory.Part(4, 4).Check(1, "beside what the debugger wrote");
}

}  // namespace

std::vector<Corner> InputOutputCorners() {
  return {{"system_calls", SystemCalls},
          {"pipes_and_splice", PipesAndSplice},
          {"direct_io", Direct},
          {"aio", PosixAio},
          {"io_uring", IoUringPlain},
          {"io_uring_fixed", IoUringFixed},
          {"io_uring_sqpoll", IoUringPolled},
          {"zerocopy", ZeroCopy},
          {"seen_from_outside", SeenFromOutside},
          {"debugged", Debugged}};
}

}  // namespace uzswap::corners
