/* One page that is evicted, faulted, dropped and unmapped while the daemon dies, once or twice. */
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef WORKERS
#define WORKERS 1
#endif
#ifndef EVICTIONS
#define EVICTIONS 1
#endif
#ifndef WRITES
#define WRITES 1
#endif
#include "protocol.pml"
