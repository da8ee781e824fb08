// OrMessage<T>: a T, or a text for the person at the terminal.
//
// Idea: zp::Error never allocates and so cannot name a path, a pid or a fix. At the CLI's edge the failure
// *is* the text that will be printed, so it is carried as such. A message is one or more lines, no final
// newline, and says what to do about it.
#pragma once

#include <string>
#include <utility>
#include <variant>

#include "libzpool/base/check.h"

namespace uzswap::cli {

struct Message {
  std::string text;
};

// Asking for the wrong one of the two is a programming error (ZP_CHECK).
template <typename T>
class [[nodiscard]] OrMessage {
 public:
  OrMessage(T value) : state_(std::move(value)) {}  // NOLINT: implicit, so that `return value;` works
  OrMessage(Message message) : state_(std::move(message)) {}  // NOLINT: likewise

  bool ok() const { return std::holds_alternative<T>(state_); }
  explicit operator bool() const { return ok(); }

  T& value() & {
    ZP_CHECK(ok(), "value of a message");
    return *std::get_if<T>(&state_);
  }
  const T& value() const& {
    ZP_CHECK(ok(), "value of a message");
    return *std::get_if<T>(&state_);
  }
  T&& value() && {
    ZP_CHECK(ok(), "value of a message");
    return std::move(*std::get_if<T>(&state_));
  }

  // Valid as long as this object.
  const std::string& message() const {
    ZP_CHECK(!ok(), "message of a value");
    return std::get_if<Message>(&state_)->text;
  }

 private:
  std::variant<T, Message> state_;
};

}  // namespace uzswap::cli
