/* Everything together; included by the models behind their sizes. */

#ifndef PLACES
#define PLACES 1
#endif
#ifndef THREADS
#define THREADS 2
#endif
#ifndef OPERATIONS
#define OPERATIONS 2
#endif
#ifndef OPERATIONS_BESIDE
#define OPERATIONS_BESIDE 1
#endif
#ifndef MEMORIES
#define MEMORIES 1
#endif
#define TASKS (THREADS + MEMORIES - 1)
#define LAST_READS 255
#ifndef TAKEN
#define TAKEN 2
#endif
#define QUEUED THREADS

/* The threads of a memory: the child has one, the last. */
#define FIRST_TASK(m) ((m) * THREADS)
#define LAST_TASK(m) (THREADS - 1 + (m))
#if THREADS == 1
#define FAULT_UNREAD(m) ((m) == 0 && fault_unread[0] || (m) == 1 && fault_unread[TASKS - 1])
#else
#define FAULT_UNREAD(m) ((m) == 0 && (fault_unread[0] || fault_unread[1]) || (m) == 1 && fault_unread[TASKS - 1])
#endif

#if PLACES == 1
#define PICK_PLACE(p) p = 0
#elif PLACES == 2
#define PICK_PLACE(p) if :: p = 0 :: p = 1 fi
#else
#define PICK_PLACE(p) if :: p = 0 :: p = 1 :: p = 2 fi
#endif

#ifdef CRASHES
#define SERVING 0
#define DEAD 1
#define RESUMING 2
byte phase;                   /* the daemon's */
byte ended;                   /* of its threads, after its death */
#define DAEMON_THREADS (WORKERS + 1)
#define STEPS
#define DAEMON_THREAD do :: { true;
#define DAEMON_THREAD_ENDS(forget) } unless { atomic { phase != SERVING -> forget; ended++ } atomic { phase == SERVING -> ended-- } } od
#else
#define STEPS atomic
#define DAEMON_THREAD
#define DAEMON_THREAD_ENDS(forget)
#endif

/* Where one step ends and another begins that only an agent that is overruled, or a crash, can tell apart. */
#if defined(WITH_OVERRULE) || defined(CRASHES)
#define FINE_STEP } atomic {
#else
#define FINE_STEP ;
#endif

#include "kernel.pml"
#include "application.pml"
#include "agent.pml"
#include "client.pml"
#include "fault_worker.pml"
#include "evictor.pml"
#ifdef CRASHES
#include "restart.pml"
#endif

init {
  atomic {
    /* Place 0 holds content 1: resident in a registered mapping, or with us. */
    vma[0] = REGISTERED;
    registered[0] = 1;
    shadow[0] = 1;
    if
    :: pte[0] = 1
    :: slot[0] = STORED(1)
    fi;
#ifdef SECOND_MAPPING
    /* The second thread has a mapping of its own in the last place. */
    vma[PLACES - 1] = REGISTERED;
    registered[PLACES - 1] = 1;
    owner[PLACES - 1] = 1;
    shadow[PLACES - 1] = writes + 1;
    if
    :: pte[PLACES - 1] = writes + 1
    :: slot[PLACES - 1] = STORED(writes + 1)
    fi;
    writes++;
#endif
    run Application(0, 0);
#if THREADS > 1
    run Application(1, 0);
#endif
#if MEMORIES > 1
    run Application(TASKS - 1, 1);
#endif
    run FaultWorker();
#if WORKERS > 1
    run FaultWorker();
#endif
    run Evictor()
  }
}
