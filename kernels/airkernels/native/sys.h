/* The few system calls that the native code makes; it is linked to no C library. */
#ifndef AIR_SYS_H
#define AIR_SYS_H

#include <stddef.h>
#include <stdint.h>

/* Nothing runs without the needed calls, which plans name as the kernel does; advice may go unheard. */
#if defined(__x86_64__)
enum needed_calls { SYS_PREAD64 = 17, SYS_FUTEX = 202, SYS_CLOCK_GETTIME = 228 };
enum advice { SYS_MADVISE = 28, SYS_FADVISE64 = 221 };
static inline long air_syscall(long number, long a, long b, long c, long d) {
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}
static inline void air_relax(void) { __asm__ volatile("pause" ::: "memory"); }
#elif defined(__aarch64__)
enum needed_calls { SYS_PREAD64 = 67, SYS_FUTEX = 98, SYS_CLOCK_GETTIME = 113 };
enum advice { SYS_MADVISE = 233, SYS_FADVISE64 = 223 };
static inline long air_syscall(long number, long a, long b, long c, long d) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
static inline void air_relax(void) { __asm__ volatile("yield" ::: "memory"); }
#else
#error "no system calls for this architecture"
#endif

enum {
    FUTEX_WAIT_PRIVATE = 128,
    FUTEX_WAKE_PRIVATE = 129,
    FADVISE_DONTNEED = 4,
    MADVISE_DONTNEED = 4,
    MADVISE_POPULATE_READ = 22,
    CLOCK_MONOTONIC_ID = 1,
    ERRNO_INTR = 4,
    ERRNO_NOMEM = 12,
    ERRNO_INVAL = 22,
    ERRNO_NOSYS = 38,
    ERRNO_TIMEDOUT = 110
};

#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
#define STORE(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELEASE)
#define ADD(x, v) __atomic_add_fetch(&(x), (v), __ATOMIC_ACQ_REL)

struct air_time {
    int64_t seconds, nanoseconds;
};

/* Sleeps while `*word` is `value`, at most for `timeout` (forever if that is null). */
static inline void air_sleep(volatile int32_t *word, int32_t value, const struct air_time *timeout) {
    air_syscall(SYS_FUTEX, (long)word, FUTEX_WAIT_PRIVATE, value, (long)timeout);
}

static inline void air_wake_all(volatile int32_t *word) {
    air_syscall(SYS_FUTEX, (long)word, FUTEX_WAKE_PRIVATE, 0x7fffffff, 0);
}

static inline uint64_t air_nanoseconds(void) {
    struct air_time now;
    air_syscall(SYS_CLOCK_GETTIME, CLOCK_MONOTONIC_ID, (long)&now, 0, 0);
    return (uint64_t)now.seconds * 1000000000u + (uint64_t)now.nanoseconds;
}

#endif
