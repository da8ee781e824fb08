// Locks that clang's -Wthread-safety understands. libstdc++'s are not annotated, so they are wrapped; the
// wrappers add nothing.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <shared_mutex>

#if defined(__clang__)
#define ZP_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define ZP_THREAD_ANNOTATION(x)
#endif

#define ZP_CAPABILITY(name) ZP_THREAD_ANNOTATION(capability(name))
#define ZP_SCOPED_CAPABILITY ZP_THREAD_ANNOTATION(scoped_lockable)
#define ZP_GUARDED_BY(mu) ZP_THREAD_ANNOTATION(guarded_by(mu))
#define ZP_PT_GUARDED_BY(mu) ZP_THREAD_ANNOTATION(pt_guarded_by(mu))
#define ZP_REQUIRES(...) ZP_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define ZP_REQUIRES_SHARED(...) ZP_THREAD_ANNOTATION(requires_shared_capability(__VA_ARGS__))
#define ZP_EXCLUDES(...) ZP_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define ZP_ACQUIRE(...) ZP_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define ZP_ACQUIRE_SHARED(...) ZP_THREAD_ANNOTATION(acquire_shared_capability(__VA_ARGS__))
#define ZP_RELEASE(...) ZP_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define ZP_RELEASE_SHARED(...) ZP_THREAD_ANNOTATION(release_shared_capability(__VA_ARGS__))
#define ZP_RELEASE_GENERIC(...) ZP_THREAD_ANNOTATION(release_generic_capability(__VA_ARGS__))
#define ZP_TRY_ACQUIRE(...) ZP_THREAD_ANNOTATION(try_acquire_capability(__VA_ARGS__))
#define ZP_TRY_ACQUIRE_SHARED(...) ZP_THREAD_ANNOTATION(try_acquire_shared_capability(__VA_ARGS__))
#define ZP_ASSERT_CAPABILITY(mu) ZP_THREAD_ANNOTATION(assert_capability(mu))
#define ZP_RETURN_CAPABILITY(mu) ZP_THREAD_ANNOTATION(lock_returned(mu))
#define ZP_ACQUIRED_BEFORE(...) ZP_THREAD_ANNOTATION(acquired_before(__VA_ARGS__))
#define ZP_ACQUIRED_AFTER(...) ZP_THREAD_ANNOTATION(acquired_after(__VA_ARGS__))
#define ZP_NO_THREAD_SAFETY_ANALYSIS ZP_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace zp {

class ZP_CAPABILITY("mutex") Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ZP_ACQUIRE() { mu_.lock(); }
  void Unlock() ZP_RELEASE() { mu_.unlock(); }
  bool TryLock() ZP_TRY_ACQUIRE(true) { return mu_.try_lock(); }

 private:
  friend class CondVar;
  std::mutex mu_;
};

// Holds a Mutex for a scope.
class ZP_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mu) ZP_ACQUIRE(mu) : mu_(mu) { mu_.Lock(); }
  ~MutexLock() ZP_RELEASE() { mu_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mu_;
};

class ZP_CAPABILITY("mutex") SharedMutex {
 public:
  SharedMutex() = default;
  SharedMutex(const SharedMutex&) = delete;
  SharedMutex& operator=(const SharedMutex&) = delete;

  void Lock() ZP_ACQUIRE() { mu_.lock(); }
  void Unlock() ZP_RELEASE() { mu_.unlock(); }
  bool TryLock() ZP_TRY_ACQUIRE(true) { return mu_.try_lock(); }
  void LockShared() ZP_ACQUIRE_SHARED() { mu_.lock_shared(); }
  void UnlockShared() ZP_RELEASE_SHARED() { mu_.unlock_shared(); }
  bool TryLockShared() ZP_TRY_ACQUIRE_SHARED(true) { return mu_.try_lock_shared(); }

 private:
  std::shared_mutex mu_;
};

// Holds a SharedMutex shared for a scope.
class ZP_SCOPED_CAPABILITY ReaderLock {
 public:
  explicit ReaderLock(SharedMutex& mu) ZP_ACQUIRE_SHARED(mu) : mu_(mu) { mu_.LockShared(); }
  ~ReaderLock() ZP_RELEASE_GENERIC() { mu_.UnlockShared(); }
  ReaderLock(const ReaderLock&) = delete;
  ReaderLock& operator=(const ReaderLock&) = delete;

 private:
  SharedMutex& mu_;
};

// Holds a SharedMutex exclusively for a scope.
class ZP_SCOPED_CAPABILITY WriterLock {
 public:
  explicit WriterLock(SharedMutex& mu) ZP_ACQUIRE(mu) : mu_(mu) { mu_.Lock(); }
  ~WriterLock() ZP_RELEASE() { mu_.Unlock(); }
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;

 private:
  SharedMutex& mu_;
};

// Wait in a `while` loop over the condition: a predicate lambda is analysed as not holding the lock.
class CondVar {
 public:
  // Unlocks `mu`, sleeps until notified (or spuriously), locks `mu` again.
  void Wait(Mutex& mu) ZP_REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }

  // As Wait, but no longer than `timeout`. False if the time ran out.
  template <typename Rep, typename Period>
  bool WaitFor(Mutex& mu, std::chrono::duration<Rep, Period> timeout) ZP_REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    const std::cv_status status = cv_.wait_for(lock, timeout);
    lock.release();
    return status == std::cv_status::no_timeout;
  }

  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace zp
