/* Preloaded into a process, makes its N-th system call of some kinds kill it, interrupt it, or fail.

   fault_arm says which; until then, and in other processes, all calls pass. Only calls whose path contains a text
   count, those on an open file by the path of that file. Calls of all kinds are counted, each kind on its own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { RENAME = 1, FSYNC = 2, UNLINK = 4, WRITE = 8, READ = 16, OPEN = 32, MKDIR = 64, LINK = 128 };
enum { KILL = 1, INTERRUPT = 2, FAIL = 3 }; /* every call from the N-th on fails */

static int armed, kinds, action, code;
static long at;
static atomic_long calls, counts[8]; /* of the kinds that the fault is in, and of each kind */
static pid_t process;
static char part[512];

void fault_arm(int kinds_, long at_, int action_, int code_, const char *part_) {
    strncpy(part, part_, sizeof part - 1);
    at = at_; action = action_; code = code_; process = getpid();
    atomic_store(&calls, 0);
    for (int i = 0; i < 8; i++) atomic_store(&counts[i], 0);
    kinds = kinds_;
    armed = 1;
}

long fault_calls(int i) { armed = 0; return atomic_load(&counts[i]); }

static int fails(int kind, int fd, const char *path) {
    char name[8192], link[64];
    if (!armed || getpid() != process) return 0;
    if (part[0]) {
        if (path == NULL) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            ssize_t n = readlink(link, name, sizeof name - 1);
            if (n < 0) return 0;
            name[n] = 0;
            path = name;
        } else if (path[0] != '/' && getcwd(name, 4096)) {
            size_t n = strlen(name);
            snprintf(name + n, sizeof name - n, "/%s", path);
            path = name;
        }
        if (!strstr(path, part)) return 0;
    } else if (path == NULL && fd <= 2) return 0;
    atomic_fetch_add(&counts[__builtin_ctz(kind)], 1);
    if (!(kinds & kind)) return 0;
    long n = atomic_fetch_add(&calls, 1) + 1;
    if (at <= 0 || n < at || (action != FAIL && n > at)) return 0;
    if (action == KILL) { kill(process, SIGKILL); pause(); }
    if (action == INTERRUPT) { kill(process, SIGINT); return 0; }
    errno = code;
    return 1;
}

#define NEXT(name) static typeof(&name) next; if (!next) next = (typeof(&name))dlsym(RTLD_NEXT, #name)

int rename(const char *a, const char *b) { NEXT(rename); return fails(RENAME, 0, b) ? -1 : next(a, b); }
int renameat(int d, const char *a, int e, const char *b) { NEXT(renameat); return fails(RENAME, 0, b) ? -1 : next(d, a, e, b); }
int renameat2(int d, const char *a, int e, const char *b, unsigned f) { NEXT(renameat2); return fails(RENAME, 0, b) ? -1 : next(d, a, e, b, f); }
int fsync(int fd) { NEXT(fsync); return fails(FSYNC, fd, NULL) ? -1 : next(fd); }
int fdatasync(int fd) { NEXT(fdatasync); return fails(FSYNC, fd, NULL) ? -1 : next(fd); }
int unlink(const char *p) { NEXT(unlink); return fails(UNLINK, 0, p) ? -1 : next(p); }
int unlinkat(int d, const char *p, int f) { NEXT(unlinkat); return fails(UNLINK, d, p[0] == '/' ? p : NULL) ? -1 : next(d, p, f); }
int rmdir(const char *p) { NEXT(rmdir); return fails(UNLINK, 0, p) ? -1 : next(p); }
int mkdir(const char *p, mode_t m) { NEXT(mkdir); return fails(MKDIR, 0, p) ? -1 : next(p, m); }
int link(const char *a, const char *b) { NEXT(link); return fails(LINK, 0, b) ? -1 : next(a, b); }
int linkat(int d, const char *a, int e, const char *b, int f) { NEXT(linkat); return fails(LINK, 0, b) ? -1 : next(d, a, e, b, f); }
ssize_t write(int fd, const void *p, size_t n) { NEXT(write); return fails(WRITE, fd, NULL) ? -1 : next(fd, p, n); }
ssize_t pwrite(int fd, const void *p, size_t n, off_t o) { NEXT(pwrite); return fails(WRITE, fd, NULL) ? -1 : next(fd, p, n, o); }
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t o) { NEXT(pwrite64); return fails(WRITE, fd, NULL) ? -1 : next(fd, p, n, o); }
ssize_t writev(int fd, const struct iovec *v, int n) { NEXT(writev); return fails(WRITE, fd, NULL) ? -1 : next(fd, v, n); }
int ftruncate(int fd, off_t n) { NEXT(ftruncate); return fails(WRITE, fd, NULL) ? -1 : next(fd, n); }
int ftruncate64(int fd, off64_t n) { NEXT(ftruncate64); return fails(WRITE, fd, NULL) ? -1 : next(fd, n); }
ssize_t read(int fd, void *p, size_t n) { NEXT(read); return fails(READ, fd, NULL) ? -1 : next(fd, p, n); }
ssize_t pread(int fd, void *p, size_t n, off_t o) { NEXT(pread); return fails(READ, fd, NULL) ? -1 : next(fd, p, n, o); }
ssize_t pread64(int fd, void *p, size_t n, off64_t o) { NEXT(pread64); return fails(READ, fd, NULL) ? -1 : next(fd, p, n, o); }

#define OPEN_AS(name) \
    int name(const char *p, int flags, ...) { \
        NEXT(name); va_list a; va_start(a, flags); mode_t m = va_arg(a, mode_t); va_end(a); \
        return fails(OPEN, 0, p) ? -1 : next(p, flags, m); }
#define OPENAT_AS(name) \
    int name(int d, const char *p, int flags, ...) { \
        NEXT(name); va_list a; va_start(a, flags); mode_t m = va_arg(a, mode_t); va_end(a); \
        return fails(OPEN, 0, p) ? -1 : next(d, p, flags, m); }
OPEN_AS(open)
OPEN_AS(open64)
OPENAT_AS(openat)
OPENAT_AS(openat64)
