/* A thread of the application: some operations, each chosen freely, and what it must see.
 *
 * A system call that changes registered memory is: the change, or for MADV_DONTNEED nothing yet (4.4); the event; the wait for
 * its being read; and, when the thread runs again, the end of EAGAIN.
 */

byte writes = 1;              /* content 1 may be there from the beginning */
byte finished;
byte removing[TASKS];         /* the place + 1 of the MADV_DONTNEED that the thread is in */
bit overwritten[TASKS];       /* something came to that place meanwhile: zeros and that are both right afterwards */
#if MEMORIES > 1
bit child_runs;
#endif

/* With several places, a mapping belongs to a thread, and no other one moves or unmaps it: a program whose threads do that to
 * each other's mappings without waiting is broken natively, too. What any thread may use is the address as soon as it is free. */
#ifdef WITH_REMAP
byte owner[PLACES];
#define OWN(p) (owner[p] == me)
#define TAKE(p) owner[p] = me
#else
#define OWN(p) 1
#define TAKE(p) skip
#endif

/* An event is queued some time after the change, and another thread's may come between; where all events are of the same place
 * that is all the same. */
#if defined(WITH_REMAP) || MEMORIES > 1
#define SOME_TIME_LATER } atomic {
#else
#define SOME_TIME_LATER ;
#endif
#ifdef WITH_OVERTAKING
#define MOMENTS_LATER } atomic { true;
#else
#define MOMENTS_LATER ;
#endif
#define ANNOUNCE(type, from, to) \
  events[m] ! EVENT(type, from, to), me; \
  waiting[me] = 1 \
  } \
  atomic { \
  !waiting[me] -> \
  changing[m]--; \
  printf("application %d: runs on\n", me)

/* Other content arrives at a place. */
inline arrives(mm, at) {
  task_ = FIRST_TASK(mm);
  may_be_zero[AT(mm, at)] = 0;
  do
  :: task_ <= LAST_TASK(mm) ->
     if
     :: removing[task_] == (at) + 1 -> overwritten[task_] = 1; may_be_zero[AT(mm, at)] = 1
     :: else
     fi;
     task_++
  :: else -> break
  od
}

/* A fresh mapping. */
inline maps(mm, at, as) {
  vma[AT(mm, at)] = as;
  pte[AT(mm, at)] = NONE;
  shadow[AT(mm, at)] = 0;
  arrives(mm, at);
  may_be_zero[AT(mm, at)] = 0
}

inline reads(mm, at) {
  assert(MAY_READ(mm, at, pte[AT(mm, at)]));
  if
  :: pte[AT(mm, at)] != shadow[AT(mm, at)] -> shadow[AT(mm, at)] = 0
  :: else
  fi;
  /* What was not dropped up to now only a call that is still under way can drop. */
  may_be_zero[AT(mm, at)] = 0;
  task_ = FIRST_TASK(mm);
  do
  :: task_ <= LAST_TASK(mm) ->
     if
     :: removing[task_] == (at) + 1 && shadow[AT(mm, at)] != 0 -> may_be_zero[AT(mm, at)] = 1
     :: else
     fi;
     task_++
  :: else -> break
  od;
  task_ = 0
}

proctype Application(byte me; byte m) {
  byte left, p, q, what;
  bit writing;

#if MEMORIES > 1
  if
  :: m == 0 -> left = (me == 0 -> OPERATIONS : OPERATIONS_BESIDE)
  :: m == 1 ->
end_unborn:
     child_runs;
     left = CHILD_OPERATIONS
  fi;
#else
  left = (me == 0 -> OPERATIONS : OPERATIONS_BESIDE);
#endif

next:
  do
  /* A read or a write of a page. */
  :: atomic {
       left > 0 && left != LAST_READS ->
       left--;
       PICK_PLACE(p);
       if
       :: true
#ifdef WITH_WRITE
       :: writes < WRITES -> writing = 1
#endif
       fi;
access:
       if
       :: vma[AT(m, p)] == UNMAPPED   /* no program does that */
       :: vma[AT(m, p)] == REGISTERED && pte[AT(m, p)] == NONE ->
          fault_at[me] = p + 1;
          fault_unread[me] = 1;
          printf("application %d: faults at place %d\n", me, p);
          goto faulted
       :: else ->
          d_step {
            if
            :: pte[AT(m, p)] == NONE -> pte[AT(m, p)] = 0
            :: else
            fi;
            if
            :: writing ->
               writes++;
               printf("application %d: writes content %d to place %d\n", me, writes, p);
               pte[AT(m, p)] = writes;
               shadow[AT(m, p)] = writes;
               arrives(m, p);
               if
               :: m == 0 -> shared_page[p] = 0
               :: else
               fi
            :: else ->
               printf("application %d: reads content %d at place %d\n", me, pte[AT(m, p)], p);
               reads(m, p)
            fi
          }
       fi;
       p = 0;
       writing = 0
     }

#ifdef WITH_UNMAP
  /* munmap, or mmap with MAP_FIXED over what is there; mmap where nothing is. */
  :: atomic {
       left > 0 && left != LAST_READS ->
       left--;
       PICK_PLACE(p);
       if
       :: vma[AT(m, p)] == UNMAPPED ->
          d_step { printf("application %d: mmap of place %d\n", me, p); TAKE(p); maps(m, p, PLAIN); p = 0 }
          goto next
       :: vma[AT(m, p)] != UNMAPPED && !OWN(p) -> p = 0; goto next
       :: else
       fi;
       what = vma[AT(m, p)];
       if
       :: d_step { printf("application %d: munmap of place %d\n", me, p); maps(m, p, UNMAPPED) }
       :: d_step { printf("application %d: mmap over place %d\n", me, p); maps(m, p, PLAIN) }
       fi;
       if
       :: m == 0 -> shared_page[p] = 0
       :: else
       fi;
       if
       :: what == REGISTERED -> what = 0; changing[m]++
       :: else -> what = 0; p = 0; goto next
       fi
       SOME_TIME_LATER
       ANNOUNCE(UNMAP, p, p);
       p = 0
     }
#endif

#ifdef WITH_REMOVE
  /* MADV_DONTNEED: announced before the pages are dropped (4.4). */
  :: atomic {
       left > 0 && left != LAST_READS ->
       left--;
       PICK_PLACE(p);
       if
       :: vma[AT(m, p)] == UNMAPPED -> p = 0; goto next
       :: vma[AT(m, p)] == PLAIN -> pte[AT(m, p)] = NONE; shadow[AT(m, p)] = 0; may_be_zero[AT(m, p)] = 0; p = 0; goto next
       :: else
       fi;
       printf("application %d: MADV_DONTNEED of place %d begins\n", me, p);
       changing[m]++;
       removing[me] = p + 1;
       may_be_zero[AT(m, p)] = 1
       SOME_TIME_LATER
       ANNOUNCE(REMOVE, p, p)
     }
     d_step {
       printf("application %d: MADV_DONTNEED of place %d drops what is there\n", me, p);
       if
       :: vma[AT(m, p)] == UNMAPPED
       :: else ->
          pte[AT(m, p)] = NONE;
          if
          :: m == 0 -> shared_page[p] = 0
          :: else
          fi;
          if
          :: overwritten[me] -> may_be_zero[AT(m, p)] = 1
          :: else -> shadow[AT(m, p)] = 0; may_be_zero[AT(m, p)] = 0
          fi
       fi;
       overwritten[me] = 0;
       removing[me] = 0;
       p = 0
     }
#endif

#ifdef WITH_REMAP
  /* mremap with MREMAP_FIXED, also MREMAP_DONTUNMAP: up to three events, each of them waited for on its own (5.3). */
  :: atomic {
       left > 0 && left != LAST_READS ->
       left--;
       PICK_PLACE(p);
       PICK_PLACE(q);
       if
       :: p == q || vma[p] == UNMAPPED || !OWN(p) || vma[q] != UNMAPPED && !OWN(q) -> p = 0; q = 0; goto next
       :: else
       fi;
       d_step {
         printf("application %d: mremap of place %d to %d\n", me, p, q);
         /* what: bit 0 where a registered mapping is overwritten, bit 1 where one moves, bit 2 where the old one goes. */
         what = (vma[q] == REGISTERED) + 6 * (vma[p] == REGISTERED);
         changing[0] = changing[0] + (what % 2) + 2 * (what > 1);
         vma[q] = vma[p];
         pte[q] = pte[p];
         shadow[q] = shadow[p];
         writing = may_be_zero[p];
         arrives(0, q);
         may_be_zero[q] = may_be_zero[q] | writing;
         writing = 0;
         owner[q] = owner[p];
         vma[p] = UNMAPPED;
         pte[p] = NONE;
         shadow[p] = 0;
         may_be_zero[p] = 0
       }
       if
#ifdef WITH_DONTUNMAP
       :: what > 1 ->
          d_step {
            printf("application %d: (MREMAP_DONTUNMAP: place %d stays)\n", me, p);
            what = what - 4;
            changing[0]--;
            maps(0, p, REGISTERED)
          }
#endif
       :: true
       fi;
       if
       :: what % 2 == 1 -> goto overwritten_goes
       :: what == 0 -> p = 0; q = 0; goto next
       :: else
       fi
       MOMENTS_LATER
moves:
       ANNOUNCE(REMAP, p, q);
       if
       :: what < 4 -> p = 0; q = 0; what = 0; goto next
       :: else
       fi
       SOME_TIME_LATER
       ANNOUNCE(UNMAP, p, p);
       p = 0;
       q = 0;
       what = 0
     }
#endif

#ifdef WITH_GROWTH
  /* mremap of place 0 that grows in place over place 1: no event, and what is new is registered (5.3). */
  :: atomic {
       left > 0 && left != LAST_READS && vma[0] == REGISTERED && vma[1] == UNMAPPED && OWN(0) ->
       left--;
       d_step { printf("application %d: mremap grows place 0 over place 1\n", me); TAKE(1); maps(0, 1, REGISTERED) }
     }
#endif

#if MEMORIES > 1
  /* fork: the child's pages and registrations at this moment; it runs when the event was read (6.1). */
  :: atomic {
       left > 0 && left != LAST_READS && me == 0 && !child_runs ->
       left--;
       d_step {
         printf("application %d: fork\n", me);
         changing[0]++;
         place_ = 0;
         do
         :: place_ < PLACES ->
            vma[AT(1, place_)] = vma[place_];
            pte[AT(1, place_)] = pte[place_];
            shadow[AT(1, place_)] = shadow[place_];
            may_be_zero[AT(1, place_)] = may_be_zero[place_];
            shared_page[place_] = (pte[place_] != NONE);
            place_++
         :: else -> break
         od
       }
       SOME_TIME_LATER
       ANNOUNCE(FORK, 0, 0);
       child_runs = 1
     }
#endif

  /* The last one of a memory that ends reads everything once more. */
  :: atomic {
       left == 0 ->
       left = LAST_READS;
#if MEMORIES > 1
       if
       :: m == 1 -> goto next
       :: else
       fi;
#endif
       finished++;
       if
       :: finished < THREADS -> q = PLACES
       :: else
       fi
     }
  :: atomic { left == LAST_READS && q < PLACES -> p = q; q++; goto access }
  :: atomic { left == LAST_READS && q == PLACES -> break }
  od;
  goto ends;

faulted:
  atomic { fault_at[me] == 0 -> goto access }
#ifdef WITH_REMAP
overwritten_goes:
  atomic {
    ANNOUNCE(UNMAP, q, q);
    if
    :: what > 1 -> goto moves
    :: else -> p = 0; q = 0; what = 0; goto next
    fi
  }
#endif
ends:
  skip
}
