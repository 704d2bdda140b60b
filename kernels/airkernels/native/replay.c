/* The native half of the runtime: runs an array of kernel calls on a team of threads.
 *
 * It travels in the plan beside the kernels and needs no C library: the threads are made by the host
 * program and handed over (`air_worker` returns only when the team stops), waiting is by futex.
 *
 * One `air_run` is one parallel region. Every worker walks the same array; the tasks of a call are taken
 * in chunks that shrink towards the end, so that a worker that lost its core for a while costs little.
 */
#include "replay.h"

#if defined(__x86_64__)
static long futex(volatile int32_t *word, long op, long value) {
    long result;
    register long r10 __asm__("r10") = 0;
    __asm__ volatile("syscall" : "=a"(result) : "a"(202L), "D"(word), "S"(op), "d"(value), "r"(r10) : "rcx", "r11", "memory");
    return result;
}
static void relax(void) { __asm__ volatile("pause" ::: "memory"); }
#elif defined(__aarch64__)
static long futex(volatile int32_t *word, long op, long value) {
    register long x8 __asm__("x8") = 98;
    register long x0 __asm__("x0") = (long)word;
    register long x1 __asm__("x1") = op;
    register long x2 __asm__("x2") = value;
    register long x3 __asm__("x3") = 0;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
static void relax(void) { __asm__ volatile("yield" ::: "memory"); }
#else
#error "no futex for this architecture"
#endif

enum { FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129, SPINS = 4000 };

#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
#define STORE(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELEASE)
#define ADD(x, v) __atomic_add_fetch(&(x), (v), __ATOMIC_ACQ_REL)

/* Waits until *word differs from `seen`: spins while an answer is likely near, then sleeps. */
static void wait_change(volatile int32_t *word, int32_t seen, volatile int32_t *sleepers) {
    for (int i = 0; i < SPINS; i++) {
        if (LOAD(*word) != seen) return;
        relax();
    }
    __atomic_add_fetch(sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == seen) futex(word, FUTEX_WAIT_PRIVATE, seen);
    __atomic_sub_fetch(sleepers, 1, __ATOMIC_SEQ_CST);
}

static void change(volatile int32_t *word, volatile int32_t *sleepers) {
    __atomic_add_fetch(word, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(sleepers, __ATOMIC_SEQ_CST)) futex(word, FUTEX_WAKE_PRIVATE, 0x7fffffff);
}

/* The last worker to arrive resets the task counters of the stage that has just ended. */
static void barrier(struct air_team *team, int32_t first, int32_t last) {
    if (team->n_workers == 1) {
        for (int32_t i = first; i <= last; i++) team->calls[i].next = 0;
        return;
    }
    int32_t seen = LOAD(team->stage);
    if (ADD(team->arrived, 1) == team->n_workers) {
        for (int32_t i = first; i <= last; i++) team->calls[i].next = 0;
        STORE(team->arrived, 0);
        change(&team->stage, &team->stage_sleepers);
    } else {
        wait_change(&team->stage, seen, &team->stage_sleepers);
    }
}

static void invoke(const struct air_call *call, int32_t begin, int32_t end, int32_t worker) {
    void *const *p = call->pointers;
    call->kernel(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], call->n_rows, begin, end, worker);
}

static void work(struct air_call *call, int32_t n_workers, int32_t worker) {
    int32_t n = call->n_tasks;
    if (n_workers == 1) {
        if (n > 0) invoke(call, 0, n, worker);
        return;
    }
    int32_t begin = LOAD(call->next);
    while (begin < n) {
        int32_t chunk = (n - begin) / (2 * n_workers);
        int32_t end = begin + (chunk > 0 ? chunk : 1);
        if (__atomic_compare_exchange_n(&call->next, &begin, end, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            invoke(call, begin, end, worker);
            begin = LOAD(call->next);
        }
    }
}

static void walk(struct air_team *team, int32_t worker) {
    int32_t first = 0, n_calls = team->n_calls;
    for (int32_t i = 0; i < n_calls; i++) {
        struct air_call *call = &team->calls[i];
        work(call, team->n_workers, worker);
        if (call->sync || i == n_calls - 1) {
            barrier(team, first, i);
            first = i + 1;
        }
    }
}

void air_worker(struct air_team *team, int32_t worker) {
    int32_t seen = 0;
    for (;;) {
        wait_change(&team->run, seen, &team->run_sleepers);
        seen = LOAD(team->run);
        if (LOAD(team->stop)) return;
        walk(team, worker);
    }
}

void air_run(struct air_team *team, struct air_call *calls, int32_t n_calls) {
    if (n_calls <= 0) return;
    team->calls = calls;
    team->n_calls = n_calls;
    if (team->n_workers > 1) change(&team->run, &team->run_sleepers);
    walk(team, 0);
}

void air_stop(struct air_team *team) {
    STORE(team->stop, 1);
    change(&team->run, &team->run_sleepers);
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
