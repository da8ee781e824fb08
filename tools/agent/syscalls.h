// System calls without the C library.
//
// The agent's thread shares the thread pointer of the thread that created it, so it must not touch errno or
// any other thread-local, and the application may be inside any of libc's locks. These wrappers return
// -errno.
//
// Threads: stateless. x86-64 only; another architecture needs its own Syscall6 and SpawnThread.
#pragma once

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

#if !defined(__x86_64__)
#error "the agent's system call layer is written for x86-64"
#endif

namespace uzswap::agent {

inline long Syscall6(long number, long a, long b, long c, long d, long e, long f) {
  long ret;
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  asm volatile("syscall"
               : "=a"(ret)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return ret;
}

template <typename A = long, typename B = long, typename C = long, typename D = long, typename E = long,
          typename F = long>
inline long Sys(long number, A a = 0, B b = 0, C c = 0, D d = 0, E e = 0, F f = 0) {
  return Syscall6(number, (long)a, (long)b, (long)c, (long)d, (long)e, (long)f);
}

inline bool IsError(long ret) { return ret < 0 && ret >= -4095; }

// Starts `entry(argument)` as a thread of this process on the stack that ends at `stack_top` (16-byte
// aligned). Returns the thread id or -errno. `entry` must not return. The C library does not know the thread:
// it stays outside pthread's lists, so a single-threaded program keeps its single-threaded fast paths.
inline long SpawnThread(unsigned long flags, void* stack_top, void (*entry)(void*), void* argument) {
  void** sp = static_cast<void**>(stack_top);
  *--sp = argument;
  *--sp = reinterpret_cast<void*>(entry);
  long ret;
  register long r10 asm("r10") = 0;
  register long r8 asm("r8") = 0;
  asm volatile(
      "syscall\n\t"
      "test %%rax, %%rax\n\t"
      "jnz 1f\n\t"
      "xor %%ebp, %%ebp\n\t"
      "pop %%rax\n\t"
      "pop %%rdi\n\t"
      "call *%%rax\n\t"
      "ud2\n"
      "1:"
      : "=a"(ret)
      : "a"((long)SYS_clone), "D"(flags), "S"(sp), "d"(0L), "r"(r10), "r"(r8)
      : "rcx", "r11", "memory");
  return ret;
}

}  // namespace uzswap::agent
