/* Banks of experts that do not fit in memory: a cache of their matrices, filled once a router has chosen.
 *
 * `air_experts_fetch` finds what is missing, makes room where it will be missed least, has reader threads read it all
 * together, and waits for them. Which matrices a step finds depends on what ran before, but never what is computed with
 * them. Every wait is bounded: only readers wait for the disk itself.
 */
#include "replay.h"
#include "sys.h"

enum { SPINS = 200, PAGE = 4096 };

static const struct air_time LOOK_AGAIN = {0, 200000000};
static const float LARGE = 1e30f;

/* Makes the use of now worth more than any before by the cache's growth; keeps the numbers within floats. */
static void age(struct air_experts *c) {
    c->weight *= c->growth;
    if (c->weight < LARGE) return;
    for (int32_t b = 0; b < c->n_banks; b++)
        for (int32_t e = 0; e < c->banks[b].n_experts; e++) c->banks[b].heat[e] /= c->weight;
    c->weight = 1.0f;
}

/* The slot that is worth least of those which this round does not use; -1 if it uses all. */
static int32_t coldest(const struct air_experts *c) {
    int32_t found = -1;
    float least = 0.0f;
    for (int32_t i = 0; i < c->n_slots; i++) {
        const struct air_place *place = &c->places[i];
        if (!place->bank) return i;
        float heat = place->bank->heat[place->expert];
        if (place->round == c->round || (found >= 0 && heat >= least)) continue;
        found = i;
        least = heat;
    }
    return found;
}

static int is_chosen(const int32_t *starts, int32_t expert) { return starts[expert + 1] > starts[expert]; }

/* Counts the uses of a bank's chosen experts, and holds on to those that are there. */
static void touch(struct air_experts *c, struct air_bank *bank, const int32_t *starts, int32_t first, int32_t last) {
    for (int32_t e = first; e < last; e++) {
        if (!is_chosen(starts, e)) continue;
        bank->heat[e] += c->weight;
        if (bank->table[e] < 0) continue;
        c->places[bank->table[e] / c->slot_nbytes].round = c->round;
        c->hits++;
    }
}

/* Lists those that are not there, with the slots they get; false if there are not enough. */
static int list(struct air_experts *c, struct air_bank *bank, const int32_t *starts, int32_t first, int32_t last) {
    for (int32_t e = first; e < last; e++) {
        if (!is_chosen(starts, e) || bank->table[e] >= 0) continue;
        int32_t slot = coldest(c);
        if (slot < 0) return 0;
        struct air_place *place = &c->places[slot];
        if (place->bank && place->bank->table[place->expert] == slot * c->slot_nbytes) place->bank->table[place->expert] = -1;
        *place = (struct air_place){bank, e, c->round};
        c->jobs[c->n_jobs++] = slot;
        c->misses++;
    }
    return 1;
}

/* After a run that was cut short, readers may be at work still: takes back what they have not begun, and waits; false if
 * the disk does not answer. */
static int finish_round(struct air_experts *c) {
    uint64_t work = LOAD(c->work);
    while (!__atomic_compare_exchange_n(&c->work, &work, work & ~(uint64_t)0xffffffffu, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {}
    int32_t begun = c->n_jobs - (int32_t)(uint32_t)work;
    if (LOAD(c->done) >= begun) return 1;
    uint64_t started = air_nanoseconds();
    for (int32_t done; (done = LOAD(c->done)) < begun; air_sleep(&c->done, done, &LOOK_AGAIN))
        if (air_nanoseconds() - started > (uint64_t)c->timeout_s * 1000000000u) return 0;
    c->n_jobs = c->done = 0;
    return 1;
}

/* Where the run has failed, kernels go on to its end: they get something to read. */
static void pretend(struct air_experts *c, const struct air_demand *demand, const int32_t *starts) {
    for (int32_t b = 0; b < demand->n_banks; b++) {
        struct air_bank *bank = &c->banks[demand->banks[b]];
        for (int32_t e = demand->first; e < demand->last; e++)
            if (is_chosen(starts, e) && bank->table[e] < 0) bank->table[e] = 0;
    }
}

/* Waits until the jobs of this round are done. */
static void await_jobs(struct air_experts *c) {
    uint64_t started = air_nanoseconds();
    for (int32_t i = 0, done; (done = LOAD(c->done)) < c->n_jobs; i++) {
        if (i < SPINS)
            air_relax();
        else
            air_sleep(&c->done, done, &LOOK_AGAIN);
        if (air_nanoseconds() - started > (uint64_t)c->timeout_s * 1000000000u) {
            const struct air_place *place = &c->places[c->jobs[0]];
            air_fail(&c->failure, place->bank->first_chunk + place->expert, ERRNO_TIMEDOUT);
            return;
        }
    }
    ADD(c->waited_ns, air_nanoseconds() - started);
}

int32_t air_experts_fetch(void *p0, void *p1, void *p2, void *p3, void *p4, void *p5, void *p6, void *p7,
                          int32_t n_rows, int32_t begin, int32_t end, int32_t worker) {
    (void)p2, (void)p3, (void)p4, (void)p5, (void)p6, (void)p7, (void)n_rows, (void)begin, (void)end, (void)worker;
    const struct air_demand *demand = p0;
    const int32_t *starts = p1;
    struct air_experts *c = demand->cache;
    if (!finish_round(c)) {
        air_fail(&c->failure, c->banks[demand->banks[0]].first_chunk, ERRNO_TIMEDOUT);
        pretend(c, demand, starts);
        return 0;
    }
    c->round++;
    c->n_jobs = 0;
    STORE(c->done, 0);
    age(c);
    int enough = 1;
    for (int32_t b = 0; b < demand->n_banks; b++)
        touch(c, &c->banks[demand->banks[b]], starts, demand->first, demand->last);
    for (int32_t b = 0; b < demand->n_banks; b++)
        enough &= list(c, &c->banks[demand->banks[b]], starts, demand->first, demand->last);
    if (!enough) air_fail(&c->failure, c->banks[demand->banks[0]].first_chunk, ERRNO_NOMEM);
    __atomic_store_n(&c->work, (uint64_t)(uint32_t)c->round << 32 | (uint32_t)c->n_jobs, __ATOMIC_SEQ_CST);
    if (c->n_jobs) {
        air_wake_all((volatile int32_t *)&c->work);
        await_jobs(c);
    }
    if (LOAD(c->failure)) pretend(c, demand, starts);
    return 0;
}

/* Reads one matrix and makes its panels. Where that fails there is something to compute with, but it is not kept. */
static void load(struct air_experts *c, int32_t slot, char *raw) {
    const struct air_place *place = &c->places[slot];
    struct air_bank *bank = place->bank;
    int64_t offset = bank->offset + place->expert * bank->matrix_nbytes, first = offset / PAGE * PAGE;
    int64_t needed = offset + bank->matrix_nbytes - first, nbytes = (needed + PAGE - 1) / PAGE * PAGE;
    int32_t failed = air_read_fully(c->read, bank->file, raw, nbytes, needed, first);
    if (c->drop_cache) air_syscall(SYS_FADVISE64, bank->file, first, nbytes, FADVISE_DONTNEED);
    if (failed)
        air_fail(&c->failure, bank->first_chunk + place->expert, failed);
    else
        bank->pack(raw + (offset - first), c->pool + slot * c->slot_nbytes, NULL, NULL, NULL, NULL, NULL, NULL,
                   bank->n_rows, 0, bank->n_panels, 0);
    ADD(c->nbytes_read, (uint64_t)nbytes);
    STORE(bank->table[place->expert], slot * c->slot_nbytes);
}

/* Takes a job of the round in progress and does it; false if none is left. */
static int work(struct air_experts *c, char *raw) {
    uint64_t left = LOAD(c->work);
    do {
        if (!(uint32_t)left) return 0;
    } while (!__atomic_compare_exchange_n(&c->work, &left, left - 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    load(c, c->jobs[(uint32_t)left - 1], raw);
    ADD(c->done, 1);
    air_wake_all(&c->done);
    return 1;
}

void air_expert_reader(struct air_experts *c, int32_t buffer) {
    char *raw = c->raw + buffer * c->raw_nbytes;
    while (!LOAD(c->stop))
        if (!work(c, raw)) air_sleep((volatile int32_t *)&c->work, 0, &LOOK_AGAIN);
}

void air_experts_forget(struct air_experts *c) {
    if (!finish_round(c)) return;
    for (int32_t i = 0; i < c->n_slots; i++) c->places[i].bank = NULL;
    for (int32_t b = 0; b < c->n_banks; b++)
        for (int32_t e = 0; e < c->banks[b].n_experts; e++) c->banks[b].table[e] = -1;
    c->failure = 0;
}

void air_experts_stop(struct air_experts *c) {
    STORE(c->stop, 1);
    air_wake_all((volatile int32_t *)&c->work);
}
