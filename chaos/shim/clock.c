/*
 * A clock that can be set for one process: loaded with LD_PRELOAD, it adds an offset to the wall clock.
 *
 * PPSW_CLOCK_OFFSET is the path of a file whose first eight bytes are the offset in nanoseconds, a signed integer in
 * the machine's own order. It is mapped once, so that whoever writes the file changes the time of running programs.
 * The monotonic clock stays as it is, as it does when an operator sets the time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*real_clock_gettime)(clockid_t, struct timespec *);
static volatile const int64_t *offset;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void start(void)
{
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("PPSW_CLOCK_OFFSET");
    if (!path) return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) _exit(97);
    void *mapped = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) _exit(97);
    offset = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *out)
{
    pthread_once(&once, start);
    int result = real_clock_gettime(clock, out);
    if (result != 0 || !offset || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return result;
    const int64_t second = 1000000000;
    int64_t nanoseconds = out->tv_nsec + *offset % second;
    out->tv_sec += *offset / second;
    if (nanoseconds < 0) {
        nanoseconds += second;
        out->tv_sec -= 1;
    } else if (nanoseconds >= second) {
        nanoseconds -= second;
        out->tv_sec += 1;
    }
    out->tv_nsec = nanoseconds;
    return 0;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
    (void)zone;
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
