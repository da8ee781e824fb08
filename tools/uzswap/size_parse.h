// Sizes as people write them: 512M, 1.5G, 64k, 123456.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "tools/uzswap/or_message.h"

namespace uzswap::cli {

// Bytes of `text`: a decimal number, a fraction if a unit follows, and K, M, G or T (1024-based; 64k, 64K,
// 64Ki, 64KB and 64KiB are the same). A fraction of a byte is cut off. Independent of the locale. The message
// says what is wrong with `text` and shows an example. Greatest size: 2^63 - 1.
OrMessage<uint64_t> ParseSize(std::string_view text);

// "" if a process can live within `bytes` of resident memory (wire::kMinLimitBytes or more), else why not.
std::string CheckResidentLimit(uint64_t bytes);

}  // namespace uzswap::cli
