/* Faults and evictions of one page, whose mapping is dropped, replaced and emptied meanwhile. */
#ifndef OPERATIONS
#define OPERATIONS 2
#endif
#ifndef WRITES
#define WRITES 2
#endif
#ifndef WORKERS
#define WORKERS 2
#endif
#ifndef EVICTIONS
#define EVICTIONS 2
#endif
#define WITH_WRITE
#define WITH_UNMAP
#define WITH_REMOVE
#include "protocol.pml"
