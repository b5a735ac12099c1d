// A disk with faults, below a real program: preloaded, it stands between the program and the C library for files below one
// folder. Faults are set in a control file of 32-bit numbers that the test writes while the program runs:
//
//   0 open errno · 1 of 1000 · 2 read errno · 3 of 1000 · 4 write errno · 5 of 1000 · 6 sync errno · 7 of 1000
//   8 hang, ms · 9 of 1000 · 10 syncs that fail next · 11 faults given so far · 12 the dice start again from this
//   13 syncs that go well before those that fail next
//
// As with Linux, each descriptor that was open on a file when a sync of it failed gets the error once; one opened later is not.
//
// It remembers what each page held on the medium: before a sync that succeeds, a written page is not on it; after a sync
// that failed, the page is clean for the kernel and still not on it, until it is written again and synced (what Linux does).
// Opening "__cut__:FROM:TO" below the folder makes TO, a copy of FROM, what the medium would hold after a power cut.
//
//   cc -shared -fPIC -O1 -o faults.so disk.c
//   KL_FAULTS=control KL_FAULTS_UNDER=/folder LD_PRELOAD=./faults.so program
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN, READ = 2, WRITE = 4, SYNC = 6, HANG = 8, BAD_SYNCS = 10, GIVEN = 11, SEED = 12, GOOD_SYNCS = 13, NUMBERS = 16 };
enum { PAGE = 4096, FDS = 4096, PATHS = 1 << 16, BUCKETS = 1 << 12 };

struct page {
    struct page *next;
    char *path;
    uint64_t number;
    int failed; // a sync that failed took it for written
    char medium[PAGE];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile uint32_t *control;
static const char *under;
static char *names[FDS]; // path of an open file below the folder
static int owed[FDS];    // error of a sync of this file that another descriptor was given
static struct page *pages[BUCKETS];
static uint64_t dice = 0x9E3779B97F4A7C15;

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("KL_FAULTS");
    under = getenv("KL_FAULTS_UNDER");
    int fd = file && under ? syscall(SYS_openat, AT_FDCWD, file, O_RDWR) : -1;
    if (fd < 0) return;
    void *at = mmap(0, NUMBERS * 4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) control = at;
    syscall(SYS_close, fd);
}

static int below(const char *path) { return control && path && !strncmp(path, under, strlen(under)); }

static int rolls(uint32_t of_1000) {
    if (!of_1000) return 0;
    pthread_mutex_lock(&lock);
    if (control[SEED]) dice = 0x9E3779B97F4A7C15 * control[SEED], control[SEED] = 0;
    dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
    int hit = dice % 1000 < of_1000;
    pthread_mutex_unlock(&lock);
    return hit;
}

static int faulty(int what) {
    if (rolls(control[HANG + 1])) {
        struct timespec wait = {control[HANG] / 1000, control[HANG] % 1000 * 1000000L};
        nanosleep(&wait, 0);
    }
    if (!control[what] || !rolls(control[what + 1])) return 0;
    __sync_fetch_and_add(&control[GIVEN], 1);
    errno = control[what];
    return 1;
}

static struct page **bucket(const char *path, uint64_t number) {
    uint64_t hash = number * 0x9E3779B97F4A7C15;
    for (; *path; path++) hash = (hash ^ (unsigned char)*path) * 0x100000001B3;
    return &pages[hash % BUCKETS];
}

// Before a write: what the medium holds there.
static void remember(int fd, uint64_t at, uint64_t length) {
    if (!length) return;
    pthread_mutex_lock(&lock);
    for (uint64_t number = at / PAGE; number <= (at + length - 1) / PAGE; number++) {
        struct page **from = bucket(names[fd], number), *page = *from;
        while (page && (page->number != number || strcmp(page->path, names[fd]))) page = page->next;
        if (page) {
            page->failed = 0;
            continue;
        }
        page = calloc(1, sizeof *page);
        page->path = strdup(names[fd]), page->number = number, page->next = *from;
        syscall(SYS_pread64, fd, page->medium, PAGE, number * PAGE);
        *from = page;
    }
    pthread_mutex_unlock(&lock);
}

// Calls `act` for each page of a path; it answers whether the page is forgotten.
static void each(const char *path, int (*act)(struct page *, const void *), const void *with) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < BUCKETS; i++)
        for (struct page **at = &pages[i]; *at;) {
            struct page *page = *at;
            if (!strcmp(page->path, path) && act(page, with)) {
                *at = page->next;
                free(page->path), free(page);
            } else
                at = &page->next;
        }
    pthread_mutex_unlock(&lock);
}
static int forget(struct page *page, const void *with) { return (void)page, (void)with, 1; }
static int synced(struct page *page, const void *with) { return (void)with, !page->failed; }
static int fails(struct page *page, const void *with) { return (void)with, page->failed = 1, 0; }

static void cut(const char *word) {
    char *from = strdup(word), *to = strchr(from, ':');
    if (to) {
        *to++ = 0;
        pthread_mutex_lock(&lock);
        for (int i = 0; i < BUCKETS; i++)
            for (struct page *page = pages[i]; page; page = page->next) {
                size_t n = strlen(from);
                if (strncmp(page->path, from, n) || page->path[n] != '/') continue;
                char *path;
                if (asprintf(&path, "%s%s", to, page->path + n) < 0) continue;
                int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY);
                off_t size = fd < 0 ? 0 : syscall(SYS_lseek, fd, 0, SEEK_END), at = page->number * PAGE;
                if (at < size) syscall(SYS_pwrite64, fd, page->medium, size - at < PAGE ? size - at : PAGE, at);
                if (fd >= 0) syscall(SYS_close, fd);
                free(path);
            }
        pthread_mutex_unlock(&lock);
    }
    free(from);
}

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    if (below(path)) {
        const char *word = strstr(path, "__cut__:");
        if (word) return cut(word + 8), errno = ENOENT, -1;
        int writes = (flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0;
        if ((control[OPEN] != EROFS || writes) && faulty(OPEN)) return -1;
    }
    int fd = syscall(SYS_openat, dir, path, flags, mode);
    if (fd >= 0 && fd < FDS && below(path)) {
        if (flags & O_TRUNC) each(path, forget, 0);
        pthread_mutex_lock(&lock);
        free(names[fd]), names[fd] = strdup(path), owed[fd] = 0;
        pthread_mutex_unlock(&lock);
    }
    return fd;
}
#define MODE                                                                                                           \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list list;                                                                                                  \
        va_start(list, flags), mode = va_arg(list, mode_t), va_end(list);                                              \
    }
int open(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE return open_at(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE return open_at(dir, path, flags, mode); }
DIR *opendir(const char *path) {
    static DIR *(*real)(const char *);
    if (!real) real = dlsym(RTLD_NEXT, "opendir");
    return below(path) && control[OPEN] != EROFS && faulty(OPEN) ? 0 : real(path);
}
int close(int fd) {
    if (fd >= 0 && fd < FDS) {
        pthread_mutex_lock(&lock);
        free(names[fd]), names[fd] = 0;
        pthread_mutex_unlock(&lock);
    }
    return syscall(SYS_close, fd);
}

#define KNOWN(fd) ((fd) >= 0 && (fd) < FDS && names[fd])
ssize_t read(int fd, void *to, size_t n) { return KNOWN(fd) && faulty(READ) ? -1 : syscall(SYS_read, fd, to, n); }
ssize_t pread64(int fd, void *to, size_t n, off_t at) {
    return KNOWN(fd) && faulty(READ) ? -1 : syscall(SYS_pread64, fd, to, n, at);
}
ssize_t pread(int fd, void *to, size_t n, off_t at) { return pread64(fd, to, n, at); }
ssize_t pwrite64(int fd, const void *from, size_t n, off_t at) {
    if (KNOWN(fd)) {
        if (faulty(WRITE)) return -1;
        remember(fd, at, n);
    }
    return syscall(SYS_pwrite64, fd, from, n, at);
}
ssize_t pwrite(int fd, const void *from, size_t n, off_t at) { return pwrite64(fd, from, n, at); }
ssize_t write(int fd, const void *from, size_t n) {
    if (KNOWN(fd)) {
        if (faulty(WRITE)) return -1;
        remember(fd, syscall(SYS_lseek, fd, 0, SEEK_CUR), n);
    }
    return syscall(SYS_write, fd, from, n);
}
int ftruncate64(int fd, off_t size) { return KNOWN(fd) && faulty(WRITE) ? -1 : syscall(SYS_ftruncate, fd, size); }
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int fallocate64(int fd, int mode, off_t at, off_t n) {
    return KNOWN(fd) && faulty(WRITE) ? -1 : syscall(SYS_fallocate, fd, mode, at, n);
}
int fallocate(int fd, int mode, off_t at, off_t n) { return fallocate64(fd, mode, at, n); }

static int sync_file(int fd, long number) {
    if (!KNOWN(fd)) return syscall(number, fd);
    int bad = faulty(SYNC);
    if (!bad && control[BAD_SYNCS] && control[GOOD_SYNCS]) {
        __sync_fetch_and_sub(&control[GOOD_SYNCS], 1);
    } else if (!bad && control[BAD_SYNCS]) {
        __sync_fetch_and_sub(&control[BAD_SYNCS], 1), __sync_fetch_and_add(&control[GIVEN], 1);
        errno = EIO, bad = 1;
    }
    if (bad) {
        int why = errno;
        each(names[fd], fails, 0);
        pthread_mutex_lock(&lock);
        for (int other = 0; other < FDS; other++)
            if (other != fd && names[other] && !strcmp(names[other], names[fd])) owed[other] = why;
        owed[fd] = 0;
        pthread_mutex_unlock(&lock);
        return errno = why, -1;
    }
    if (owed[fd]) return errno = owed[fd], owed[fd] = 0, -1;
    int done = syscall(number, fd);
    if (!done) each(names[fd], synced, 0);
    return done;
}
int fsync(int fd) { return sync_file(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_file(fd, SYS_fdatasync); }
int sync_file_range(int fd, off_t at, off_t n, unsigned flags) {
    // It makes nothing safe, and reports what a sync would.
    return KNOWN(fd) && faulty(SYNC) ? -1 : syscall(SYS_sync_file_range, fd, at, n, flags);
}

static int moved(struct page *page, const void *to) {
    free(page->path), page->path = strdup(to);
    return 0;
}
int rename(const char *from, const char *to) {
    if (below(from) && faulty(WRITE)) return -1;
    int done = syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (!done && below(from)) {
        each(to, forget, 0);
        each(from, moved, to); // found by path, not by bucket: `remember` may add a second, newer one
    }
    return done;
}
int unlink(const char *path) {
    if (below(path) && faulty(WRITE)) return -1;
    int done = syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (!done && below(path)) each(path, forget, 0);
    return done;
}
int mkdir(const char *path, mode_t mode) {
    return below(path) && faulty(WRITE) ? -1 : syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}
