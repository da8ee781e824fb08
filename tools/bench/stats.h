// The few statistics that the reports use.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace uzswap::bench {

// The value below which `permille` of the samples lie (nearest rank). Reorders `samples`; 0 if there are
// none.
template <typename T>
T Percentile(std::vector<T>& samples, unsigned permille) {
  if (samples.empty()) return T{};
  size_t rank = (samples.size() * permille + 999) / 1000;
  if (rank > 0) --rank;
  rank = std::min(rank, samples.size() - 1);
  std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(rank), samples.end());
  return samples[rank];
}

// The middle value, of an even number the mean of the middle two. By value: rounds are few and order matters.
inline double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace uzswap::bench
