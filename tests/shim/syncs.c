/*
 * Counts syncs, and makes each take longer: loaded into mail servers with LD_PRELOAD by `bench`. The Rust side is
 * tests/src/bench/syncs.rs.
 *
 *   PPSW_SYNCS_COUNT     a file of 8 bytes, in which all processes count together
 *   PPSW_SYNCS_DELAY_US  how much longer a sync takes, in microseconds
 *
 * Syncs of several processes, or threads, wait beside each other, as on a device with many queues: that is kind to programs that
 * sync much.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static _Atomic unsigned long long unshared;
static _Atomic unsigned long long *count = &unshared;
static long delay_us;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("PPSW_SYNCS_COUNT"), *delay = getenv("PPSW_SYNCS_DELAY_US");
    delay_us = delay ? atol(delay) : 0;
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *shared = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared != MAP_FAILED)
        count = shared;
    close(file);
}

static int synced(int result)
{
    atomic_fetch_add(count, 1);
    if (delay_us > 0) {
        struct timespec time = {delay_us / 1000000, delay_us % 1000000 * 1000};
        nanosleep(&time, NULL);
    }
    return result;
}

int fsync(int file)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return synced(real(file));
}

int fdatasync(int file)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return synced(real(file));
}

int sync_file_range(int file, off64_t offset, off64_t length, unsigned flags)
{
    static int (*real)(int, off64_t, off64_t, unsigned);
    if (!real)
        real = (int (*)(int, off64_t, off64_t, unsigned))dlsym(RTLD_NEXT, "sync_file_range");
    return synced(real(file, offset, length, flags));
}
