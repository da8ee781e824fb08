// What the kernel and threads keep in memory: stacks, locks, lists, at the moments when it matters.
#include <linux/futex.h>
#include <linux/rseq.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#include "tests/e2e/corners/corner.h"

namespace uzswap::corners {
namespace {

constexpr size_t kPages = 64;

long Futex(void* word, int operation, uint32_t value, uintptr_t timeout_or_count = 0, void* second = nullptr,
           uint32_t third = 0) {
  return syscall(SYS_futex, word, operation, value, timeout_or_count, second, third);
}

// Until thread `tid` sleeps in a system call.
void AwaitAsleep(pid_t tid) {
  char path[64];
  (void)snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
  for (;;) {
    FILE* file = fopen(path, "re");
    if (file == nullptr) return;
    int number = 0;
    char name[64], state = 0;
    const int fields = fscanf(file, "%d (%63[^)]) %c", &number, name, &state);
    (void)fclose(file);
    if (fields == 3 && state == 'S') return;
    std::this_thread::yield();
  }
}

// Where a thread stands until it is let go on, touching nothing meanwhile.
class Door {
 public:
  Door() { Expect(pipe(ends_) == 0, "pipe: %s", strerror(errno)); }
  ~Door() {
    (void)close(ends_[0]);
    (void)close(ends_[1]);
  }
  void Wait() {
    char byte = 0;
    while (read(ends_[0], &byte, 1) < 0) {
    }
  }
  void Open() { (void)!write(ends_[1], "x", 1); }

 private:
  int ends_[2];
};

// Waiters sleep on words that are evicted under them, and on words that were evicted before.
void Futexes() {
  const Memory memory = Map(4);
  memset(memory.at, 0x55, memory.bytes());
  for (const int kind : {0, FUTEX_PRIVATE_FLAG}) {
    auto* word = new (memory.at) std::atomic<uint32_t>(1);
    auto* other = new (memory.page(2)) std::atomic<uint32_t>(1);
    memory.Evict();
    std::atomic<pid_t> tid{0};
    long returned = -1;
    std::thread waiter([&] {
      tid = static_cast<pid_t>(syscall(SYS_gettid));
      returned = Futex(word, FUTEX_WAIT | kind, 1);
    });
    while (tid == 0) std::this_thread::yield();
    AwaitAsleep(tid);
    memory.Evict();
    Say("woken: %ld", Futex(word, FUTEX_WAKE | kind, 1));
    waiter.join();
    Say("waited: %ld", returned);
    // Moved to another futex, both evicted.
    tid = 0;
    std::thread moved([&] {
      tid = static_cast<pid_t>(syscall(SYS_gettid));
      returned = Futex(word, FUTEX_WAIT | kind, 1);
    });
    while (tid == 0) std::this_thread::yield();
    AwaitAsleep(tid);
    memory.Evict();
    Say("requeued: %ld", Futex(word, FUTEX_CMP_REQUEUE | kind, 0, 1, other, 1));
    memory.Evict();
    Say("woken at the other: %ld", Futex(other, FUTEX_WAKE | kind, 1));
    moved.join();
    // Where the kernel itself writes the word it does not wait for a missing page: *other = 7, and wakes if
    // it was 1.
    memory.Evict();
    const long woken =
        Futex(word, FUTEX_WAKE_OP | kind, 1, 1, other, FUTEX_OP(FUTEX_OP_SET, 7, FUTEX_OP_CMP_EQ, 1));
    Known("wake_op_evicted", "%s", Outcome(woken).c_str());
    Expect(other->load() == (woken < 0 ? 1 : 7), "wake_op wrote %u", other->load());
    // Priority inheritance: the owner's number in the word is the kernel's.
    word->store(0);
    memory.Evict();
    const long locked = Futex(word, FUTEX_LOCK_PI | kind, 0);
    Known("lock_pi_evicted", "%s", Outcome(locked).c_str());
    if (locked != 0) {
      Expect(word->load() == 0, "lock_pi wrote %u", word->load());
      Say("lock_pi: %ld", Futex(word, FUTEX_LOCK_PI | kind, 0));
    } else {
      Say("lock_pi: %ld", locked);
    }
    memory.Evict();
    Say("unlock_pi: %ld", Futex(word, FUTEX_UNLOCK_PI | kind, 0));
    Expect(word->load() == 0, "unlock_pi left %u", word->load());
    other->store(0);
  }
}

// The same by the C library's locks, in a program under its limit.
void Locks() {
  struct State {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
    pthread_mutex_t inheriting;
    pthread_barrier_t barrier;
    sem_t semaphore;
    uint64_t turn = 0, sum = 0, inherited = 0;
  };
  constexpr int kThreads = 4, kTurns = 200;
  const Memory memory = Map(8);
  memset(memory.at, 0x55, memory.bytes());
  auto* state = new (memory.page(2)) State;
  (void)pthread_barrier_init(&state->barrier, nullptr, kThreads);
  (void)sem_init(&state->semaphore, 0, 1);
  pthread_mutexattr_t attributes;
  (void)pthread_mutexattr_init(&attributes);
  (void)pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  (void)pthread_mutex_init(&state->inheriting, &attributes);
  std::vector<std::thread> threads;
  for (uint64_t number = 0; number < kThreads; ++number) {
    threads.emplace_back([state, number] {
      for (int turn = 0; turn < kTurns; ++turn) {
        (void)pthread_barrier_wait(&state->barrier);
        if (number == 0 && turn % 50 == 0 && !IsNative()) (void)Ask("evict %d", getpid());
        (void)pthread_mutex_lock(&state->mutex);
        while (state->turn % kThreads != number) (void)pthread_cond_wait(&state->condition, &state->mutex);
        ++state->turn;
        (void)pthread_cond_broadcast(&state->condition);
        (void)pthread_mutex_unlock(&state->mutex);
        (void)sem_wait(&state->semaphore);
        (void)pthread_rwlock_wrlock(&state->rwlock);
        state->sum += number;
        (void)pthread_rwlock_unlock(&state->rwlock);
        (void)sem_post(&state->semaphore);
        (void)pthread_mutex_lock(&state->inheriting);
        ++state->inherited;
        (void)pthread_mutex_unlock(&state->inheriting);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  Say("turns %lu, sum %lu, %lu", state->turn, state->sum, state->inherited);
}

// A signal's frame goes to a stack that is evicted; the handler's own words, and those that it interrupted,
// are right.
Memory signal_stack;
volatile sig_atomic_t handled = 0;
void OnSignal(int) {
  volatile uint64_t words[512];
  for (size_t i = 0; i < 512; ++i) words[i] = PatternWord(6, 0, i);
  signal_stack.Part(0, 4).Check(1, "at the far end of the signal stack, in the handler");
  for (size_t i = 0; i < 512; ++i) {
    if (words[i] != PatternWord(6, 0, i)) Fail("word %zu on the signal stack has changed", i);
  }
  handled = handled + 1;
}

void SignalStack() {
  signal_stack = Map(kPages);
  signal_stack.Fill(1);
  stack_t stack{};
  stack.ss_sp = signal_stack.at;
  stack.ss_size = signal_stack.bytes();
  Expect(sigaltstack(&stack, nullptr) == 0, "sigaltstack: %s", strerror(errno));
  struct sigaction action {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_ONSTACK;
  (void)sigaction(SIGUSR1, &action, nullptr);
  for (int round = 1; round <= 5; ++round) {
    signal_stack.Evict();
    (void)raise(SIGUSR1);
    Expect(handled == round, "the handler ran %d times, not %d", static_cast<int>(handled), round);
  }
  // One that interrupts a system call into evicted memory.
  const Memory memory = MapEvicted(4);
  int ends[2];
  Expect(pipe(ends) == 0, "pipe: %s", strerror(errno));
  std::atomic<long> got{0};
  std::atomic<pid_t> tid{0};
  std::thread reader([&] {
    tid = static_cast<pid_t>(syscall(SYS_gettid));
    got = read(ends[0], memory.at, 8) < 0 ? -errno : 8;
  });
  while (tid == 0) std::this_thread::yield();
  AwaitAsleep(tid);
  (void)syscall(SYS_tgkill, getpid(), tid.load(), SIGUSR1);
  reader.join();
  Say("an interrupted read: %s", got < 0 ? strerrorname_np(static_cast<int>(-got)) : "done");
  memory.Check(1, "after an interrupted read");
}

// A stack that is heap memory, switched to while it is evicted.
ucontext_t main_context, coroutine_context;
void Coroutine() {
  volatile uint64_t words[1024];
  for (int round = 0; round < 4; ++round) {
    for (size_t i = 0; i < 1024; ++i) words[i] = PatternWord(static_cast<uint64_t>(round), 1, i);
    (void)swapcontext(&coroutine_context, &main_context);
    for (size_t i = 0; i < 1024; ++i) {
      if (words[i] != PatternWord(static_cast<uint64_t>(round), 1, i))
        Fail("word %zu of a coroutine's stack has changed", i);
    }
  }
}

void CoroutineStack() {
  const Memory stack = Map(kPages);
  stack.Fill(1);
  (void)getcontext(&coroutine_context);
  coroutine_context.uc_stack.ss_sp = stack.at;
  coroutine_context.uc_stack.ss_size = stack.bytes();
  coroutine_context.uc_link = &main_context;
  makecontext(&coroutine_context, Coroutine, 0);
  for (int round = 0; round < 5; ++round) {
    stack.Evict();
    (void)swapcontext(&main_context, &coroutine_context);
  }
  stack.Part(0, 32).Check(1, "the far end of a coroutine's stack");
}

// The kernel writes the CPU's number to a thread's rseq area whenever it goes on. Needs
// GLIBC_TUNABLES=glibc.pthread.rseq=0: else the C library has its own, near the thread's descriptor.
void RestartableSequences() {
  const Memory memory = Map(4);
  memory.Fill(1);
  struct Area {
    uint32_t cpu_id_start, cpu_id;
    uint64_t rseq_cs;
    uint32_t flags, node_id, mm_cid, padding;
  };
  auto* area = reinterpret_cast<Area*>(memory.page(1));
  memset(area, 0, 64);
  area->cpu_id = RSEQ_CPU_ID_UNINITIALIZED;
  if (syscall(SYS_rseq, area, 32, 0, 0x53053053) != 0) Skip("rseq: %s", strerror(errno));
  for (int round = 0; round < 4; ++round) {
    memory.Part(0, 1).Evict();
    memory.Part(2, 2).Evict();
    if (!IsNative()) (void)Ask("evict %d", getpid());  // it is back as soon as this thread goes on
    // The evicted word is missing now; the next time that the kernel lets this thread go on, it must write
    // there.
    (void)sched_yield();
    const uint32_t cpu = *reinterpret_cast<volatile uint32_t*>(&area->cpu_id);
    Expect(cpu < 4096, "the kernel's word is %u", cpu);
  }
  memory.Part(0, 1).Check(1, "beside the rseq area");
  memory.Part(2, 2).Check(1, "behind the rseq area");
  Expect(syscall(SYS_rseq, area, 32, 1 /* unregister */, 0x53053053) == 0, "rseq: %s", strerror(errno));
  Say("restartable sequences went on");
}

// Mutexes that the kernel itself writes stay while they are: with priority inheritance, where a missing page
// is an error (see Futexes).
void InheritingMutex() {
  const Memory memory = Map(8);
  memory.Fill(1);
  auto* mutex = reinterpret_cast<pthread_mutex_t*>(memory.page(4) - 16);  // across two pages
  pthread_mutexattr_t attributes;
  (void)pthread_mutexattr_init(&attributes);
  (void)pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  (void)pthread_mutex_init(mutex, &attributes);
  for (int round = 0; round < 2; ++round) {
    (void)pthread_mutex_lock(mutex);
    memory.Part(0, 3).Evict();
    if (!IsNative()) Expect(memory.Part(3, 2).Present() == 2, "pages of a mutex were evicted");
    std::thread waiter([&] {
      (void)pthread_mutex_lock(mutex);
      (void)pthread_mutex_unlock(mutex);
    });
    if (!IsNative()) (void)Ask("evict %d", getpid());
    (void)pthread_mutex_unlock(mutex);
    waiter.join();
    // In a child it is another mutex, and that is noted for the parent's memory alone.
    InChild([&] {
      pthread_mutex_t own;
      (void)pthread_mutex_init(&own, &attributes);
      Expect(pthread_mutex_lock(&own) == 0 && pthread_mutex_unlock(&own) == 0, "a mutex in a child");
      (void)pthread_mutex_destroy(&own);
    });
  }
  (void)pthread_mutex_destroy(mutex);
  memory.Evict();
  memory.Part(0, 3).Check(1, "beside a mutex");
}

// The owner of a robust mutex ends, and whoever locks next is told. The kernel marks the mutex at the owner's
// exit, where it waits for no missing page.
void RobustMutex() {
  constexpr size_t kMutexes = 3;
  const Memory memory = Map(8);
  pthread_mutexattr_t attributes;
  (void)pthread_mutexattr_init(&attributes);
  (void)pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  for (int round = 0; round < 3; ++round) {
    memory.Fill(1);
    pthread_mutex_t* mutexes[kMutexes];
    for (size_t i = 0; i < kMutexes; ++i) {
      mutexes[i] = reinterpret_cast<pthread_mutex_t*>(memory.page(2 * i + 1) + 512);
      (void)pthread_mutex_init(mutexes[i], &attributes);
    }
    Door held, end;
    std::thread owner([&] {
      for (pthread_mutex_t* mutex : mutexes) (void)pthread_mutex_lock(mutex);
      held.Open();
      end.Wait();
    });
    held.Wait();
    if (!IsNative()) {
      // What is beside goes, what is held stays.
      memory.Part(0, 1).Evict();
      for (size_t i = 0; i < kMutexes; ++i)
        Expect(memory.Part(2 * i + 1, 1).Present() == 1, "the page of a held robust mutex was evicted");
    }
    end.Open();
    owner.join();
    for (pthread_mutex_t* mutex : mutexes) {
      timespec until{};
      (void)clock_gettime(CLOCK_REALTIME, &until);
      until.tv_sec += 20;
      const int error = pthread_mutex_timedlock(mutex, &until);
      Expect(error == EOWNERDEAD, "locking after the owner's end: %s", strerror(error));
      (void)pthread_mutex_consistent(mutex);
      (void)pthread_mutex_unlock(mutex);
      (void)pthread_mutex_destroy(mutex);
    }
    memory.Part(0, 1).Check(1, "beside the mutexes");
    memory.Evict();  // nobody holds them: they may go
  }
}

// Threads whose stacks are a program's own memory, that live long enough to have been seen.
void OwnThreadStack() {
  const Memory stack = Map(64);
  stack.Fill(1);
  const Memory memory = Map(kPages);
  memory.Fill(1);
  pthread_attr_t attributes;
  (void)pthread_attr_init(&attributes);
  (void)pthread_attr_setstack(&attributes, stack.at, stack.bytes());
  struct Job {
    const Memory& memory;
    Door begun, end;
  } job{memory, {}, {}};
  pthread_t thread{};
  const int error = pthread_create(
      &thread, &attributes,
      [](void* argument) -> void* {
        auto& mine = *static_cast<Job*>(argument);
        volatile uint64_t words[512];
        for (size_t i = 0; i < 512; ++i) words[i] = PatternWord(4, 0, i);
        mine.begun.Open();
        mine.end.Wait();
        for (size_t i = 0; i < 512; ++i) {
          if (words[i] != PatternWord(4, 0, i)) Fail("word %zu of a thread's stack has changed", i);
        }
        mine.memory.Check(1, "in a thread on a program's own stack");
        return nullptr;
      },
      &job);
  Expect(error == 0, "pthread_create: %s", strerror(error));
  job.begun.Wait();
  if (!IsNative()) usleep(150'000);  // the list of threads is at most 100 ms old
  memory.Evict();
  if (!IsNative()) (void)Ask("evict %d", getpid());
  job.end.Open();
  Expect(pthread_join(thread, nullptr) == 0, "pthread_join");
}

// Threads end in every way while their faults are under way: return, exit, cancellation.
void ThreadsEndWhileFaulting() {
  const Memory memory = Map(512);
  memory.Fill(1);
  struct AtExit {
    const Memory* memory = nullptr;
    ~AtExit() {
      if (memory != nullptr) memory->Part(500, 8).Check(1, "in a destructor at a thread's end");
    }
  };
  static thread_local AtExit at_exit;
  int ends[2];
  Expect(pipe(ends) == 0, "pipe: %s", strerror(errno));
  for (int round = 0; round < 6; ++round) {
    memory.Evict();
    std::vector<pthread_t> threads(12);
    struct Job {
      const Memory* memory;
      size_t number;
      int input;
    };
    std::vector<std::unique_ptr<Job>> jobs;
    for (size_t number = 0; number < threads.size(); ++number) {
      jobs.push_back(std::make_unique<Job>(Job{&memory, number, ends[0]}));
      const int error = pthread_create(
          &threads[number], nullptr,
          [](void* argument) -> void* {
            const auto& mine = *static_cast<Job*>(argument);
            at_exit.memory = mine.memory;
            mine.memory->Part(mine.number * 40, 40).Check(1, "in a thread that ends");
            switch (mine.number % 3) {
              case 0:
                return nullptr;
              case 1:
                pthread_exit(nullptr);
              default:  // cancelled where it waits for input that goes to evicted memory
                (void)!read(mine.input, mine.memory->page(499), 8);
                return nullptr;
            }
          },
          jobs.back().get());
      Expect(error == 0, "pthread_create: %s", strerror(error));
    }
    for (size_t number = 2; number < threads.size(); number += 3) (void)pthread_cancel(threads[number]);
    for (const pthread_t thread : threads) (void)pthread_join(thread, nullptr);
    memory.Check(1, "after the threads ended");
  }
}

// The process ends while its threads wait for pages.
void ExitWhileFaulting() {
  const Memory memory = MapEvicted(1024);
  const Memory mine = memory.Part(0, 4);
  for (int round = 0; round < 8; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      for (size_t number = 0; number < 8; ++number) {
        std::thread([&memory, number] {
          memory.Part(number * 100, 100).Check(1, "in a child that ends");
        }).detach();
      }
      mine.Check(1, "in a child that ends");
      _exit(0);
    }
    AwaitChild(child);
  }
  for (size_t number = 0; number < 8; ++number) {
    std::thread([&memory, number] {
      memory.Part(number * 100, 100).Check(1, "in a process that ends");
    }).detach();
  }
  mine.Check(1, "in a process that ends");
  Say("ends");
  _exit(0);
}

}  // namespace

std::vector<Corner> ThreadCorners() {
  return {{"futexes", Futexes},
          {"locks", Locks},
          {"signal_stack", SignalStack},
          {"coroutine_stack", CoroutineStack},
          {"rseq", RestartableSequences},
          {"inheriting_mutex", InheritingMutex},
          {"robust_mutex", RobustMutex},
          {"own_thread_stack", OwnThreadStack},
          {"threads_end_while_faulting", ThreadsEndWhileFaulting},
          {"exit_while_faulting", ExitWhileFaulting}};
}

}  // namespace uzswap::corners
