/* What the daemon knows of a client (daemon/client/client.h), with what is done to it at an event. */

/* A slot of the index says where the page is. */
#define EMPTY 0                           /* the application's: resident, or never touched */
#define STAGING 1                         /* Busy(kStaging, n) of the batch's one page */
#define GIVING 2                          /* Busy(kFilling, n) */
#define FORGOTTEN 3                       /* on its way home, and nothing says what it was */
#define STORED(v) (16 + (v))
#define FILLING(v) (32 + (v))             /* a stored slot's filling form */
#define IS_STORED(s) ((s) >= 16 && (s) < 32)
#define IS_FILLING(s) ((s) >= 32)
#define CONTENT(s) ((s) % 16)

#define EVERYBODY ((1 << THREADS) - 1)

/* In memory files: the index, and a client's record with the messages taken. */
byte slot[ALL];
byte taken[MEMORIES * TAKEN];             /* 0 ends them */
byte steps[MEMORIES];                     /* message_steps */
byte event_seq;
bit registered[PLACES];
bit arrived[PLACES];                      /* something was moved there lately, */
bit late[PLACES];                         /* where something was registered: an UNMAP of that is still to be read */
byte departed[PLACES];                    /* mremaps from there whose own UNMAP is still to be read */
bit child_published;

/* In the daemon's own memory. */
bit reader_mu[MEMORIES];
bit meta_exclusive[MEMORIES];
byte meta_shared[MEMORIES];
byte doomed[PLACES];                      /* the threads not yet seen outside madvise since; 0: not doomed */
bit batch;                                /* one is in flight: of this page, decided at this sequence */
byte batch_page, batch_seq;
bit staging_dirty;
bit child_watched;
bit stepped;                              /* the event at hand is counted already */

/* Whether an UNMAP of the first memory's place is of what was there before it arrived. */
#ifdef NO_MOVES
#define IS_LATE(p) 0
#else
#define IS_LATE(p) ((departed[p] > 0 || late[p]) && arrived[p])
#endif

#define LOCK_SHARED(m) !meta_exclusive[m] -> meta_shared[m]++
#define UNLOCK_SHARED(m) meta_shared[m]--
#define LOCK_EXCLUSIVE(m) !meta_exclusive[m] && meta_shared[m] == 0 -> meta_exclusive[m] = 1

#if TAKEN == 2
#define FORGET_MESSAGES(m) taken[(m) * TAKEN] = 0; taken[(m) * TAKEN + 1] = 0
#else
#define FORGET_MESSAGES(m) taken[(m) * TAKEN] = 0
#endif

/* Message i of those taken, and whether there is one that is not applied. */
#define NEXT(m) (steps[m] / 2)
#define TO_APPLY(m) (NEXT(m) < TAKEN && taken[(m) * TAKEN + NEXT(m)] != 0)

hidden byte n_;

/* Client::OverruleAgent, by who holds reader_mu_. */
inline overrule() {
#ifndef NO_UNREGISTER_OF_STAGING
  staging_registered = 0;
#endif
  d_step {
    if
    :: command == RUNNING -> command = REVOKED
    :: else
    fi
  }
  gate = GATE_READER
}

/* Client::CollectStaged: what is in staging has left, whatever was reported (H28). */
inline collect() {
  if
#ifdef NO_COLLECTION
  :: result == MOVED -> data = staged; result = COPIED
#else
  :: result != COPIED && staged != NONE -> data = staged; result = COPIED
#endif
  :: else
  fi
}

/* Client::SettleBatch, of the page in flight (StoreAlways). */
inline settle(at) {
  if
  :: slot[at] == STAGING ->
     collect();
     slot[at] = (result == COPIED -> STORED(data) : EMPTY)
  :: else
  fi
}

/* Client::ApplyEvent. Each step may be the last one before a crash. */
inline apply(m, event) {
  STEPS {
    printf("process %d: applies event %d from %d to %d\n", _pid, EVENT_TYPE(event), EVENT_FROM(event), EVENT_TO(event));
    if
    :: EVENT_TYPE(event) == UNMAP ->
       if
       :: m == 0 && IS_LATE(EVENT_FROM(event))
       :: else ->
          d_step {
            place_ = EVENT_FROM(event);
            slot[AT(m, place_)] = EMPTY;
            if
            :: m == 0 -> registered[place_] = 0; doomed[place_] = 0
            :: else
            fi
          }
       fi;
       /* StoreMoves. */
       d_step {
         place_ = EVENT_FROM(event);
         if
         :: m == 0 ->
            arrived[place_] = IS_LATE(place_);
            if
            :: departed[place_] > 0 -> departed[place_]--
            :: else -> late[place_] = 0
            fi
         :: else
         fi;
#ifndef NO_STEPS_WITH_MOVES
         steps[m] = 2 * (NEXT(m) + 1);
         stepped = 1
#endif
       }
    :: EVENT_TYPE(event) == REMOVE ->
       d_step {
         place_ = EVENT_FROM(event);
         slot[AT(m, place_)] = EMPTY;
#ifndef NO_DOOM
         if
         :: m == 0 -> doomed[place_] = EVERYBODY
         :: else
         fi
#endif
       }
#ifdef WITH_REMAP
    :: EVENT_TYPE(event) == REMAP ->
       if
       :: steps[m] % 2 == 0 ->
          slot[EVENT_TO(event)] = EMPTY;
          d_step {
            arrived[EVENT_FROM(event)] = 0;
            departed[EVENT_FROM(event)]++;
            late[EVENT_TO(event)] = late[EVENT_TO(event)] | registered[EVENT_TO(event)];
            arrived[EVENT_TO(event)] = 1;
#ifndef NO_SUBSTEP
            steps[m]++
#endif
          }
       :: else
       fi;
       /* OffsetIndex::Rekey: the target is published, then the source cleared. */
       if
       :: slot[EVENT_FROM(event)] != EMPTY ->
          slot[EVENT_TO(event)] = slot[EVENT_FROM(event)];
          slot[EVENT_FROM(event)] = EMPTY
       :: else
       fi;
       d_step {
         if
         :: batch && batch_page == EVENT_FROM(event) -> batch_page = EVENT_TO(event)
         :: else
         fi
       }
       registered[EVENT_FROM(event)] = 0;
       d_step {
         registered[EVENT_TO(event)] = 1;
         doomed[EVENT_TO(event)] = (doomed[EVENT_FROM(event)] > 0 -> EVERYBODY : 0)
       }
#endif
#if MEMORIES > 1
    :: EVENT_TYPE(event) == FORK ->
       if
#ifndef NO_MATCH_OF_CHILD
       :: child_published
#endif
       :: else ->
#ifndef NO_SETTLE
          d_step { settle(0) }
#if PLACES > 1
          d_step { settle(1) }
#endif
#if PLACES > 2
          d_step { settle(2) }
#endif
#endif
          /* The clone, published. A page in flight has no place in it. */
          d_step {
            place_ = 0;
            do
            :: place_ < PLACES -> slot[AT(1, place_)] = (IS_STORED(slot[place_]) -> slot[place_] : EMPTY); place_++
            :: else -> break
            od;
            child_published = 1
          }
       fi;
       child_watched = 1
#endif
    fi;
    d_step {
      if
      :: !stepped -> steps[m] = 2 * (NEXT(m) + 1)
      :: else -> stepped = 0
      fi
    }
  }
}

/* Behind the events of one read the sequence moves on. */
inline sequence_moves() {
  STEPS {
    event_seq++;
    ring_seq = event_seq
  }
}
