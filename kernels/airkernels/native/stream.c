/* Weights that are read while the model runs: a ring of buffers, filled ahead by reader threads, used up by workers.
 *
 * The sequence of chunks is the same in every pass, so readers never ask what comes next: while a token's logits are
 * sampled they already read the first layers of the next token. Every wait is bounded, and the first failure (of a read,
 * or of a reader that does not answer) ends all of them.
 */
#include "replay.h"
#include "sys.h"

enum { SPINS = 200 };

static const struct air_time LOOK_AGAIN = {0, 200000000};

int64_t air_pread(int32_t file, void *to, uint64_t nbytes, int64_t offset) {
    return air_syscall(SYS_PREAD64, file, (long)to, (long)nbytes, offset);
}

/* Keeps the first failure. */
void air_fail(volatile uint64_t *failure, int32_t where, int32_t reason) {
    uint64_t none = 0, found = (uint64_t)(uint32_t)where << 32 | (uint32_t)reason;
    __atomic_compare_exchange_n(failure, &none, found, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* Waits until `*word` is `wanted`; false if the stream ended first. A worker of `team` waits only so long, and not once
 * the team was cancelled; a reader (null) waits for ever. */
static int await(struct air_stream *s, volatile int32_t *word, int32_t wanted, int32_t chunk, struct air_team *team) {
    for (int i = 0; i < SPINS; i++) {
        if (LOAD(*word) == wanted) return 1;
        air_relax();
    }
    uint64_t started = air_nanoseconds();
    for (;;) {
        int32_t seen = LOAD(*word);
        if (seen == wanted) break;
        if (LOAD(s->stop) || LOAD(s->failure) || (team && LOAD(team->cancelled))) return 0;
        air_sleep(word, seen, &LOOK_AGAIN);
        if (team && air_nanoseconds() - started > (uint64_t)s->timeout_s * 1000000000u) {
            air_fail(&s->failure, chunk, ERRNO_TIMEDOUT);
            return 0;
        }
    }
    if (team) ADD(s->stalled_ns, air_nanoseconds() - started);
    return 1;
}

/* Reads until `needed` bytes are there. Returns 0, errno or AIR_TRUNCATED. */
int32_t air_read_fully(air_read read, int32_t file, char *to, int64_t nbytes, int64_t needed, int64_t offset) {
    int64_t got = 0;
    while (got < needed) {
        int64_t n = read(file, to + got, (uint64_t)(nbytes - got), offset + got);
        if (n == -ERRNO_INTR) continue;
        /* a file that ends within a unit was read up to its end, and past the page cache there is no going on there */
        if (n == 0 || (n == -ERRNO_INVAL && got % AIR_READ_UNIT)) return AIR_TRUNCATED;
        if (n < 0) return (int32_t)-n;
        /* reads past the page cache go on at a unit only; where that would be no progress, they go on where they are */
        got = n >= AIR_READ_UNIT && got + n < needed ? (got + n) / AIR_READ_UNIT * AIR_READ_UNIT : got + n;
    }
    return 0;
}

/* Offsets are rounded to pages of memory, which may be larger than the units of reading. */
static int64_t round_down(int64_t at, int32_t page_nbytes) { return at - at % page_nbytes; }

void air_forget(int32_t file, int64_t first, int64_t end, int32_t page_nbytes) {
    first = round_down(first, page_nbytes);
    end = round_down(end + page_nbytes - 1, page_nbytes);
    if (first < end) air_syscall(SYS_FADVISE64, file, first, end - first, FADVISE_DONTNEED);
}

/* Brings the pages of a mapped chunk in; where the system is too old to be asked, by touching them. */
static int32_t populate(const struct air_stream *s, const struct air_chunk *chunk) {
    int64_t first = round_down(chunk->offset, s->page_nbytes), nbytes = chunk->offset + chunk->needed - first;
    char *pages = s->maps[chunk->map] + first;
    long n = air_syscall(SYS_MADVISE, (long)pages, nbytes, MADVISE_POPULATE_READ, 0);
    if (n == -ERRNO_INVAL || n == -ERRNO_NOSYS) {
        for (int64_t at = 0; at < nbytes; at += s->page_nbytes) (void)*(volatile char *)(pages + at);
        return 0;
    }
    return (int32_t)-n;
}

/* Lets go of the pages of a mapped chunk that was used. One that the next chunk begins in stays, and goes with that. */
static void release_map(const struct air_stream *s, int32_t index) {
    const struct air_chunk *chunk = &s->chunks[index], *next = chunk + 1;
    int64_t first = round_down(chunk->offset, s->page_nbytes), end = chunk->offset + chunk->needed;
    int64_t last = round_down(end, s->page_nbytes);
    if (index + 1 < s->n_chunks && next->file == chunk->file && last <= next->offset && next->offset <= end) end = last;
    if (first == end) return;
    air_syscall(SYS_MADVISE, (long)(s->maps[chunk->map] + first), end - first, MADVISE_DONTNEED, 0);
    if (s->drop_cache) air_forget(chunk->file, first, end, s->page_nbytes);
}

static int32_t load(struct air_stream *s, const struct air_chunk *chunk, char *buffer) {
    if (s->maps) return populate(s, chunk);
    int32_t failed = air_read_fully(s->read, chunk->file, buffer, chunk->nbytes, chunk->needed, chunk->offset);
    if (s->drop_cache) air_forget(chunk->file, chunk->offset, chunk->offset + chunk->needed, s->page_nbytes);
    return failed;
}

static char *buffer_of(const struct air_stream *s, uint64_t number) {
    if (s->maps) {
        const struct air_chunk *chunk = &s->chunks[number % (uint64_t)s->n_chunks];
        return s->maps[chunk->map] + chunk->offset;
    }
    return s->buffers + (int64_t)(number % (uint64_t)s->n_slots) * s->slot_nbytes;
}

static int is_skipped(struct air_stream *s, uint64_t number) {
    uint64_t pass = number / (uint64_t)s->n_chunks;
    return (int32_t)(number % (uint64_t)s->n_chunks) >= s->tail && (LOAD(s->short_passes) >> (pass & 63) & 1);
}

/* A reader: takes the next chunk of the sequence, waits for its slot, reads; until the stream ends. */
void air_reader(struct air_stream *s) {
    while (!LOAD(s->stop) && !LOAD(s->failure)) {
        uint64_t number = __atomic_fetch_add(&s->next, 1, __ATOMIC_ACQ_REL);
        struct air_slot *slot = &s->slots[number % (uint64_t)s->n_slots];
        int32_t index = (int32_t)(number % (uint64_t)s->n_chunks);
        if (!await(s, &slot->free, (int32_t)number, index, NULL)) return;
        if (!is_skipped(s, number)) {
            const struct air_chunk *chunk = &s->chunks[index];
            int32_t failed = load(s, chunk, buffer_of(s, number));
            if (failed) {
                air_fail(&s->failure, index, failed);
                return;
            }
            ADD(s->nbytes_read, (uint64_t)chunk->nbytes);
            ADD(s->n_reads, 1);
        }
        STORE(slot->ready, (int32_t)(number + 1));
        air_wake_all(&slot->ready);
    }
}

void air_stream_stop(struct air_stream *s) {
    STORE(s->stop, 1);
    for (int32_t i = 0; i < s->n_slots; i++) {
        air_wake_all(&s->slots[i].free);
        air_wake_all(&s->slots[i].ready);
    }
}

static uint64_t number_of(const struct air_team *team, const struct air_stream *s, int32_t chunk) {
    return team->pass * (uint64_t)s->n_chunks + (uint64_t)chunk;
}

/* The buffer of a chunk of the pass in progress, once it is there; null, and the team cancelled, if it never will be. */
char *air_stream_use(struct air_team *team, const struct air_fetch *fetch) {
    struct air_stream *s = team->stream;
    uint64_t number = number_of(team, s, fetch->chunk);
    struct air_slot *slot = &s->slots[number % (uint64_t)s->n_slots];
    if (await(s, &slot->ready, (int32_t)(number + 1), fetch->chunk, team)) return buffer_of(s, number);
    STORE(team->cancelled, 1);
    return NULL;
}

/* Gives the slot of a chunk that was used to the chunk that comes n_slots later. */
void air_stream_release(struct air_team *team, int32_t chunk) {
    struct air_stream *s = team->stream;
    uint64_t number = number_of(team, s, chunk);
    struct air_slot *slot = &s->slots[number % (uint64_t)s->n_slots];
    if (s->maps) release_map(s, chunk);
    STORE(slot->free, (int32_t)(number + (uint64_t)s->n_slots));
    air_wake_all(&slot->free);
}

/* Ends a short pass: lets go of the chunks that it does without. */
void air_stream_skip_tail(struct air_team *team) {
    struct air_stream *s = team->stream;
    for (int32_t chunk = s->tail; chunk < s->n_chunks; chunk++) {
        struct air_fetch fetch = {.chunk = chunk};
        if (!air_stream_use(team, &fetch)) return;
        air_stream_release(team, chunk);
    }
}

/* A kernel: row ids[i] of a table in a file goes to rows[i], for i in [begin, end). */
int32_t air_read_rows(void *table, void *ids, void *rows, void *p3, void *p4, void *p5, void *p6, void *p7,
                      int32_t n_rows, int32_t begin, int32_t end, int32_t worker) {
    (void)p3, (void)p4, (void)p5, (void)p6, (void)p7, (void)n_rows, (void)worker;
    struct air_table *t = table;
    for (int32_t i = begin; i < end; i++) {
        int64_t id = ((const int32_t *)ids)[i];
        char *row = (char *)rows + i * t->row_nbytes;
        int32_t failed = air_read_fully(t->read, t->file, row, t->row_nbytes, t->row_nbytes, t->offset + id * t->row_nbytes);
        if (failed) air_fail(&t->failure, (int32_t)id, failed);
    }
    return 0;
}
