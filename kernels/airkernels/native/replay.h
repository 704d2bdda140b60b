/* Memory shared by the host program and the native replay loop; `airrun.native` mirrors these structs. */
#ifndef AIR_REPLAY_H
#define AIR_REPLAY_H

#include <stddef.h>
#include <stdint.h>

typedef int32_t (*air_kernel)(void *, void *, void *, void *, void *, void *, void *, void *, int32_t n_rows,
                              int32_t begin, int32_t end, int32_t worker);

/* One kernel call of a program, 128 bytes. `next` is the first task not yet taken; zero between runs. */
struct air_call {
    air_kernel kernel;
    void *pointers[8];
    int32_t n_rows;
    int32_t n_tasks;
    int32_t sync;
    volatile int32_t next;
    int32_t reserved[10];
};

/* The team's shared words, each on a cache line of its own. Zero-initialised, but for n_workers. */
struct air_team {
    struct air_call *calls;
    int32_t n_calls;
    int32_t n_workers;
    int32_t reserved0[12];
    volatile int32_t run;
    volatile int32_t run_sleepers;
    volatile int32_t stop;
    int32_t reserved1[13];
    volatile int32_t stage;
    volatile int32_t stage_sleepers;
    int32_t reserved2[14];
    volatile int32_t arrived;
    int32_t reserved3[15];
};

void air_worker(struct air_team *team, int32_t worker);
void air_run(struct air_team *team, struct air_call *calls, int32_t n_calls);
void air_stop(struct air_team *team);

#endif
