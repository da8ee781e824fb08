/* The reclaimer's thread: Client::Evict (daemon/client/eviction.cc), a number of times, with batches of one page. */

byte evictions;               /* begun; kept over a crash, so that the model stays finite */

/* AgentChannel::Settled. */
#ifdef NO_READY
#define NO_COMMAND 1
#else
#define NO_COMMAND (command == IDLE || command == DONE)
#endif

/* What overruling the agent must not meet halfway: a new command, results that are reset. */
#ifdef POSTS_UNDER_READER_LOCK
#define NOBODY_OVERRULES (!reader_mu[0])
#else
#define NOBODY_OVERRULES 1
#endif

/* AgentChannel::Post. */
inline post(code) {
  NOBODY_OVERRULES ->
#ifdef NO_RESULT_RESET
  result = (code == MOVE_PAGES -> NOT_REACHED : result);
#else
  result = NOT_REACHED;
#endif
  opcode = code;
  ring_page = 0;
  command_seq = 0;
  command = PENDING;
  doorbells++
}

proctype Evictor() {
  byte p, v, seq;

  DAEMON_THREAD
end_idle:
  atomic {
    evictions < EVICTIONS && NO_COMMAND ->
    evictions++;
    if
    :: !staging_dirty -> goto refresh_threads
    :: else
    fi
  }
  /* ReleaseStaging. Here it is the next batch's first step; the code tries it at a batch's end, too. */
  atomic { post(RELEASE) }
  atomic {
    if
    :: command == DONE -> staging_dirty = 0
    :: command == PENDING -> command = IDLE; goto end_idle
    fi
  }

refresh_threads:
#ifdef WITH_REMOVE
  /* RefreshThreads, DoomClearance: which threads are outside madvise now. */
  atomic {
    do
    :: v < THREADS ->
       if
       :: removing[v] == 0 ->
          do
          :: p < PLACES -> doomed[p] = doomed[p] & ~(1 << v); p++
          :: else -> break
          od
       :: else
       fi;
       p = 0;
       v++
    :: else -> break
    od;
    v = 0
  }
#endif

  atomic {
    PICK_PLACE(p);
    /* RegisterFor. */
    if
    :: registered[p] -> goto begin
    :: else
    fi;
    seq = event_seq
  }
  atomic {
    printf("evictor: registers place %d\n", p);
    if
    :: vma[p] == PLAIN -> vma[p] = REGISTERED
    :: else
    fi
  }
  /* IsRegistered: a ZEROPAGE tells. */
  atomic {
    !meta_exclusive[0] ->
#ifndef NO_PROOF
    if
    :: slot[p] != EMPTY -> p = 0; seq = 0; goto end_idle
    :: else
    fi;
    d_step { copy(0, p, 0, v) }
    if
    :: v != OK && v != EXISTS -> p = 0; v = 0; seq = 0; goto end_idle
    :: else -> v = 0
    fi
#endif
  }
  atomic {
    !meta_exclusive[0] && meta_shared[0] == 0 ->
    if
    :: event_seq != seq -> p = 0; seq = 0; goto end_idle
    :: else -> registered[p] = 1; seq = 0
    fi
  }

  /* BeginBatch. */
  atomic {
    true;
begin:
    NOBODY_OVERRULES && !meta_exclusive[0] && meta_shared[0] == 0 ->
#ifndef NO_RESULT_RESET
    result = NOT_REACHED;
#endif
    if
    :: registered[p] && doomed[p] == 0 && slot[p] == EMPTY ->
       printf("evictor: takes place %d\n", p);
#ifndef NO_BUSY_SLOT
       slot[p] = STAGING;
#endif
       batch = 1;
       batch_page = p;
       batch_seq = event_seq;
       p = 0
    :: else -> p = 0; goto end_idle
    fi
  }
  /* RunBatch. */
  atomic {
    post(MOVE_PAGES);
    ring_page = batch_page;
    command_seq = batch_seq;
    staging_dirty = 1
  }
  if
  :: atomic { command == DONE -> skip }
  :: atomic { command == PENDING -> command = IDLE }
#ifdef WITH_OVERRULE
  :: atomic { command == RUNNING && !reader_mu[0] -> reader_mu[0] = 1 }
     overrule();
     atomic {
       if
       :: gate == GATE_READER -> gate = GATE_FREE
       :: else
       fi;
       reader_mu[0] = 0
     }
#endif
  fi;

  /* FinishBatch: FinishSlot, ReplaceStaging. */
  atomic {
    collect();
    v = (result == COPIED -> STORED(data) : EMPTY);
    if
    :: true
#ifdef WITH_FULL_POOL
    :: v != EMPTY -> goto put_home
#endif
    fi
  }
  atomic {
    !meta_exclusive[0] && slot[batch_page] != GIVING && meta_shared[0] == 0 ->
    if
#ifndef NO_BUSY_SLOT
    :: slot[batch_page] != STAGING
#endif
    :: else -> printf("evictor: slot of place %d becomes %d\n", batch_page, v); slot[batch_page] = v
    fi;
batch_over:
    v = 0;
    batch = 0;
    batch_page = 0;
    batch_seq = 0;
    goto end_idle
  }

#ifdef WITH_FULL_POOL
put_home:
  atomic {
    !meta_exclusive[0] && slot[batch_page] != GIVING && changing[0] == 0 ->
    if
    :: slot[batch_page] == STAGING -> slot[batch_page] = GIVING; meta_shared[0]++
    :: else -> goto batch_over
    fi
  }
  atomic {
    d_step { copy(0, batch_page, CONTENT(v), p) }
    FINE_STEP
    meta_shared[0]--;
    slot[batch_page] = (p == OK || p == EXISTS -> EMPTY : STAGING);
    if
    :: p == EXISTS || p == NO_MAPPING -> wake(0, batch_page)
    :: else
    fi;
    p = 0;
    goto put_home
  }
#endif
  DAEMON_THREAD_ENDS(p = 0; v = 0; seq = 0)
}
