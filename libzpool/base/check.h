// Assertions about our own program: a failed one is a bug, never an outcome.
#pragma once

namespace zp {

// Writes "file:line: check failed: expr: msg" to stderr with one write(2) and aborts. Allocates nothing and
// takes no lock, so it may be called anywhere. `msg` and the others must be string literals.
[[noreturn]] void CheckFailed(const char* file, int line, const char* expr, const char* msg);

}  // namespace zp

// Reserved for states in which going on would deliver wrong bytes. Always compiled in.
#define ZP_CHECK(cond, msg)                              \
  do {                                                   \
    if (!(cond)) [[unlikely]]                            \
      ::zp::CheckFailed(__FILE__, __LINE__, #cond, msg); \
  } while (0)

// The same where it costs too much for a release build; compiled out with NDEBUG (the condition is then not
// evaluated).
#ifdef NDEBUG
#define ZP_DCHECK(cond, msg)          \
  do {                                \
    if (false && (cond)) (void)(msg); \
  } while (0)
#else
#define ZP_DCHECK(cond, msg) ZP_CHECK(cond, msg)
#endif
