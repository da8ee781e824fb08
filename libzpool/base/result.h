// Failure as a value: Result<T> holds a T or an Error. Nothing here allocates or throws.
#pragma once

#include <cerrno>
#include <optional>
#include <type_traits>
#include <utility>

#include "libzpool/base/check.h"

namespace zp {

// What a caller may want to tell apart. The errno behind it, if any, is in Error::sys_errno.
enum class Errc : unsigned char {
  kNoMemory,  // a capacity, a reservation or the kernel's memory is exhausted; retry when something was freed
  kSystem,    // a system call failed in a way that is no outcome; see sys_errno
  kInvalid,   // an argument or a message is malformed
  kCorrupt,   // stored state contradicts itself
  kNotFound,  // no such page, client, file, process
  kExists,    // it is already there
  kUnsupported,  // this kernel or this build cannot
  kPermission,   // not allowed
  kBusy,         // somebody else has it; not retried here
  kAgain,        // transient; the caller retries from the start
  kGone,         // the other side (process, mapping, connection) no longer exists
};

struct Error {
  Errc code = Errc::kSystem;
  int sys_errno = 0;    // 0 when no system call is to blame
  const char* op = "";  // what failed; a string literal, never freed
};
static_assert(std::is_trivially_copyable_v<Error>);

// A stable lower-case word for messages and metrics, e.g. "no memory".
const char* ErrcName(Errc code);

// Translates the current errno. Call it right after the system call `op` (a string literal).
Error ErrnoError(const char* op);

// Holds a T or an Error. T may be move-only. Asking for the wrong one of the two is a programming error
// (ZP_CHECK).
template <typename T>
class [[nodiscard]] Result {
 public:
  using value_type = T;

  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit, so that `return value;` works
  Result(Error error) : error_(error) {}         // NOLINT: implicit, so that `return error;` works

  bool ok() const { return value_.has_value(); }
  explicit operator bool() const { return ok(); }

  T& value() & {
    ZP_CHECK(ok(), "value of a failed Result");
    return *value_;
  }
  const T& value() const& {
    ZP_CHECK(ok(), "value of a failed Result");
    return *value_;
  }
  T&& value() && {
    ZP_CHECK(ok(), "value of a failed Result");
    return std::move(*value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const {
    ZP_CHECK(!ok(), "error of a successful Result");
    return error_;
  }

  // Moves the value out; used by ZP_TRY.
  T Release() && { return std::move(*this).value(); }

 private:
  std::optional<T> value_;
  Error error_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  using value_type = void;

  Result() = default;
  Result(Error error) : error_(error) {}  // NOLINT: implicit, so that `return error;` works

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  void value() const { ZP_CHECK(ok(), "value of a failed Status"); }
  const Error& error() const {
    ZP_CHECK(!ok(), "error of a successful Status");
    return *error_;
  }
  void Release() && { value(); }

 private:
  std::optional<Error> error_;
};

using Status = Result<void>;

inline Status OkStatus() { return {}; }

}  // namespace zp

// Evaluates `expr`, a Result: on failure the enclosing function returns its error, else the expression has
// its value. Not to be nested within one expression.
#define ZP_TRY(expr)                      \
  __extension__({                         \
    auto zp_try_result = (expr);          \
    if (!zp_try_result.ok()) [[unlikely]] \
      return zp_try_result.error();       \
    std::move(zp_try_result).Release();   \
  })
