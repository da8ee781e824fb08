// The measured program: `uzswap-bench --worker`, under `uzswap run` for our side and alone for the peer's.
//
// Protocol: first a line {"pid", "socket"} ("socket": UZSWAP_SOCKET, "" if unset), then one answer per
// request:
//
//   {"op":"fill","pages":N,"source":PATH or "","seed":S}   {}
//   {"op":"dirty"}                                          {}
//   {"op":"pageout"}                                        {"wall_us"}
//   {"op":"states"}                                         {"present","swapped","absent"}
//   {"op":"random","touches":N,"seed":S,"gap_us":G}         see Region::TouchRandomly
//   {"op":"sequential"}                                     see Region::TouchSequentially
//   {"op":"verify"}                                         {"wrong"}
//   {"op":"load","kind":"malloc"|"mmap","milliseconds":N}
//                                                           see load.h: {"operations_per_second",
//                                                           "operations_per_cpu_second"}
//
// A failure is {"error": text}. End of input ends the program; so does its parent's death.
#pragma once

namespace uzswap::bench {

int WorkerMain();

}  // namespace uzswap::bench
