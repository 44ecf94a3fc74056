/*
 * A disk that fails on demand: loaded into ppswd with LD_PRELOAD, it steps between the program and the C library
 * for calls on files below one directory. The Rust side is tests/src/shim.rs.
 *
 * Environment (read once, at the first call):
 *
 *   PPSW_SHIM_DIR      absolute path, without symbolic links; nothing outside of it is touched
 *   PPSW_SHIM_CONTROL  absolute path of the control file, outside of PPSW_SHIM_DIR; it may be missing
 *   PPSW_SHIM_STRICT   if set, the process ends with code 97 when either of the two above is missing
 *
 * The control file is read again when its modification time, size or inode has changed, before each call that is
 * watched. Replace it by rename(), so that no half of it is ever seen. An empty or missing file: no faults. Each
 * line is a rule, `#` begins a comment:
 *
 *   OPERATION[,OPERATION...] KEY=VALUE...
 *
 *   fdatasync delay_ms=1000
 *   fdatasync,fsync errno=EIO path=.seg
 *   pwrite,pwritev errno=ENOSPC after=10 count=1
 *   all errno=EROFS
 *   statvfs free_bytes=1000000 free_inodes=10
 *
 * Operations: pread (and preadv, read), pwrite, pwritev, write (and writev), fsync, fdatasync (and sync_file_range),
 * fallocate, ftruncate, open, rename, unlink, statvfs. `writes`: pwrite, pwritev, write, fallocate, ftruncate;
 * `syncs`: fsync, fdatasync; `all`: every operation but pread and statvfs.
 *
 * Keys:
 *   delay_ms=N    sleep so long before the call (and before the error, if there is one)
 *   errno=NAME    fail with EIO, ENOSPC, EDQUOT, EROFS, EACCES, EMFILE or a number, without doing anything. An `open`
 *                 that neither writes nor creates is let through when NAME is ENOSPC, EDQUOT or EROFS, as a full or
 *                 read-only disk would; so are fsync and fdatasync under `all errno=EROFS`.
 *   part=N        of a write that fails: write the first N bytes, then fail (a torn write)
 *   after=N       the rule begins with the (N+1)th call that matches it, counted since the file was read
 *   count=N       and ends after N calls
 *   path=TEXT     only files whose path contains TEXT (for rename: the old or the new path)
 *   free_bytes=N, free_inodes=N   what statvfs says is free, for everybody
 *
 * The first rule that applies to a call decides; its sleep happens without any lock. Descriptors are known by having
 * been opened through this file (and copied by dup); those that were inherited are not watched. Calls that the C library makes within
 * itself (stdio) or that a program makes without the C library are not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    OP_PREAD = 1 << 0,
    OP_PWRITE = 1 << 1,
    OP_PWRITEV = 1 << 2,
    OP_WRITE = 1 << 3,
    OP_FSYNC = 1 << 4,
    OP_FDATASYNC = 1 << 5,
    OP_FALLOCATE = 1 << 6,
    OP_FTRUNCATE = 1 << 7,
    OP_OPEN = 1 << 8,
    OP_RENAME = 1 << 9,
    OP_UNLINK = 1 << 10,
    OP_STATVFS = 1 << 11,
};
#define OP_WRITES (OP_PWRITE | OP_PWRITEV | OP_WRITE | OP_FALLOCATE | OP_FTRUNCATE)
#define OP_SYNCS (OP_FSYNC | OP_FDATASYNC)
#define OP_ALL (OP_WRITES | OP_SYNCS | OP_OPEN | OP_RENAME | OP_UNLINK)

static const struct { const char *name; int ops; } OPERATIONS[] = {
    {"pread", OP_PREAD}, {"pwrite", OP_PWRITE}, {"pwritev", OP_PWRITEV}, {"write", OP_WRITE},
    {"fsync", OP_FSYNC}, {"fdatasync", OP_FDATASYNC}, {"fallocate", OP_FALLOCATE},
    {"ftruncate", OP_FTRUNCATE}, {"open", OP_OPEN}, {"rename", OP_RENAME}, {"unlink", OP_UNLINK},
    {"statvfs", OP_STATVFS}, {"writes", OP_WRITES}, {"syncs", OP_SYNCS}, {"all", OP_ALL},
};

static const struct { const char *name; int number; } ERRORS[] = {
    {"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT}, {"EROFS", EROFS}, {"EACCES", EACCES},
    {"EMFILE", EMFILE},
};

#define RULES_MAX 32
#define FDS_MAX 65536

struct rule {
    int ops;
    int everything; /* `all` was written */
    int error;
    long delay_ms;
    long part; /* -1: none */
    unsigned long after;
    unsigned long count; /* 0: no end */
    unsigned long seen;
    long long free_bytes, free_inodes; /* -1: not changed */
    char path[128];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char directory[PATH_MAX];
static size_t directory_length;
static char control[PATH_MAX];
static struct rule rules[RULES_MAX];
static int rules_count;
static struct timespec read_time;
static off_t read_size = -1;
static ino_t read_inode;
/* The path of each descriptor that is watched; NULL for all others. Guarded by `lock`. */
static char *watched[FDS_MAX];

static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static int (*real_dup)(int);
static int (*real_dup2)(int, int);
static int (*real_dup3)(int, int, int);
static int (*real_fcntl)(int, int, ...);
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_pread)(int, void *, size_t, off64_t);
static ssize_t (*real_preadv)(int, const struct iovec *, int, off64_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_sync_file_range)(int, off64_t, off64_t, unsigned int);
static int (*real_fallocate)(int, int, off64_t, off64_t);
static int (*real_posix_fallocate)(int, off64_t, off64_t);
static int (*real_ftruncate)(int, off64_t);
static int (*real_rename)(const char *, const char *);
static int (*real_renameat)(int, const char *, int, const char *);
static int (*real_unlink)(const char *);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_statvfs)(const char *, struct statvfs64 *);
static int (*real_fstatvfs)(int, struct statvfs64 *);

static void start(void)
{
    real_open = dlsym(RTLD_NEXT, "open64");
    real_openat = dlsym(RTLD_NEXT, "openat64");
    real_close = dlsym(RTLD_NEXT, "close");
    real_dup = dlsym(RTLD_NEXT, "dup");
    real_dup2 = dlsym(RTLD_NEXT, "dup2");
    real_dup3 = dlsym(RTLD_NEXT, "dup3");
    real_fcntl = dlsym(RTLD_NEXT, "fcntl64");
    real_read = dlsym(RTLD_NEXT, "read");
    real_pread = dlsym(RTLD_NEXT, "pread64");
    real_preadv = dlsym(RTLD_NEXT, "preadv64");
    real_write = dlsym(RTLD_NEXT, "write");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_pwritev = dlsym(RTLD_NEXT, "pwritev64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_sync_file_range = dlsym(RTLD_NEXT, "sync_file_range");
    real_fallocate = dlsym(RTLD_NEXT, "fallocate64");
    real_posix_fallocate = dlsym(RTLD_NEXT, "posix_fallocate64");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_rename = dlsym(RTLD_NEXT, "rename");
    real_renameat = dlsym(RTLD_NEXT, "renameat");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    real_unlinkat = dlsym(RTLD_NEXT, "unlinkat");
    real_statvfs = dlsym(RTLD_NEXT, "statvfs64");
    real_fstatvfs = dlsym(RTLD_NEXT, "fstatvfs64");

    const char *dir = getenv("PPSW_SHIM_DIR");
    const char *file = getenv("PPSW_SHIM_CONTROL");
    if (dir && file && strlen(dir) < PATH_MAX && strlen(file) < PATH_MAX) {
        strcpy(directory, dir);
        directory_length = strlen(directory);
        strcpy(control, file);
    } else if (getenv("PPSW_SHIM_STRICT")) {
        _exit(97);
    }
}

static int under(const char *path)
{
    return directory_length > 0 && strncmp(path, directory, directory_length) == 0 &&
           (path[directory_length] == '/' || path[directory_length] == '\0');
}

/* The path of a file that is named by a program, absolute if it can be made so. */
static void absolute(int dirfd, const char *path, char *out)
{
    char base[PATH_MAX];
    out[0] = '\0';
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    if (dirfd == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return;
        base[length] = '\0';
    }
    if (strlen(base) + 1 + strlen(path) < PATH_MAX) {
        strcpy(out, base);
        strcat(out, "/");
        strcat(out, path);
    }
}

static int error_number(const char *name)
{
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (strcmp(ERRORS[i].name, name) == 0) return ERRORS[i].number;
    return atoi(name);
}

static void parse_key(struct rule *rule, char *key, char *value)
{
    if (strcmp(key, "errno") == 0) rule->error = error_number(value);
    else if (strcmp(key, "delay_ms") == 0) rule->delay_ms = atol(value);
    else if (strcmp(key, "part") == 0) rule->part = atol(value);
    else if (strcmp(key, "after") == 0) rule->after = strtoul(value, NULL, 10);
    else if (strcmp(key, "count") == 0) rule->count = strtoul(value, NULL, 10);
    else if (strcmp(key, "free_bytes") == 0) rule->free_bytes = atoll(value);
    else if (strcmp(key, "free_inodes") == 0) rule->free_inodes = atoll(value);
    else if (strcmp(key, "path") == 0) snprintf(rule->path, sizeof rule->path, "%s", value);
    else {
        dprintf(2, "disk shim: unknown key %s in %s\n", key, control);
        _exit(97);
    }
}

static void parse_line(char *line)
{
    char *comment = strchr(line, '#'), *rest = NULL, *inner = NULL;
    if (comment) *comment = '\0';
    char *operations = strtok_r(line, " \t", &rest);
    if (!operations || rules_count == RULES_MAX) return;
    struct rule rule = {.part = -1, .free_bytes = -1, .free_inodes = -1};
    for (char *name = strtok_r(operations, ",", &inner); name; name = strtok_r(NULL, ",", &inner)) {
        int ops = 0;
        for (size_t i = 0; i < sizeof OPERATIONS / sizeof *OPERATIONS; i++)
            if (strcmp(OPERATIONS[i].name, name) == 0) ops = OPERATIONS[i].ops;
        if (!ops) {
            dprintf(2, "disk shim: unknown operation %s in %s\n", name, control);
            _exit(97);
        }
        rule.ops |= ops;
        rule.everything |= ops == OP_ALL;
    }
    for (char *pair = strtok_r(NULL, " \t", &rest); pair; pair = strtok_r(NULL, " \t", &rest)) {
        char *value = strchr(pair, '=');
        if (!value) {
            dprintf(2, "disk shim: %s is no KEY=VALUE in %s\n", pair, control);
            _exit(97);
        }
        *value = '\0';
        parse_key(&rule, pair, value + 1);
    }
    rules[rules_count++] = rule;
}

/* Reads the control file if it has changed. With `lock`. */
static void refresh(void)
{
    struct stat now;
    if (control[0] == '\0') return;
    if (stat(control, &now) != 0) {
        rules_count = 0;
        read_size = -1;
        return;
    }
    if (now.st_size == read_size && now.st_ino == read_inode &&
        now.st_mtim.tv_sec == read_time.tv_sec && now.st_mtim.tv_nsec == read_time.tv_nsec)
        return;
    read_size = now.st_size;
    read_inode = now.st_ino;
    read_time = now.st_mtim;
    rules_count = 0;
    int fd = real_open(control, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    static char text[16384];
    ssize_t length = real_read(fd, text, sizeof text - 1);
    real_close(fd);
    if (length < 0) return;
    text[length] = '\0';
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        parse_line(line);
}

/* A read-only or full disk does not mind those who only read. */
static int spares(const struct rule *rule, int op, int reads_only)
{
    if (op == OP_OPEN && reads_only)
        return rule->error == EROFS || rule->error == ENOSPC || rule->error == EDQUOT;
    return rule->everything && rule->error == EROFS && (op & OP_SYNCS);
}

/*
 * What is to become of a call: 0 for nothing special, else an errno; sleeps. `part` becomes how many bytes are to be
 * written before a write fails, `change` what statvfs is to say.
 */
static int trouble(int op, const char *path, const char *other, int reads_only, long *part,
                   struct rule *change)
{
    struct rule found = {0};
    int hit = 0;
    pthread_mutex_lock(&lock);
    refresh();
    for (int i = 0; i < rules_count && !hit; i++) {
        struct rule *rule = &rules[i];
        if (!(rule->ops & op) || spares(rule, op, reads_only)) continue;
        if (rule->path[0] && !strstr(path, rule->path) && !(other && strstr(other, rule->path)))
            continue;
        unsigned long number = rule->seen++;
        if (number < rule->after || (rule->count && number >= rule->after + rule->count)) continue;
        found = *rule;
        hit = 1;
    }
    pthread_mutex_unlock(&lock);
    if (!hit) return 0;
    if (found.delay_ms > 0) {
        struct timespec left = {found.delay_ms / 1000, (found.delay_ms % 1000) * 1000000};
        while (nanosleep(&left, &left) != 0 && errno == EINTR) {}
    }
    if (part) *part = found.part;
    if (change) *change = found;
    return found.error;
}

static int trouble_at(int op, int dirfd, const char *path, int reads_only)
{
    char full[PATH_MAX];
    pthread_once(&once, start);
    if (!directory_length || !path) return 0;
    absolute(dirfd, path, full);
    return under(full) ? trouble(op, full, NULL, reads_only, NULL, NULL) : 0;
}

static int trouble_on(int op, int fd, long *part)
{
    char path[PATH_MAX];
    pthread_once(&once, start);
    if (fd < 0 || fd >= FDS_MAX || !directory_length) return 0;
    pthread_mutex_lock(&lock);
    int known = watched[fd] != NULL;
    if (known) snprintf(path, sizeof path, "%s", watched[fd]);
    pthread_mutex_unlock(&lock);
    return known ? trouble(op, path, NULL, 0, part, NULL) : 0;
}

static int fail(int error)
{
    errno = error;
    return -1;
}

static int opened(int fd, int dirfd, const char *path)
{
    char full[PATH_MAX];
    if (fd < 0 || fd >= FDS_MAX || !directory_length) return fd;
    int saved = errno;
    absolute(dirfd, path, full);
    pthread_mutex_lock(&lock);
    free(watched[fd]);
    watched[fd] = under(full) ? strdup(full) : NULL;
    pthread_mutex_unlock(&lock);
    errno = saved;
    return fd;
}

static int reads_only(int flags)
{
    return (flags & O_ACCMODE) == O_RDONLY && !(flags & (O_CREAT | O_TRUNC));
}

static int open_at(int dirfd, const char *path, int flags, mode_t mode)
{
    int error = trouble_at(OP_OPEN, dirfd, path, reads_only(flags));
    if (error) return fail(error);
    int fd = dirfd == AT_FDCWD ? real_open(path, flags, mode) : real_openat(dirfd, path, flags, mode);
    return opened(fd, dirfd, path);
}

#define MODE(flags)                                   \
    mode_t mode = 0;                                  \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {          \
        va_list rest;                                 \
        va_start(rest, flags);                        \
        mode = va_arg(rest, mode_t);                  \
        va_end(rest);                                 \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE(flags) return open_at(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE(flags) return open_at(dir, path, flags, mode); }

int close(int fd)
{
    pthread_once(&once, start);
    if (fd >= 0 && fd < FDS_MAX && directory_length) {
        pthread_mutex_lock(&lock);
        free(watched[fd]);
        watched[fd] = NULL;
        pthread_mutex_unlock(&lock);
    }
    return real_close(fd);
}

/* A second descriptor of a file is watched as the first is. */
static int copied(int from, int to)
{
    if (from < 0 || from >= FDS_MAX || to < 0 || to >= FDS_MAX || from == to || !directory_length)
        return to;
    int saved = errno;
    pthread_mutex_lock(&lock);
    free(watched[to]);
    watched[to] = watched[from] ? strdup(watched[from]) : NULL;
    pthread_mutex_unlock(&lock);
    errno = saved;
    return to;
}

int dup(int fd)
{
    pthread_once(&once, start);
    return copied(fd, real_dup(fd));
}

int dup2(int fd, int to)
{
    pthread_once(&once, start);
    return copied(fd, real_dup2(fd, to));
}

int dup3(int fd, int to, int flags)
{
    pthread_once(&once, start);
    return copied(fd, real_dup3(fd, to, flags));
}

static int control_fd(int fd, int command, void *argument)
{
    pthread_once(&once, start);
    int result = real_fcntl(fd, command, argument);
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? copied(fd, result) : result;
}

#define ARGUMENT(command)                   \
    va_list rest;                           \
    va_start(rest, command);                \
    void *argument = va_arg(rest, void *);  \
    va_end(rest);

int fcntl(int fd, int command, ...) { ARGUMENT(command) return control_fd(fd, command, argument); }
int fcntl64(int fd, int command, ...) { ARGUMENT(command) return control_fd(fd, command, argument); }

ssize_t read(int fd, void *to, size_t length)
{
    int error = trouble_on(OP_PREAD, fd, NULL);
    return error ? fail(error) : real_read(fd, to, length);
}

ssize_t pread64(int fd, void *to, size_t length, off64_t at)
{
    int error = trouble_on(OP_PREAD, fd, NULL);
    return error ? fail(error) : real_pread(fd, to, length, at);
}
ssize_t pread(int fd, void *to, size_t length, off_t at) { return pread64(fd, to, length, at); }

ssize_t preadv64(int fd, const struct iovec *to, int count, off64_t at)
{
    int error = trouble_on(OP_PREAD, fd, NULL);
    return error ? fail(error) : real_preadv(fd, to, count, at);
}
ssize_t preadv(int fd, const struct iovec *to, int count, off_t at) { return preadv64(fd, to, count, at); }

ssize_t write(int fd, const void *from, size_t length)
{
    long part = -1;
    int error = trouble_on(OP_WRITE, fd, &part);
    if (!error) return real_write(fd, from, length);
    if (part > 0) {
        if (real_write(fd, from, (size_t)part < length ? (size_t)part : length) < 0) return -1;
    }
    return fail(error);
}

ssize_t writev(int fd, const struct iovec *from, int count)
{
    int error = trouble_on(OP_WRITE, fd, NULL);
    return error ? fail(error) : real_writev(fd, from, count);
}

ssize_t pwrite64(int fd, const void *from, size_t length, off64_t at)
{
    long part = -1;
    int error = trouble_on(OP_PWRITE, fd, &part);
    if (!error) return real_pwrite(fd, from, length, at);
    if (part > 0) {
        if (real_pwrite(fd, from, (size_t)part < length ? (size_t)part : length, at) < 0) return -1;
    }
    return fail(error);
}
ssize_t pwrite(int fd, const void *from, size_t length, off_t at) { return pwrite64(fd, from, length, at); }

ssize_t pwritev64(int fd, const struct iovec *from, int count, off64_t at)
{
    long part = -1;
    int error = trouble_on(OP_PWRITEV, fd, &part);
    if (!error) return real_pwritev(fd, from, count, at);
    for (int i = 0; i < count && part > 0; i++) {
        size_t length = (size_t)part < from[i].iov_len ? (size_t)part : from[i].iov_len;
        if (real_pwrite(fd, from[i].iov_base, length, at) < 0) return -1;
        at += (off64_t)length;
        part -= (long)length;
    }
    return fail(error);
}
ssize_t pwritev(int fd, const struct iovec *from, int count, off_t at) { return pwritev64(fd, from, count, at); }

int fsync(int fd)
{
    int error = trouble_on(OP_FSYNC, fd, NULL);
    return error ? fail(error) : real_fsync(fd);
}

int fdatasync(int fd)
{
    int error = trouble_on(OP_FDATASYNC, fd, NULL);
    return error ? fail(error) : real_fdatasync(fd);
}

int sync_file_range(int fd, off64_t from, off64_t length, unsigned int flags)
{
    int error = trouble_on(OP_FDATASYNC, fd, NULL);
    return error ? fail(error) : real_sync_file_range(fd, from, length, flags);
}

int fallocate64(int fd, int mode, off64_t from, off64_t length)
{
    int error = trouble_on(OP_FALLOCATE, fd, NULL);
    return error ? fail(error) : real_fallocate(fd, mode, from, length);
}
int fallocate(int fd, int mode, off_t from, off_t length) { return fallocate64(fd, mode, from, length); }

/* Gives the error instead of setting errno. */
int posix_fallocate64(int fd, off64_t from, off64_t length)
{
    int error = trouble_on(OP_FALLOCATE, fd, NULL);
    return error ? error : real_posix_fallocate(fd, from, length);
}
int posix_fallocate(int fd, off_t from, off_t length) { return posix_fallocate64(fd, from, length); }

int ftruncate64(int fd, off64_t length)
{
    int error = trouble_on(OP_FTRUNCATE, fd, NULL);
    return error ? fail(error) : real_ftruncate(fd, length);
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int rename_trouble(int olddir, const char *old, int newdir, const char *new)
{
    char from[PATH_MAX], to[PATH_MAX];
    pthread_once(&once, start);
    if (!directory_length) return 0;
    absolute(olddir, old, from);
    absolute(newdir, new, to);
    return under(from) || under(to) ? trouble(OP_RENAME, from, to, 0, NULL, NULL) : 0;
}

int rename(const char *old, const char *new)
{
    int error = rename_trouble(AT_FDCWD, old, AT_FDCWD, new);
    return error ? fail(error) : real_rename(old, new);
}

int renameat(int olddir, const char *old, int newdir, const char *new)
{
    int error = rename_trouble(olddir, old, newdir, new);
    return error ? fail(error) : real_renameat(olddir, old, newdir, new);
}

int unlink(const char *path)
{
    int error = trouble_at(OP_UNLINK, AT_FDCWD, path, 0);
    return error ? fail(error) : real_unlink(path);
}

int unlinkat(int dir, const char *path, int flags)
{
    int error = trouble_at(OP_UNLINK, dir, path, 0);
    return error ? fail(error) : real_unlinkat(dir, path, flags);
}

static int statvfs_changed(const char *path, struct statvfs64 *out)
{
    struct rule change = {.free_bytes = -1, .free_inodes = -1};
    int error = trouble(OP_STATVFS, path, NULL, 0, NULL, &change);
    if (error) return fail(error);
    if (change.free_bytes >= 0 && change.ops && out->f_frsize) {
        out->f_bavail = out->f_bfree = (unsigned long)change.free_bytes / out->f_frsize;
    }
    if (change.free_inodes >= 0 && change.ops) {
        out->f_favail = out->f_ffree = (unsigned long)change.free_inodes;
    }
    return 0;
}

int statvfs64(const char *path, struct statvfs64 *out)
{
    char full[PATH_MAX];
    pthread_once(&once, start);
    int result = real_statvfs(path, out);
    if (result != 0 || !directory_length) return result;
    absolute(AT_FDCWD, path, full);
    return under(full) ? statvfs_changed(full, out) : 0;
}

int fstatvfs64(int fd, struct statvfs64 *out)
{
    char path[PATH_MAX];
    pthread_once(&once, start);
    int result = real_fstatvfs(fd, out);
    if (result != 0 || fd < 0 || fd >= FDS_MAX || !directory_length) return result;
    pthread_mutex_lock(&lock);
    int known = watched[fd] != NULL;
    if (known) snprintf(path, sizeof path, "%s", watched[fd]);
    pthread_mutex_unlock(&lock);
    return known ? statvfs_changed(path, out) : 0;
}
