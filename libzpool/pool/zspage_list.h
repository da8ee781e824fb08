// An intrusive list of zspages.
#pragma once

#include "libzpool/base/check.h"
#include "libzpool/pool/zspage.h"

namespace zp {

// Doubly linked through the member `kLink` of Zspage; owns nothing. Guarded by the lock of the size class
// that it belongs to.
template <Zspage::Link Zspage::*kLink>
class ZspageList {
 public:
  Zspage* front() const { return head_; }
  static Zspage* Next(const Zspage* zspage) { return (zspage->*kLink).next; }
  static bool IsLinked(const Zspage* zspage) { return (zspage->*kLink).prev != zspage; }

  void PushFront(Zspage* zspage) {
    Zspage::Link& link = zspage->*kLink;
    ZP_DCHECK(!IsLinked(zspage), "zspage is in a list");
    link = {nullptr, head_};
    if (head_ != nullptr) (head_->*kLink).prev = zspage;
    head_ = zspage;
  }

  void Remove(Zspage* zspage) {
    Zspage::Link& link = zspage->*kLink;
    ZP_DCHECK(IsLinked(zspage), "zspage is not in a list");
    if (link.prev != nullptr) {
      (link.prev->*kLink).next = link.next;
    } else {
      head_ = link.next;
    }
    if (link.next != nullptr) (link.next->*kLink).prev = link.prev;
    link = {zspage, nullptr};
  }

 private:
  Zspage* head_ = nullptr;
};

}  // namespace zp
