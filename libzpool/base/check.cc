#include "libzpool/base/check.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

namespace zp {
namespace {

// Appends what fits; a truncated message is better than none.
char* Append(char* at, char* end, const char* text) {
  const size_t room = static_cast<size_t>(end - at);
  const size_t length = std::min(std::strlen(text), room);
  std::memcpy(at, text, length);  // NOLINT(bugprone-not-null-terminated-result): the end is the caller's
  return at + length;
}

}  // namespace

void CheckFailed(const char* file, int line, const char* expr, const char* msg) {
  char buffer[512];
  char* const end = buffer + sizeof(buffer) - 1;
  char* at = Append(buffer, end, file);
  at = Append(at, end, ":");
  at = std::to_chars(at, end, line).ptr;
  at = Append(at, end, ": check failed: ");
  at = Append(at, end, expr);
  at = Append(at, end, ": ");
  at = Append(at, end, msg);
  *at++ = '\n';
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, buffer, static_cast<size_t>(at - buffer));
  std::abort();
}

}  // namespace zp
