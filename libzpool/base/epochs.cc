#include "libzpool/base/epochs.h"

namespace zp {

void Epochs::Synchronize() {
  MutexLock lock(mu_);
  for (int round = 0; round < 2; ++round) {
    const uint32_t ending = phase_.fetch_add(1, std::memory_order_seq_cst) & 1;
    for (const Stripe& stripe : stripes_) {
      // A reading is a copy of a page at most; one that takes longer has lost its CPU.
      for (int spins = 0; stripe.inside[ending].load(std::memory_order_seq_cst) != 0; ++spins) {
        if (spins > 100) sched_yield();
      }
    }
  }
}

}  // namespace zp
