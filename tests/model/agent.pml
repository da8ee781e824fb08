/* The agent (tools/agent/command_loop.cc), and the ring that it shares with the daemon. It lives as long as the application.
 * Its report is left out: it is a bell, and that a command is over the command word says.
 */

/* Command word. REVOKED: begun, and its MOVEs made to fail. */
#define IDLE 0
#define PENDING 1
#define RUNNING 2
#define DONE 3
#define REVOKED 4

#define MOVE_PAGES 1
#define RELEASE 2

/* Results; REFUSED stands for all that mean "it did not move". */
#define NOT_REACHED 0
#define REFUSED 1
#define MOVED 2
#define COPIED 3

#define GATE_FREE 0
#define GATE_AGENT 1
#define GATE_READER 2

byte command, opcode, gate;
byte ring_seq;                /* RingHeader::event_seq */
byte command_seq;             /* RingHeader::seq */
byte ring_page;
byte result;                  /* of the batch's one page */
byte data;
byte doorbells;               /* packets under way on the socket */

active proctype Agent() {
  bit moved, stale;

end_idle:
  atomic {
    doorbells > 0 ->
    doorbells--;
    if
    :: command != PENDING -> goto end_idle
    :: command == PENDING && opcode == RELEASE -> command = RUNNING; goto empty_staging
    :: else -> command = RUNNING
    fi
    FINE_STEP
    /* TakeGate, and the comparison under it. */
#ifndef NO_GATE
    if
    :: gate == GATE_FREE -> gate = GATE_AGENT
    :: gate != GATE_FREE && command != RUNNING -> goto over
    fi;
#endif
#ifndef NO_SEQUENCE_CHECK
    stale = (ring_seq != command_seq)
#endif
  }
  atomic {
    if
    :: !stale -> d_step { move(ring_page, moved) }
    :: stale -> moved = 0
    fi
    FINE_STEP
    /* MOVED unless the daemon, which overruled us, found it in staging before. */
    stale = 0;
    if
    :: moved && result == NOT_REACHED -> result = MOVED
#ifdef WITH_MISREPORT
    :: moved -> result = REFUSED   /* the kernel said less than it did (H28) */
#endif
    :: moved && result != NOT_REACHED
    :: !moved -> result = REFUSED
    fi;
    moved = 0
    FINE_STEP
    if
    :: gate == GATE_AGENT -> gate = GATE_FREE
    :: else   /* lost: what was moved is copied all the same */
    fi;
    if
    :: result != MOVED -> goto over
    :: else
    fi
  }
  atomic {
    data = staged
    FINE_STEP
    result = COPIED
  }

over:
  atomic { command = DONE; goto end_idle }

empty_staging:
  /* EmptyStaging: no event (18.1). */
  atomic {
    staging_registered = 0;
    staged = NONE
    FINE_STEP
    staging_registered = 1;
    goto over
  }
}
