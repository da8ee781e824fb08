/* The kernel: the mappings of one or two memories (a parent, a forked child), and the userfaultfd of each.
 *
 * What is one step here is atomic in Linux: it happens under the memory's lock, or under that of a page table.
 * Numbers in brackets are facts as daemon/DESIGN.md counts them.
 */

/* A mapping of one page. */
#define UNMAPPED 0
#define PLAIN 1
#define REGISTERED 2

/* A page's content is the number of the write that made it; 0: fresh, zeros. */
#define NONE 15

/* What an ioctl answers. */
mtype = {OK, AGAIN, EXISTS, NO_MAPPING};

#define UNMAP 1
#define REMOVE 2
#define REMAP 3
#define FORK 4
#define EVENT(type, from, to) ((type) * 16 + (from) * 4 + (to))
#define EVENT_TYPE(event) ((event) / 16)
#define EVENT_FROM(event) (((event) / 4) % 4)
#define EVENT_TO(event) ((event) % 4)

#define AT(m, p) ((m) * PLACES + (p))
#define ALL (MEMORIES * PLACES)

byte vma[ALL];
byte pte[ALL] = NONE;
bit shared_page[PLACES];      /* with a forked child: MOVE answers EBUSY until it is written (6.2) */
byte changing[MEMORIES];      /* mmap_changing: announced changes whose thread does not run on yet (4.2, 4.3) */
chan events[MEMORIES] = [QUEUED] of {byte, byte};   /* event, the thread that waits for its being read */
bit waiting[TASKS];
byte fault_at[TASKS];         /* the place + 1 where the thread waits; 0: it does not */
bit fault_unread[TASKS];
byte staged = NONE;           /* what lies in the agent's staging */
bit staging_registered = 1;

/* What the application may read: what it wrote last, and zeros too while a MADV_DONTNEED is under way, or after one that ran
 * beside a write. Kept by application.pml. */
byte shadow[ALL];
bit may_be_zero[ALL];
#define MAY_READ(m, p, v) ((v) == shadow[AT(m, p)] || ((v) == 0 && may_be_zero[AT(m, p)]))

hidden byte task_, place_;

/* UFFDIO_WAKE: read or not, who waits there asks again. */
inline wake(of_mm, at_place) {
  task_ = FIRST_TASK(of_mm);
  do
  :: task_ <= LAST_TASK(of_mm) ->
     if
     :: fault_at[task_] == (at_place) + 1 -> fault_at[task_] = 0; fault_unread[task_] = 0
     :: else
     fi;
     task_++
  :: else -> break
  od
}

inline wake_all(m) {
  task_ = FIRST_TASK(m);
  do
  :: task_ <= LAST_TASK(m) -> fault_at[task_] = 0; fault_unread[task_] = 0; task_++
  :: else -> break
  od
}

/* UFFDIO_COPY; UFFDIO_ZEROPAGE with content 0. Here stands the property: no page is ever given other content than the
 * application may read there. */
inline copy(mm, where, content, said) {
  if
  :: changing[mm] > 0 -> said = AGAIN
  :: else ->
     if
     :: vma[AT(mm, where)] != REGISTERED -> said = NO_MAPPING
     :: vma[AT(mm, where)] == REGISTERED && pte[AT(mm, where)] != NONE -> said = EXISTS
     :: else ->
        assert(MAY_READ(mm, where, content));
        pte[AT(mm, where)] = content;
        wake(mm, where);
        said = OK
     fi
  fi;
  printf("kernel: COPY of content %d to place %d of memory %d: %e\n", content, where, mm, said)
}

/* UFFDIO_MOVE of the first memory's page to staging. The source need not be registered (4.1). */
inline move(from, done) {
  if
  :: changing[0] == 0 && vma[from] != UNMAPPED && pte[from] != NONE && !shared_page[from] && staging_registered && staged == NONE ->
     staged = pte[from];
     pte[from] = NONE;
     printf("kernel: MOVE of place %d with content %d\n", from, staged);
     done = 1
  :: else -> printf("kernel: MOVE of place %d is refused\n", from); done = 0
  fi
}

/* Whether read(2) has something to give. */
#define UNREAD(m) (len(events[m]) > 0 || FAULT_UNREAD(m))
