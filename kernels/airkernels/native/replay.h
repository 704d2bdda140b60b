/* Memory shared by the host program and the native code; `airrun.replay.native` and `airrun.weights.stream` mirror these structs. */
#ifndef AIR_REPLAY_H
#define AIR_REPLAY_H

#include <stddef.h>
#include <stdint.h>

typedef int32_t (*air_kernel)(void *, void *, void *, void *, void *, void *, void *, void *, int32_t n_rows,
                              int32_t begin, int32_t end, int32_t worker);

/* Like pread(2): bytes read, or -errno. */
typedef int64_t (*air_read)(int32_t file, void *to, uint64_t nbytes, int64_t offset);

/* Bytes of a weight file that are read at once; `needed` of the `nbytes` must be there, the rest may be past its end. */
struct air_chunk {
    int64_t offset;
    int32_t nbytes;
    int32_t needed;
    int32_t file;
    int32_t map; /* index into air_stream.maps */
};

/* A buffer of the ring. Chunk number q of all that a stream ever reads goes to slot q % n_slots, when `free` is q (its
 * predecessor was used), and is there when `ready` is q + 1. Both count modulo 2^32. */
struct air_slot {
    volatile int32_t free;
    volatile int32_t ready;
    int32_t reserved[14];
};

/* A cyclic sequence of chunks, read ahead of its use by threads that call `air_reader`. Zero-initialised, but for what
 * the host sets: the first two lines of fields. */
struct air_stream {
    const struct air_chunk *chunks;
    struct air_slot *slots;
    char *buffers;     /* n_slots of slot_nbytes each; unused where files are mapped */
    char *const *maps; /* addresses of mapped files, or null: chunks are read into the buffers */
    air_read read;
    int64_t slot_nbytes;
    int32_t n_chunks;
    int32_t n_slots;
    int32_t tail;        /* first chunk that a short pass does without */
    int32_t drop_cache;  /* tell the system to forget what was read */
    int32_t timeout_s;   /* longest wait for a chunk */
    int32_t page_nbytes; /* of this machine's memory */
    volatile uint64_t short_passes; /* bit p % 64: pass p is short */
    int64_t reserved1[6];

    volatile uint64_t next;    /* number of the chunk to be read next */
    volatile uint64_t failure; /* (chunk << 32 | errno or AIR_TRUNCATED) of the first failure; 0 while all is well */
    volatile int32_t stop;
    int32_t reserved2[11];

    volatile uint64_t nbytes_read;
    volatile uint64_t n_reads;
    volatile uint64_t stalled_ns; /* that workers waited for chunks, added up */
    int64_t reserved3[5];
};

enum { AIR_TRUNCATED = 0x7fffffff };

/* Reads past the page cache begin and end at multiples of this, on any machine: `PAGE` of `airrun.weights.residency`. */
enum { AIR_READ_UNIT = 4096 };

/* How a call gets rows that are streamed: `chunk` of the pass holds them as they stand in the file. Row r of the weight
 * begins `skew` + r * (bytes of a row) after the start of the buffer. */
struct air_fetch {
    air_kernel pack; /* makes a panel, which the call's kernel reads; null: the kernel itself reads the raw rows */
    int64_t skew;
    int64_t panel_nbytes;
    int32_t chunk;
    int32_t n_rows; /* rows that there are; panels are padded with zeros */
    volatile int32_t done;
    int32_t reserved[7];
};

/* One kernel call of a program: tasks [first_task, first_task + n_tasks). 128 bytes. `taken` is (run << 32 | tasks
 * taken), set anew by every run. Arrays of calls must outlive the team: a worker that lost its core may look at one
 * after its run has ended. */
struct air_call {
    air_kernel kernel;
    void *pointers[8];
    int32_t n_rows;
    int32_t n_tasks;
    int32_t sync;
    int32_t first_task;
    struct air_fetch *fetch; /* null: pointers[0] is where the weights are */
    const struct air_demand *demand; /* null: all that pointers[0] is the start of is there */
    volatile uint64_t taken;
    int64_t reserved[2];
};

/* The team's shared words, each on a cache line of its own. Zero-initialised, but for n_workers. `position` is
 * (run << 32 | first call of the stage in progress), (run << 32 | AIR_IDLE) between runs, or AIR_STOPPED in its low half. */
struct air_team {
    struct air_call *volatile calls;
    volatile int32_t n_calls;
    int32_t n_workers;
    struct air_stream *volatile stream;
    volatile uint64_t pass; /* number of the stream's pass that is being used */
    char *panels;           /* room for a panel of each worker, panel_nbytes apart */
    int64_t panel_nbytes;
    int64_t reserved0[2];
    volatile uint64_t position;
    volatile int32_t sleepers;
    volatile int32_t stop;
    volatile int32_t cancelled; /* the tasks that are left are counted, but not run */
    int32_t reserved1[11];
    volatile int32_t done;
    int32_t reserved2[15];
};

#define AIR_IDLE 0xffffffffu
#define AIR_STOPPED 0xfffffffeu

/* A table in a file, of which single rows are read. `failure` as in air_stream, with the row. */
struct air_table {
    air_read read;
    int64_t offset;
    int64_t row_nbytes;
    volatile uint64_t failure;
    int32_t file;
    int32_t reserved[7];
};

/* One of the banks: `n_experts` matrices of `matrix_nbytes` in a file, one after the other. */
struct air_bank {
    int64_t *table; /* where each matrix is, as an offset into the pool; or AIR_ABSENT, or AIR_COMING */
    float *heat;    /* how often each was chosen, late choices counting more */
    air_kernel pack;
    int64_t offset;
    int64_t matrix_nbytes;
    int32_t file;
    int32_t n_experts;
    int32_t n_rows;
    int32_t n_panels;
    int32_t first_chunk; /* number of the chunk that is the first matrix */
    int32_t reserved;
};

enum { AIR_ABSENT = -1, AIR_COMING = -2 };

/* A slot of the pool: the matrix it has, or is about to get, and the round that used it last. */
struct air_place {
    struct air_bank *bank;
    int32_t expert;
    int32_t round;
};

/* A cache of matrices in `n_slots` slots. Zero-initialised, but for what the host sets: up to `timeout_s`, and weight.
 * Job number j of all that readers ever get is to fill slot jobs[j % n_slots]. */
struct air_experts {
    struct air_bank *banks;
    struct air_place *places;
    int32_t *jobs;
    char *pool;
    char *raw; /* buffers of raw_nbytes, one for each reader */
    air_read read;
    int64_t slot_nbytes;
    int64_t raw_nbytes;
    int32_t n_banks;
    int32_t n_slots;
    float growth;
    float weight;
    int32_t drop_cache;
    int32_t timeout_s;
    int32_t round;
    int32_t page_nbytes; /* of this machine's memory */
    int64_t reserved1[4];

    volatile uint64_t posted; /* jobs that there are */
    volatile uint64_t begun;  /* jobs that a reader took */
    volatile uint64_t done;   /* jobs that readers are through with */
    volatile uint64_t failure; /* as in air_stream */
    volatile int32_t stop;
    int32_t reserved2;
    volatile uint64_t hits;
    volatile uint64_t misses;
    volatile uint64_t nbytes_read;
    volatile uint64_t waited_ns; /* by workers, added up */
    int64_t reserved3[7];
};

/* What a task works on: number `number` of a step's parts (an expert, or a sorted row), with a matrix. */
struct air_part {
    int32_t number;
    int32_t expert;
};

/* What a product needs of a bank: those of experts [first, last) that are chosen. Its tasks are the panels of `parts`,
 * which a request lists: those whose matrices are there, then the others as they are read. */
struct air_demand {
    struct air_experts *cache;
    struct air_bank *bank;
    struct air_part *parts;
    int32_t n_parts;
    int32_t first;
    int32_t last;
    int32_t by_row; /* a part is a row; else an expert with all of its rows */
};

/* Demands that are known together. The matrices of `ahead` requests before may be in use still. */
struct air_request {
    struct air_experts *cache;
    struct air_demand *const *demands;
    int32_t n_demands;
    int32_t ahead;
};

void air_worker(struct air_team *team, int32_t worker);
void air_run(struct air_team *team, struct air_call *calls, int32_t n_calls);
void air_stop(struct air_team *team);

int64_t air_pread(int32_t file, void *to, uint64_t nbytes, int64_t offset);
void air_reader(struct air_stream *stream);
void air_stream_stop(struct air_stream *stream);
void air_stream_skip_tail(struct air_team *team);
int32_t air_read_rows(void *table, void *ids, void *rows, void *, void *, void *, void *, void *, int32_t n_rows,
                      int32_t begin, int32_t end, int32_t worker);

int32_t air_experts_request(void *request, void *starts, void *, void *, void *, void *, void *, void *, int32_t n_rows,
                            int32_t begin, int32_t end, int32_t worker);
void air_expert_reader(struct air_experts *cache, int32_t buffer);
int32_t air_experts_forget(struct air_experts *cache);
void air_experts_stop(struct air_experts *cache);

/* Between the parts of the native code. */
#define AIR_INTERNAL __attribute__((visibility("hidden")))
AIR_INTERNAL char *air_stream_use(struct air_team *team, const struct air_fetch *fetch);
AIR_INTERNAL void air_stream_release(struct air_team *team, int32_t chunk);
AIR_INTERNAL int32_t air_experts_await(const struct air_demand *demand, int32_t expert);
AIR_INTERNAL void air_fail(volatile uint64_t *failure, int32_t where, int32_t reason);
/* Has the system forget the pages that hold [first, end) of a file, those at the ends included. */
AIR_INTERNAL void air_forget(int32_t file, int64_t first, int64_t end, int32_t page_nbytes);
AIR_INTERNAL int32_t air_read_fully(air_read read, int32_t file, char *to, int64_t nbytes, int64_t needed, int64_t offset);

#endif
