/* Memory shared by the host program and the native replay loop; `airrun.native` mirrors these structs. */
#ifndef AIR_REPLAY_H
#define AIR_REPLAY_H

#include <stddef.h>
#include <stdint.h>

typedef int32_t (*air_kernel)(void *, void *, void *, void *, void *, void *, void *, void *, int32_t n_rows,
                              int32_t begin, int32_t end, int32_t worker);

/* One kernel call of a program, 128 bytes. `taken` is (run << 32 | tasks taken), set anew by every run.
 * Arrays of calls must outlive the team: a worker that lost its core may look at one after its run has ended. */
struct air_call {
    air_kernel kernel;
    void *pointers[8];
    int32_t n_rows;
    int32_t n_tasks;
    int32_t sync;
    int32_t reserved0;
    volatile uint64_t taken;
    int32_t reserved1[8];
};

/* The team's shared words, each on a cache line of its own. Zero-initialised, but for n_workers. `position` is
 * (run << 32 | first call of the stage in progress), (run << 32 | AIR_IDLE) between runs, or AIR_STOPPED in its low half. */
struct air_team {
    struct air_call *volatile calls;
    volatile int32_t n_calls;
    int32_t n_workers;
    int32_t reserved0[12];
    volatile uint64_t position;
    volatile int32_t sleepers;
    volatile int32_t stop;
    volatile int32_t cancelled; /* set by the host: the tasks that are left are counted, but not run */
    int32_t reserved1[11];
    volatile int32_t done;
    int32_t reserved2[15];
};

#define AIR_IDLE 0xffffffffu
#define AIR_STOPPED 0xfffffffeu

void air_worker(struct air_team *team, int32_t worker);
void air_run(struct air_team *team, struct air_call *calls, int32_t n_calls);
void air_stop(struct air_team *team);

#endif
