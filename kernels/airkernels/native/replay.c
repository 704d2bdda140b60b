/* The native half of the runtime: runs an array of kernel calls on a team of threads.
 *
 * It travels in the plan beside the kernels and needs no C library: the threads are made by the host
 * program and handed over (`air_worker` returns only when the team stops), waiting is by futex.
 *
 * One `air_run` is one parallel region. Calls up to a `sync` form a stage; its tasks are taken in chunks that
 * shrink towards the end. A stage ends when its tasks are done, not when all workers have arrived: a worker
 * that lost its core between two tasks holds nobody up, and joins whatever stage is in progress when it is back.
 */
#include "replay.h"
#include "sys.h"

enum { SPINS = 4000 };

/* Waits until the position differs from `seen`: spins while that is likely near, then sleeps. */
static void wait_change(struct air_team *team, uint64_t seen) {
    volatile int32_t *low = (volatile int32_t *)&team->position;
    for (int i = 0; i < SPINS; i++) {
        if (LOAD(team->position) != seen) return;
        air_relax();
    }
    __atomic_add_fetch(&team->sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&team->position, __ATOMIC_SEQ_CST) == seen && !LOAD(team->stop))
        air_sleep(low, (int32_t)seen, NULL);
    __atomic_sub_fetch(&team->sleepers, 1, __ATOMIC_SEQ_CST);
}

/* First call after the stage that begins with call `i`; adds up the tasks of the stage. */
static int32_t stage_end(const struct air_call *calls, int32_t n_calls, int32_t i, int32_t *n_tasks) {
    *n_tasks = 0;
    do *n_tasks += calls[i].n_tasks;
    while (!calls[i++].sync && i < n_calls);
    return i;
}

/* Publishes the first stage from call `i` on that has tasks, or the end of the run. */
static void advance(struct air_team *team, const struct air_call *calls, int32_t n_calls, int32_t i, uint64_t run) {
    uint64_t stage = AIR_IDLE;
    while (stage == AIR_IDLE && i < n_calls) {
        int32_t n_tasks, end = stage_end(calls, n_calls, i, &n_tasks);
        if (n_tasks) stage = (uint32_t)i;
        i = end;
    }
    team->done = 0;
    __atomic_store_n(&team->position, run << 32 | stage, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&team->sleepers, __ATOMIC_SEQ_CST))
        air_wake_all((volatile int32_t *)&team->position);
}

static void invoke_kernel(const struct air_call *call, air_kernel kernel, void *weights, int32_t begin, int32_t end,
                          int32_t worker) {
    void *const *p = call->pointers;
    kernel(weights, p[1], p[2], p[3], p[4], p[5], p[6], p[7], call->n_rows, begin, end, worker);
}

/* Runs tasks [begin, end) of a call whose rows are streamed, waiting for them first. A panel is made just before it is
 * used and is still in the cache then. */
static void invoke_streamed(struct air_team *team, const struct air_call *call, int32_t begin, int32_t end, int32_t worker) {
    const struct air_fetch *fetch = call->fetch;
    char *buffer = air_stream_use(team, fetch);
    if (!buffer) return;
    char *raw = buffer + fetch->skew;
    if (!fetch->pack) {
        invoke_kernel(call, call->kernel, raw, begin, end, worker);
        return;
    }
    char *panel = team->panels + worker * team->panel_nbytes;
    for (int32_t i = begin; i < end; i++) {
        char *first = panel - i * fetch->panel_nbytes; /* where panel 0 would be */
        fetch->pack(raw, first, NULL, NULL, NULL, NULL, NULL, NULL, fetch->n_rows, i, i + 1, worker);
        invoke_kernel(call, call->kernel, first, i, i + 1, worker);
    }
}

/* Runs tasks [begin, end) of a call on chosen matrices of a bank, each as soon as it is there. */
static void invoke_chosen(struct air_team *team, const struct air_call *call, int32_t begin, int32_t end, int32_t worker) {
    const struct air_demand *demand = call->demand;
    int32_t n_panels = demand->bank->n_panels;
    while (begin < end && begin / n_panels < demand->n_parts && !LOAD(team->cancelled)) {
        int32_t at = begin / n_panels, stop = (at + 1) * n_panels < end ? (at + 1) * n_panels : end;
        const struct air_part *part = &demand->parts[at];
        if (!air_experts_await(demand, part->expert)) return;
        int32_t shift = (part->number - at) * n_panels;
        invoke_kernel(call, call->kernel, call->pointers[0], begin + shift, stop + shift, worker);
        begin = stop;
    }
}

/* Runs tasks [begin, end), counted from the call's first. */
static void invoke(struct air_team *team, struct air_call *call, int32_t begin, int32_t end, int32_t worker) {
    if (call->demand) {
        invoke_chosen(team, call, begin, end, worker);
        return;
    }
    begin += call->first_task;
    end += call->first_task;
    if (!call->fetch) {
        if (!LOAD(team->cancelled)) invoke_kernel(call, call->kernel, call->pointers[0], begin, end, worker);
        return;
    }
    if (!LOAD(team->cancelled)) invoke_streamed(team, call, begin, end, worker);
    if (ADD(call->fetch->done, end - begin) == call->n_tasks) {
        STORE(call->fetch->done, 0);
        if (!LOAD(team->cancelled)) air_stream_release(team, call->fetch->chunk);
    }
}

/* Takes and runs chunks of one call until none are left; returns the number of tasks done here. */
static int32_t work(struct air_team *team, struct air_call *call, uint64_t run, int32_t worker) {
    int32_t n = call->n_tasks, mine = 0;
    uint64_t taken = LOAD(call->taken);
    while (taken >> 32 == run && (int32_t)taken < n) {
        int32_t begin = (int32_t)taken;
        int32_t chunk = (n - begin) / (2 * team->n_workers);
        if (chunk < 1) chunk = 1;
        if (!__atomic_compare_exchange_n(&call->taken, &taken, taken + (uint64_t)chunk, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            continue;
        invoke(team, call, begin, begin + chunk, worker);
        mine += chunk;
        taken = LOAD(call->taken);
    }
    return mine;
}

/* Helps with the stages of the run in progress until it ends. */
static void participate(struct air_team *team, int32_t worker) {
    for (;;) {
        uint64_t position = LOAD(team->position);
        if ((uint32_t)position >= AIR_STOPPED) return;
        struct air_call *calls = LOAD(team->calls);
        int32_t n_calls = LOAD(team->n_calls);
        /* An unchanged position means that the run was still on, so the array just read is its own. */
        if (LOAD(team->position) != position) continue;
        uint64_t run = position >> 32;
        int32_t first = (int32_t)(uint32_t)position, mine = 0, n_tasks;
        int32_t end = stage_end(calls, n_calls, first, &n_tasks);
        for (int32_t i = first; i < end; i++) mine += work(team, &calls[i], run, worker);
        if (mine && ADD(team->done, mine) == n_tasks)
            advance(team, calls, n_calls, end, run);
        else
            wait_change(team, position);
    }
}

void air_worker(struct air_team *team, int32_t worker) {
    while (!LOAD(team->stop)) {
        uint64_t position = LOAD(team->position);
        if ((uint32_t)position == AIR_IDLE || position == 0)
            wait_change(team, position);
        else
            participate(team, worker);
    }
}

void air_run(struct air_team *team, struct air_call *calls, int32_t n_calls) {
    if (team->n_workers == 1) {
        for (int32_t i = 0; i < n_calls; i++)
            if (calls[i].n_tasks > 0) invoke(team, &calls[i], 0, calls[i].n_tasks, 0);
        return;
    }
    uint64_t run = ((team->position >> 32) + 1) & 0xffffffffu;
    for (int32_t i = 0; i < n_calls; i++) calls[i].taken = run << 32;
    STORE(team->n_calls, n_calls);
    STORE(team->calls, calls);
    advance(team, calls, n_calls, 0, run);
    participate(team, 0);
}

void air_stop(struct air_team *team) {
    STORE(team->stop, 1);
    /* The low half, which sleepers compare, must change too: one may be about to sleep on AIR_IDLE. */
    __atomic_store_n(&team->position, (team->position & ~(uint64_t)0xffffffffu) | AIR_STOPPED, __ATOMIC_SEQ_CST);
    air_wake_all((volatile int32_t *)&team->position);
}

/* The code generator may call these even where no C library is linked. */
__attribute__((visibility("hidden"))) void *memset(void *to, int value, size_t n) {
    unsigned char *p = to;
    while (n--) *p++ = (unsigned char)value;
    return to;
}

__attribute__((visibility("hidden"))) void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    unsigned char *p = to;
    const unsigned char *q = from;
    while (n--) *p++ = *q++;
    return to;
}

__attribute__((visibility("hidden"))) void *memmove(void *to, const void *from, size_t n) {
    unsigned char *p = to;
    const unsigned char *q = from;
    if (p < q) while (n--) *p++ = *q++;
    else while (n--) p[n] = q[n];
    return to;
}
