/* Kills the process at the N-th change of a folder, whoever makes it: Python, SQLite, or the threads that write arrays.

   In: LD_PRELOAD, then arm(folder, log, pattern, n) from the process itself. Every call below that changes something
   beneath the folder has two crash points, before and after it. Each is a line of the log ("before rename cli.txt"),
   and at the n-th line of that pattern the process sends itself SIGKILL (0: never). Linux. Not seen: writes of the C
   library's own stdio, and stores into mapped files (SQLite's index of its write-ahead log). */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static char wanted[PATH_MAX];
static size_t folder_length;
static int log_file = -1;
static long fatal;
static atomic_long matched;

void arm(const char *path, const char *log, const char *pattern, long n) {
    fatal = n;
    strncpy(wanted, pattern, sizeof wanted - 1);
    log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    strncpy(folder, path, sizeof folder - 1);
    folder_length = strlen(folder);
}

/* A path beneath the folder, relative to it; an empty one names no such place. */
typedef struct {
    char name[PATH_MAX];
} Place;

static void set(Place *place, const char *path) {
    place->name[0] = 0;
    if (strncmp(path, folder, folder_length) == 0 && path[folder_length] == '/')
        snprintf(place->name, sizeof place->name, "%s", path + folder_length + 1);
}

static int read_link(int fd, char *target) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, target, PATH_MAX - 1);
    target[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static Place of_file(int fd) {
    Place place = {{0}};
    char path[PATH_MAX];
    int before = errno;
    if (folder_length && read_link(fd, path)) set(&place, path);
    errno = before;
    return place;
}

static Place of_path(int at, const char *path) {
    Place place = {{0}};
    char whole[2 * PATH_MAX] = "", base[PATH_MAX] = "";
    int before = errno;
    if (!folder_length || !path) return place;
    if (path[0] == '/') {
        set(&place, path);
    } else if (at == AT_FDCWD ? getcwd(base, sizeof base) != NULL : read_link(at, base)) {
        snprintf(whole, sizeof whole, "%s/%s", base, path);
        set(&place, whole);
    }
    errno = before;
    return place;
}

static void pass(const char *side, const char *call, const Place *place) {
    char line[PATH_MAX + 64];
    if (!place->name[0]) return;
    int before = errno;
    int length = snprintf(line, sizeof line, "%s %s %s", side, call, place->name);
    long number = fnmatch(wanted, line, 0) == 0 ? atomic_fetch_add(&matched, 1) + 1 : 0;
    int is_dead = fatal && number >= fatal;
    if (!is_dead || number == fatal) { /* one line for the point that kills, none for threads that come after it */
        line[length] = '\n';
        syscall(SYS_write, log_file, line, length + 1);
    }
    while (is_dead) {
        syscall(SYS_kill, getpid(), SIGKILL);
        pause();
    }
    errno = before;
}

/* The call itself between its two points. */
#define BETWEEN(call, place, work)      \
    Place found = place;                \
    pass("before", call, &found);       \
    long result = work;                 \
    pass("after", call, &found);        \
    return result

ssize_t write(int fd, const void *data, size_t size) {
    BETWEEN("write", of_file(fd), syscall(SYS_write, fd, data, size));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    BETWEEN("write", of_file(fd), syscall(SYS_pwrite64, fd, data, size, at));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    BETWEEN("write", of_file(fd), syscall(SYS_pwrite64, fd, data, size, at));
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    BETWEEN("write", of_file(fd), syscall(SYS_writev, fd, parts, count));
}
ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *there, size_t size, unsigned flags) {
    BETWEEN("write", of_file(to), syscall(SYS_copy_file_range, from, at, to, there, size, flags));
}
ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    BETWEEN("write", of_file(to), syscall(SYS_sendfile, to, from, at, size));
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    BETWEEN("write", of_file(to), syscall(SYS_sendfile, to, from, at, size));
}
int fsync(int fd) { BETWEEN("fsync", of_file(fd), syscall(SYS_fsync, fd)); }
int fdatasync(int fd) { BETWEEN("fsync", of_file(fd), syscall(SYS_fdatasync, fd)); }
int ftruncate(int fd, off_t size) { BETWEEN("truncate", of_file(fd), syscall(SYS_ftruncate, fd, size)); }
int ftruncate64(int fd, off64_t size) { BETWEEN("truncate", of_file(fd), syscall(SYS_ftruncate, fd, size)); }

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    BETWEEN("rename", of_path(to, new), syscall(SYS_renameat2, from, old, to, new, flags));
}
int renameat(int from, const char *old, int to, const char *new) { return renameat2(from, old, to, new, 0); }
int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }
int linkat(int from, const char *old, int to, const char *new, int flags) {
    BETWEEN("link", of_path(to, new), syscall(SYS_linkat, from, old, to, new, flags));
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }
int unlinkat(int at, const char *path, int flags) {
    BETWEEN("remove", of_path(at, path), syscall(SYS_unlinkat, at, path, flags));
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdirat(int at, const char *path, mode_t mode) {
    BETWEEN("mkdir", of_path(at, path), syscall(SYS_mkdirat, at, path, mode));
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

static int open_between(int at, const char *path, int flags, mode_t mode) {
    if (!(flags & (O_CREAT | O_TRUNC))) return (int)syscall(SYS_openat, at, path, flags, mode);
    BETWEEN("create", of_path(at, path), syscall(SYS_openat, at, path, flags, mode));
}
#define MODE                  \
    va_list rest;             \
    va_start(rest, flags);    \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest)
int open(const char *path, int flags, ...) { MODE; return open_between(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE; return open_between(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE; return open_between(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE; return open_between(at, path, flags, mode); }
