/* Two places: mappings move between them, also back and forth by two threads, and are dropped. */
#ifndef PLACES
#define PLACES 2
#endif
#ifndef WRITES
#define WRITES 1
#endif
#ifndef WORKERS
#define WORKERS 2
#endif
#ifndef EVICTIONS
#define EVICTIONS 0
#endif
#define WITH_REMAP
#include "protocol.pml"
