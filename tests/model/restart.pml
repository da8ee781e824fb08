/* The daemon dies at any step, and its successor goes on: Client::Recover and Client::Resume (daemon/client/recovery.cc).
 *
 * What client.pml keeps in memory files is still there; its locks, its threads' variables and the rest of its memory are not.
 */

byte crashes;
bit again;                    /* it died while it resumed */

/* What dies with a daemon. */
inline die() {
  place_ = 0;
  do
  :: place_ < PLACES ->
     doomed[place_] = 0;
#ifdef NO_KEPT_REGISTERED
     registered[place_] = 0;
#endif
#ifdef NO_KEPT_MOVES
     arrived[place_] = 0;
     late[place_] = 0;
     departed[place_] = 0;
#endif
     place_++
  :: else -> break
  od;
  place_ = 0;
  do
  :: place_ < MEMORIES -> reader_mu[place_] = 0; meta_exclusive[place_] = 0; meta_shared[place_] = 0; place_++
  :: else -> break
  od;
  batch = 0;
  batch_page = 0;
  batch_seq = 0;
  staging_dirty = 1;
  child_watched = 0;
  stepped = 0;
#if MEMORIES > 1 && defined(NO_KEEPER)
  /* The last descriptor of the child's userfaultfd: its waiters go on, and what is missing reads as zeros (5.12, 6.4). */
  if
  :: child_runs ->
     place_ = 0;
     do
     :: place_ < PLACES ->
        if
        :: vma[AT(1, place_)] == REGISTERED -> vma[AT(1, place_)] = PLAIN
        :: else
        fi;
        place_++
     :: else -> break
     od;
     wake_all(1)
  :: else
  fi;
#endif
  printf("the daemon dies\n")
}

active proctype Killer() {
end_merciful:
  do
  :: d_step {
       crashes < CRASHES ->
       crashes++;
       again = (phase != SERVING);
       phase = DEAD;
       die()
     }
  od
}

/* Client::AdoptUnfinished, of one page. */
inline adopt(mm, at) {
  d_step {
    if
    :: slot[AT(mm, at)] != EMPTY && !IS_STORED(slot[AT(mm, at)]) ->
       unfinished = unfinished | (1 << AT(mm, at));
       if
       :: IS_FILLING(slot[AT(mm, at)]) -> slot[AT(mm, at)] = STORED(CONTENT(slot[AT(mm, at)]))
       :: slot[AT(mm, at)] == FORGOTTEN -> slot[AT(mm, at)] = EMPTY
       :: slot[AT(mm, at)] == STAGING || slot[AT(mm, at)] == GIVING -> slot[AT(mm, at)] = STAGING; batch = 1; batch_page = at
       fi
    :: else
    fi
  }
}

/* Sends a page that was on its way home once more: Client::Fill. */
inline finish_filling(mm, at) {
  if
  :: d_step {
       (unfinished >> AT(mm, at)) & 1 && IS_STORED(slot[AT(mm, at)]) ->
       content = CONTENT(slot[AT(mm, at)]);
       slot[AT(mm, at)] = FILLING(content)
     }
     d_step { copy(mm, at, content, answer) }
     d_step {
       slot[AT(mm, at)] = (answer == OK || answer == EXISTS -> EMPTY : STORED(content));
       content = 0;
       answer = 0
     }
  :: else
  fi
}

active proctype Successor() {
  byte unfinished, content, answer;

  do
  :: {
       true;
end_needless:
       d_step { phase == DEAD && ended == DAEMON_THREADS && !again -> phase = RESUMING; printf("a successor starts\n") }

#ifndef NO_OVERRULE_AT_RESTART
       d_step {
         if
         :: command == PENDING -> command = IDLE
         :: else
         fi
       }
       overrule();
#endif
       adopt(0, 0);
#if PLACES > 1
       adopt(0, 1);
#endif
#if PLACES > 2
       adopt(0, 2);
#endif
#if MEMORIES > 1
       adopt(1, 0);
#endif
#ifndef NO_REPLAY
       do
       :: TO_APPLY(0) -> apply(0, taken[NEXT(0)])
       :: else -> break
       od;
#endif
#if MEMORIES > 1
       child_watched = child_published;
#if CHILD_OPERATIONS > 0 && !defined(NO_REPLAY)
       do
       :: TO_APPLY(1) -> apply(1, taken[TAKEN + NEXT(1)])
       :: else -> break
       od;
#endif
#endif
       atomic {
         if
         :: batch -> settle(batch_page)
         :: else
         fi;
         batch = 0;
         batch_page = 0
       }
#ifndef NO_SEQUENCE_MOVE_AT_RESTART
       sequence_moves();
#endif
       d_step {
#ifndef NO_DOOM_AT_RESTART
         place_ = 0;
         do
         :: place_ < PLACES -> doomed[place_] = EVERYBODY; place_++
         :: else -> break
         od;
#endif
         gate = GATE_FREE
       }
#ifndef NO_RETRY_OF_FILLING
       finish_filling(0, 0);
#if PLACES > 1
       finish_filling(0, 1);
#endif
#if PLACES > 2
       finish_filling(0, 2);
#endif
#if MEMORIES > 1
       finish_filling(1, 0);
#endif
#endif
       d_step {
#ifndef NO_WAKE_AT_RESTART
         wake_all(0);
#if MEMORIES > 1
         wake_all(1);
#endif
#endif
         unfinished = 0;
         phase = SERVING;
         printf("the successor serves\n")
       }
     }
     unless { d_step { again -> again = 0; unfinished = 0; content = 0; answer = 0 } }
  od
}
