/* A fault worker: Client::ReadMessages and Client::Resolve (daemon/client/events.cc, faults.cc). */

#define ZERO_FILL 1
#define FILL 2
#define GIVE 3

/* Whether an address that was requeued would get further now. Retries that would not are left out: they change nothing. */
#define WORTH_A_RETRY(m, at) (!meta_exclusive[m] && changing[m] == 0 && slot[at] != GIVING && !IS_FILLING(slot[at]) && \
  (slot[at] != STAGING || result == COPIED))

#define BIT(at) (1 << (at))
#define HAS(set, at) (((set) >> (at)) & 1)

#define RETRY(at) \
  :: fresh == 0 && HAS(requeued, at) && WORTH_A_RETRY((at) / PLACES, at) -> \
     requeued = requeued & ~BIT(at); \
     m = (at) / PLACES; \
     p = (at) % PLACES

/* Who reads has reader_mu_, the gate and meta_mu_, in this order. To hold one while waiting for the next only makes others
 * wait longer: here all are taken at once. */
#ifdef NO_GATE
#define GATE_TO_HAVE 1
#define TAKE_GATE skip
#else
#define GATE_TO_HAVE (gate == GATE_FREE)
#define TAKE_GATE gate = GATE_READER
#endif
#ifdef NO_LOCK_OVER_READ
#define MAY_READ_MESSAGES(m) (UNREAD(m) && !reader_mu[m])
#define BEGIN_READING(m) reader_mu[m] = 1
#else
#define MAY_READ_MESSAGES(m) (UNREAD(m) && !reader_mu[m] && !meta_exclusive[m] && meta_shared[m] == 0)
#define BEGIN_READING(m) reader_mu[m] = 1; meta_exclusive[m] = 1
#endif

/* One round of read(2): all faults, then one event, whose thread goes on at once (5.1, 4.3). */
inline take_messages(m) {
  task_ = FIRST_TASK(m);
  do
  :: task_ <= LAST_TASK(m) ->
     if
     :: fault_unread[task_] ->
        fault_unread[task_] = 0;
        printf("worker %d: reads the fault of application %d\n", _pid, task_);
        fresh = fresh | BIT(AT(m, fault_at[task_] - 1))
     :: else
     fi;
     task_++
  :: else -> break
  od;
  if
  :: len(events[m]) > 0 ->
     events[m] ? n_, task_;
     waiting[task_] = 0;
     printf("worker %d: reads event %d from %d to %d of application %d\n", _pid, EVENT_TYPE(n_), EVENT_FROM(n_), EVENT_TO(n_), task_);
     taken[m * TAKEN + count] = n_;
     count++
  :: else
  fi
}

proctype FaultWorker() {
  byte fresh;                 /* faults read and not looked up yet, a bit for each page */
  byte requeued;
  byte m, p, v, kind, answer;
  byte count;                 /* of the messages read */

  DAEMON_THREAD
end_idle:
  atomic {
    if
    :: fresh != 0 ->
       do
       :: !HAS(fresh, p) -> p++
       :: HAS(fresh, p) -> break
       od;
       fresh = fresh & ~BIT(p);
       m = p / PLACES;
       p = p % PLACES
    RETRY(0)
#if ALL > 1
    RETRY(1)
#endif
#if ALL > 2
    RETRY(2)
#endif
#if ALL > 3
    RETRY(3)
#endif
    :: fresh == 0 && GATE_TO_HAVE && MAY_READ_MESSAGES(0) -> BEGIN_READING(0); TAKE_GATE; goto read_messages
#ifdef WITH_OVERRULE
    :: fresh == 0 && gate == GATE_AGENT && UNREAD(0) && !reader_mu[0] -> reader_mu[0] = 1; goto overrule_agent
#endif
#if MEMORIES > 1
    :: fresh == 0 && child_watched && MAY_READ_MESSAGES(1) -> m = 1; BEGIN_READING(1); goto read_messages
#endif
    fi;

    /* Resolve. */
    LOCK_SHARED(m);
    if
#ifdef NO_SECOND_LOOKUP
    :: kind != 0   /* as it was found before EAGAIN */
#endif
    :: kind == 0 && slot[AT(m, p)] == EMPTY -> kind = ZERO_FILL
    :: kind == 0 && IS_STORED(slot[AT(m, p)]) ->
       kind = FILL;
       v = CONTENT(slot[AT(m, p)]);
#ifdef NO_HANDLE_IN_FILLING
       slot[AT(m, p)] = FORGOTTEN
#else
       slot[AT(m, p)] = FILLING(v)
#endif
    :: kind == 0 && slot[AT(m, p)] == STAGING && result == COPIED -> kind = GIVE; v = data; slot[AT(m, p)] = GIVING
    :: else ->
       UNLOCK_SHARED(m);
       requeued = requeued | BIT(AT(m, p));
       m = 0;
       p = 0;
       goto end_idle
    fi;
    printf("worker %d: finds at place %d of memory %d: kind %d, content %d\n", _pid, p, m, kind, v);
#ifdef NO_LOCK_OVER_COPY
    UNLOCK_SHARED(m)
#endif
  }

  atomic {
    d_step { copy(m, p, v, answer) }
#ifdef WITH_FAULT_AROUND
    if
    :: m == 0 && kind == ZERO_FILL && answer == OK && p + 1 < PLACES && slot[p + 1] == EMPTY ->
       d_step {
         copy(0, p + 1, 0, answer);
         if
         :: answer == OK -> doomed[p + 1] = 0
         :: else
         fi;
         answer = OK
       }
    :: else
    fi
#endif
    FINE_STEP
    d_step {
#ifdef WITH_REMAP
      /* Quiet: what moved is forgotten, here at once. */
      if
      :: answer == OK && kind != GIVE && m == 0 ->
         place_ = 0;
         do
         :: place_ < PLACES -> arrived[place_] = 0; late[place_] = 0; departed[place_] = 0; place_++
         :: else -> break
         od
      :: else
      fi;
#endif
      n_ = AT(m, p);
      if
      :: kind == ZERO_FILL && answer == OK && m == 0 -> doomed[p] = 0
      :: kind == FILL && (IS_FILLING(slot[n_]) || slot[n_] == FORGOTTEN) ->
         slot[n_] = (answer == OK || answer == EXISTS -> EMPTY : STORED(v))
      :: kind == GIVE && slot[n_] == GIVING -> slot[n_] = (answer == OK || answer == EXISTS -> EMPTY : STAGING)
      :: else
      fi;
      if
      :: answer == AGAIN -> requeued = requeued | BIT(n_)
      :: else
      fi;
#ifndef NO_WAKE
      if
      :: answer == EXISTS || answer == NO_MAPPING || (answer == AGAIN && kind == FILL) -> wake(m, p)
      :: else
      fi;
#endif
#ifndef NO_LOCK_OVER_COPY
      UNLOCK_SHARED(m);
#endif
#ifdef NO_SECOND_LOOKUP
      if
      :: answer == AGAIN
      :: else -> kind = 0; v = 0
      fi;
#else
      kind = 0;
      v = 0;
#endif
      n_ = 0;
      m = 0;
      p = 0;
      answer = 0
    }
    goto end_idle
  }

#ifdef WITH_OVERRULE
overrule_agent:
  printf("worker %d: overrules the agent\n", _pid);
  overrule();
  atomic { LOCK_EXCLUSIVE(0) }
#endif

read_messages:
  atomic {
    /* What was taken before is forgotten. */
    FORGET_MESSAGES(m)
    FINE_STEP
    steps[m] = 0
    FINE_STEP
    d_step { take_messages(m) }
#ifndef NO_LOCK_OVER_READ
    if
    :: count == 0 && !UNREAD(m) -> goto unlock
    :: else
    fi
#endif
  }
  do
  :: d_step { UNREAD(m) && count < TAKEN -> take_messages(m) }
  :: atomic { !UNREAD(m) || count == TAKEN -> break }
  od;
#ifdef NO_LOCK_OVER_READ
  atomic { LOCK_EXCLUSIVE(m) }
#endif
  STEPS {
    do
    :: TO_APPLY(m) -> apply(m, taken[m * TAKEN + NEXT(m)])
    :: else -> break
    od;
    if
    :: m == 0 && count > 0 -> sequence_moves()
    :: else
    fi;
unlock:
    atomic {
      if
      :: m == 0 && gate == GATE_READER -> gate = GATE_FREE
      :: else
      fi;
      meta_exclusive[m] = 0;
      reader_mu[m] = 0;
      FORGET_MESSAGES(m);
      steps[m] = 0;
      count = 0;
      m = 0;
      goto end_idle
    }
  }
  DAEMON_THREAD_ENDS(fresh = 0; requeued = 0; m = 0; p = 0; v = 0; kind = 0; answer = 0; count = 0)
}
