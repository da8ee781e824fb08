#include "libzpool/base/result.h"

#include <cerrno>

namespace zp {

const char* ErrcName(Errc code) {
  switch (code) {
    case Errc::kNoMemory:
      return "no memory";
    case Errc::kSystem:
      return "system error";
    case Errc::kInvalid:
      return "invalid";
    case Errc::kCorrupt:
      return "corrupt";
    case Errc::kNotFound:
      return "not found";
    case Errc::kExists:
      return "exists";
    case Errc::kUnsupported:
      return "unsupported";
    case Errc::kPermission:
      return "not permitted";
    case Errc::kBusy:
      return "busy";
    case Errc::kAgain:
      return "try again";
    case Errc::kGone:
      return "gone";
  }
  return "unknown";
}

Error ErrnoError(const char* op) {
  const int err = errno;
  Errc code = Errc::kSystem;
  switch (err) {
    case ENOMEM:
    case ENOSPC:
      code = Errc::kNoMemory;
      break;
    case EINVAL:
      code = Errc::kInvalid;
      break;
    case ENOENT:
      code = Errc::kNotFound;
      break;
    case EEXIST:
      code = Errc::kExists;
      break;
    case ENOSYS:
    case EOPNOTSUPP:
      code = Errc::kUnsupported;
      break;
    case EPERM:
    case EACCES:
      code = Errc::kPermission;
      break;
    case EBUSY:
      code = Errc::kBusy;
      break;
    case EAGAIN:
    case EINTR:
      code = Errc::kAgain;
      break;
    case ESRCH:
    case EPIPE:
    case ECONNRESET:
      code = Errc::kGone;
      break;
    default:
      break;
  }
  return Error{code, err, op};
}

}  // namespace zp
