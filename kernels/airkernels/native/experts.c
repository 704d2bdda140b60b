/* Banks of experts that do not fit in memory: a cache of their matrices, filled once a router has chosen.
 *
 * `air_experts_request` finds what is missing, makes room where it will be missed least, and has reader threads read it
 * all. Products begin with the matrices that are there and go on with the others as they come. Which matrices a product
 * finds depends on what ran before, but never what is computed with them. Every wait is bounded: only readers wait for
 * the disk itself.
 */
#include "replay.h"
#include "sys.h"

enum { SPINS = 200 };

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

/* The slot that is worth least of those that no round from `oldest` on uses; -1 if there is none. */
static int32_t coldest(const struct air_experts *c, int32_t oldest) {
    int32_t found = -1;
    float least = 0.0f;
    for (int32_t i = 0; i < c->n_slots; i++) {
        const struct air_place *place = &c->places[i];
        if (!place->bank) return i;
        if (place->round >= oldest) continue;
        float heat = place->bank->heat[place->expert];
        if (found >= 0 && heat >= least) continue;
        found = i;
        least = heat;
    }
    return found;
}

/* Lists the parts that are computed with an expert's matrix. */
static void list(struct air_demand *demand, const int32_t *starts, int32_t expert) {
    if (!demand->by_row) {
        demand->parts[demand->n_parts++] = (struct air_part){expert, expert};
        return;
    }
    for (int32_t row = starts[expert]; row < starts[expert + 1]; row++)
        demand->parts[demand->n_parts++] = (struct air_part){row, expert};
}

/* Counts the uses of a demand's experts; lists those that are there, and holds on to them. */
static void use_present(struct air_experts *c, struct air_demand *demand, const int32_t *starts) {
    struct air_bank *bank = demand->bank;
    demand->n_parts = 0;
    for (int32_t e = demand->first; e < demand->last; e++) {
        if (starts[e + 1] == starts[e]) continue;
        bank->heat[e] += c->weight;
        if (bank->table[e] < 0) continue;
        c->places[bank->table[e] / c->slot_nbytes].round = c->round;
        c->hits++;
        list(demand, starts, e);
    }
}

/* Lists a demand's experts that are not there, and has them read; false if there are not enough slots. */
static int read_missing(struct air_experts *c, struct air_demand *demand, const int32_t *starts, int32_t oldest) {
    struct air_bank *bank = demand->bank;
    for (int32_t e = demand->first; e < demand->last; e++) {
        if (starts[e + 1] == starts[e] || LOAD(bank->table[e]) != AIR_ABSENT) continue;
        int32_t slot = coldest(c, oldest);
        if (slot < 0) return 0;
        struct air_place *place = &c->places[slot];
        if (place->bank) place->bank->table[place->expert] = AIR_ABSENT;
        *place = (struct air_place){bank, e, c->round};
        bank->table[e] = AIR_COMING;
        c->jobs[c->posted % (uint64_t)c->n_slots] = slot;
        ADD(c->posted, 1);
        air_wake_all((volatile int32_t *)&c->posted);
        c->misses++;
        list(demand, starts, e);
    }
    return 1;
}

int32_t air_experts_request(void *p0, void *p1, void *p2, void *p3, void *p4, void *p5, void *p6, void *p7,
                            int32_t n_rows, int32_t begin, int32_t end, int32_t worker) {
    (void)p2, (void)p3, (void)p4, (void)p5, (void)p6, (void)p7, (void)n_rows, (void)begin, (void)end, (void)worker;
    const struct air_request *request = p0;
    const int32_t *starts = p1;
    struct air_experts *c = request->cache;
    c->round++;
    age(c);
    for (int32_t i = 0; i < request->n_demands; i++) use_present(c, request->demands[i], starts);
    for (int32_t i = 0; i < request->n_demands && !LOAD(c->failure); i++)
        if (!read_missing(c, request->demands[i], starts, c->round - request->ahead))
            air_fail(&c->failure, request->demands[i]->bank->first_chunk, ERRNO_NOMEM);
    return 0;
}

/* Waits until a matrix is there; false if it never will be. */
int32_t air_experts_await(const struct air_demand *demand, int32_t expert) {
    struct air_experts *c = demand->cache;
    int64_t *entry = &demand->bank->table[expert];
    if (LOAD(*entry) >= 0) return 1;
    uint64_t started = air_nanoseconds();
    for (int32_t i = 0;; i++) {
        int32_t seen = (int32_t)LOAD(c->done);
        if (LOAD(*entry) >= 0) break;
        if (LOAD(c->failure)) return 0;
        if (i < SPINS)
            air_relax();
        else
            air_sleep((volatile int32_t *)&c->done, seen, &LOOK_AGAIN);
        if (air_nanoseconds() - started > (uint64_t)c->timeout_s * 1000000000u) {
            air_fail(&c->failure, demand->bank->first_chunk + expert, ERRNO_TIMEDOUT);
            return 0;
        }
    }
    ADD(c->waited_ns, air_nanoseconds() - started);
    return 1;
}

/* Reads one matrix and makes its panels; where that fails it never is there. */
static void load(struct air_experts *c, int32_t slot, char *raw) {
    const struct air_place *place = &c->places[slot];
    struct air_bank *bank = place->bank;
    int64_t offset = bank->offset + place->expert * bank->matrix_nbytes;
    int64_t first = offset / AIR_READ_UNIT * AIR_READ_UNIT, needed = offset + bank->matrix_nbytes - first;
    int64_t nbytes = (needed + AIR_READ_UNIT - 1) / AIR_READ_UNIT * AIR_READ_UNIT;
    int32_t failed = air_read_fully(c->read, bank->file, raw, nbytes, needed, first);
    if (c->drop_cache) air_forget(bank->file, first, first + needed, c->page_nbytes);
    if (failed) {
        air_fail(&c->failure, bank->first_chunk + place->expert, failed);
        return;
    }
    bank->pack(raw + (offset - first), c->pool + slot * c->slot_nbytes, NULL, NULL, NULL, NULL, NULL, NULL,
               bank->n_rows, 0, bank->n_panels, 0);
    ADD(c->nbytes_read, (uint64_t)nbytes);
    STORE(bank->table[place->expert], slot * c->slot_nbytes);
}

/* Takes a job and does it; false if there is none. */
static int work(struct air_experts *c, char *raw) {
    uint64_t job = LOAD(c->begun);
    int32_t slot;
    do {
        if (job == LOAD(c->posted)) return 0;
        slot = c->jobs[job % (uint64_t)c->n_slots];
    } while (!__atomic_compare_exchange_n(&c->begun, &job, job + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    load(c, slot, raw);
    ADD(c->done, 1);
    air_wake_all((volatile int32_t *)&c->done);
    return 1;
}

void air_expert_reader(struct air_experts *c, int32_t buffer) {
    char *raw = c->raw + buffer * c->raw_nbytes;
    while (!LOAD(c->stop)) {
        int32_t seen = (int32_t)LOAD(c->posted);
        if (!work(c, raw)) air_sleep((volatile int32_t *)&c->posted, seen, &LOOK_AGAIN);
    }
}

/* Takes back the jobs that nobody has begun, and waits for the others; false if the disk does not answer. */
static int settle(struct air_experts *c) {
    uint64_t begun = LOAD(c->begun), started = air_nanoseconds();
    while (!__atomic_compare_exchange_n(&c->begun, &begun, c->posted, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {}
    ADD(c->done, c->posted - begun);
    for (uint64_t done; (done = LOAD(c->done)) != c->posted; air_sleep((volatile int32_t *)&c->done, (int32_t)done, &LOOK_AGAIN))
        if (air_nanoseconds() - started > (uint64_t)c->timeout_s * 1000000000u) return 0;
    return 1;
}

/* Takes all matrices for absent; not while products run. False if readers are at work still. */
int32_t air_experts_forget(struct air_experts *c) {
    if (!settle(c)) return 0;
    for (int32_t i = 0; i < c->n_slots; i++) c->places[i].bank = NULL;
    for (int32_t b = 0; b < c->n_banks; b++)
        for (int32_t e = 0; e < c->banks[b].n_experts; e++) c->banks[b].table[e] = AIR_ABSENT;
    c->failure = 0;
    return 1;
}

void air_experts_stop(struct air_experts *c) {
    STORE(c->stop, 1);
    air_wake_all((volatile int32_t *)&c->posted);
}
