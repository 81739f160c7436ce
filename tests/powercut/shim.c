// A power cut for one process, for x86_64 and aarch64 Linux with glibc.
//
//   cc -shared -fPIC -O2 -o shim.so shim.c
//   cc -O2 -DRESTORE -o restore shim.c
//
//   POWERCUT_DIR=state POWERCUT_UNDO=undo LD_PRELOAD=./shim.so daemon &
//   kill -9 $!; ./restore undo
//
// kill -9 alone proves little about durability: what the process wrote is in
// the kernel's cache and survives it. This library notes the old content of
// each range of a file before it is changed, and forgets the notes of a file
// when an fsync or fdatasync of it succeeds. `restore` puts the old content
// back: each file is then as its last sync left it, as if nothing written
// since had reached the disk.
//
// Held to be durable at once, without a sync of the directory: creating,
// renaming and removing files. A file created and not synced is left empty.
// Excluded: "-shm" files (SQLite's index of its log: shared memory, of no
// meaning after a restart) and whatever is not a regular file below
// POWERCUT_DIR. Not modelled: a subset of unsynced writes reaching the disk.
// Calls that change a file in ways not followed here end the process loudly.
//
// An undo file has a header of HEADER bytes (magic, then the path) and
// records: offset, length and old size of the file, then the old bytes. A
// record cut short was never followed by its write. One process at a time
// uses an undo directory, and `restore` runs after each kill.

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "PWRCUT1\n"
#define HEADER (8 + PATH_MAX)

struct record {
    uint64_t offset, length, old_size;
};

#ifdef RESTORE

static void fail(const char *what, const char *path) {
    fprintf(stderr, "restore: %s: %s: %s\n", what, path, strerror(errno));
    exit(1);
}

static void undo(const char *journal) {
    FILE *in = fopen(journal, "rb");
    char header[HEADER];
    if (!in) fail("open", journal);
    if (fread(header, 1, HEADER, in) != HEADER || memcmp(header, MAGIC, 8)) {
        // Cut short while it was made: nothing was written yet.
        fclose(in);
        unlink(journal);
        return;
    }
    const char *path = header + 8;
    long *starts = NULL;
    size_t count = 0;
    fseek(in, 0, SEEK_END);
    long end = ftell(in);
    for (long at = HEADER;;) {
        struct record r;
        fseek(in, at, SEEK_SET);
        if (fread(&r, sizeof r, 1, in) != 1) break;
        if (r.length > (uint64_t)(end - at - (long)sizeof r)) break;
        starts = realloc(starts, (count + 1) * sizeof *starts);
        if (!starts) fail("memory", journal);
        starts[count++] = at;
        at += sizeof r + r.length;
    }
    int fd = open(path, O_RDWR);
    if (fd < 0 && errno != ENOENT) fail("open", path);
    for (size_t i = count; fd >= 0 && i-- > 0;) {
        struct record r;
        fseek(in, starts[i], SEEK_SET);
        if (fread(&r, sizeof r, 1, in) != 1) fail("read", journal);
        char *old = malloc(r.length + 1);
        if (!old || fread(old, 1, r.length, in) != r.length) fail("read", journal);
        if (pwrite(fd, old, r.length, r.offset) != (ssize_t)r.length) fail("write", path);
        if (ftruncate(fd, r.old_size)) fail("truncate", path);
        free(old);
    }
    if (fd >= 0) close(fd);
    printf("%s: %zu changes undone\n", path, count);
    free(starts);
    fclose(in);
    unlink(journal);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: restore UNDO_DIR\n");
        return 64;
    }
    DIR *dir = opendir(argv[1]);
    if (!dir) fail("open", argv[1]);
    for (struct dirent *e; (e = readdir(dir));) {
        char path[PATH_MAX + 256];
        if (!strstr(e->d_name, ".undo")) continue;
        snprintf(path, sizeof path, "%s/%s", argv[1], e->d_name);
        undo(path);
    }
    closedir(dir);
    return 0;
}

#else

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/uio.h>

#define MAX_FDS 65536
// Old content is copied through the stack in pieces of this size.
#define PIECE 65536

// A tracked file and its undo file. Never freed: descriptors point to it.
struct tracked {
    struct tracked *next;
    char path[PATH_MAX];
    int journal;
    int gone;
};

static struct tracked *files;
static struct tracked *by_fd[MAX_FDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], undo_dir[PATH_MAX];
static int active;

// The functions this library stands in front of.
#define REAL(name) __typeof__(&name) real = (__typeof__(&name))next_symbol(#name)

static void die(const char *what, const char *path) {
    dprintf(2, "powercut shim: %s: %s: %s\n", what, path, strerror(errno));
    abort();
}

static void *next_symbol(const char *name) {
    void *symbol = dlsym(RTLD_NEXT, name);
    if (!symbol) die("no such function", name);
    return symbol;
}

static int real_open(const char *path, int flags, mode_t mode) {
    static int (*real)(int, const char *, int, ...);
    if (!real) real = (int (*)(int, const char *, int, ...))next_symbol("openat64");
    return real(AT_FDCWD, path, flags, mode);
}

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("POWERCUT_DIR"), *undo = getenv("POWERCUT_UNDO");
    if (!dir || !*dir) return;
    if (!realpath(dir, root)) die("POWERCUT_DIR", dir);
    if (!undo || !realpath(undo, undo_dir)) die("POWERCUT_UNDO must be a directory", undo ? undo : "(unset)");
    active = 1;
}

static int below_root(const char *path) {
    size_t n = strlen(root), len = strlen(path);
    if (strncmp(path, root, n) || path[n] != '/') return 0;
    return !(len >= 4 && !strcmp(path + len - 4, "-shm"));
}

static void journal_path(const char *path, char *out) {
    uint64_t hash = 14695981039346656037u; // FNV-1a
    for (const char *p = path; *p; p++) hash = (hash ^ (unsigned char)*p) * 1099511628211u;
    if (snprintf(out, PATH_MAX, "%s/%016llx.undo", undo_dir, (unsigned long long)hash) >= PATH_MAX) die("too long", path);
}

static void all(int fd, const void *bytes, size_t len) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = (ssize_t(*)(int, const void *, size_t))next_symbol("write");
    for (const char *p = bytes; len;) {
        ssize_t n = real(fd, p, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) die("write", "undo file");
        p += n, len -= n;
    }
}

static void write_header(struct tracked *file) {
    char header[HEADER] = MAGIC;
    memcpy(header + 8, file->path, strlen(file->path));
    REAL(pwrite64);
    if (real(file->journal, header, HEADER, 0) != HEADER) die("write", "undo file");
}

// The state of a path; notes of an earlier process go on.
static struct tracked *track(const char *path) {
    for (struct tracked *f = files; f; f = f->next)
        if (!f->gone && !strcmp(f->path, path)) return f;
    struct tracked *file = calloc(1, sizeof *file);
    if (!file) die("memory", path);
    strcpy(file->path, path);
    char journal[PATH_MAX];
    journal_path(path, journal);
    file->journal = real_open(journal, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    struct stat st;
    if (file->journal < 0 || fstat(file->journal, &st)) die("undo file", journal);
    if (st.st_size < HEADER) write_header(file);
    lseek(file->journal, 0, SEEK_END);
    file->next = files;
    return files = file;
}

// Notes what is in a range, and the file's size, before they change. Reads
// through a descriptor of its own only where it must: closing one would drop
// the process's locks on the file.
static void note(struct tracked *file, int fd, uint64_t offset, uint64_t length) {
    if (file->gone) return;
    struct stat st;
    if (fstat(fd, &st)) die("stat", file->path);
    uint64_t size = st.st_size;
    uint64_t end = offset + length < size ? offset + length : size;
    struct record r = {offset, offset < end ? end - offset : 0, size};
    all(file->journal, &r, sizeof r);
    int from = fd, flags = fcntl(fd, F_GETFL);
    char own[64];
    if (r.length && (flags & O_ACCMODE) == O_WRONLY) {
        snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
        if ((from = real_open(own, O_RDONLY | O_CLOEXEC, 0)) < 0) die("open", file->path);
    }
    for (uint64_t at = offset; at < end;) {
        char piece[PIECE];
        ssize_t n = pread(from, piece, end - at < PIECE ? end - at : PIECE, at);
        if (n <= 0) die("read", file->path);
        all(file->journal, piece, n);
        at += n;
    }
    REAL(close);
    if (from != fd) real(from);
}

static void forget(struct tracked *file) {
    REAL(ftruncate64);
    if (real(file->journal, HEADER)) die("truncate", "undo file");
    lseek(file->journal, HEADER, SEEK_SET);
}

static struct tracked *tracked(int fd) {
    return active && fd >= 0 && fd < MAX_FDS ? by_fd[fd] : NULL;
}

static int follow(int fd, int truncate) {
    if (!active || fd < 0) return fd;
    char link[64], path[PATH_MAX];
    struct stat st = {0};
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) n = 0;
    path[n] = 0;
    int ours = below_root(path);
    if (ours && fd >= MAX_FDS) die("too many descriptors", path);
    if (fd >= MAX_FDS) ours = 0;
    pthread_mutex_lock(&lock);
    if (fd < MAX_FDS) by_fd[fd] = ours ? track(path) : NULL;
    if (truncate && (ours || S_ISREG(st.st_mode))) {
        REAL(ftruncate64);
        if (ours && st.st_size > 0) note(by_fd[fd], fd, 0, st.st_size);
        if (real(fd, 0)) die("truncate", path);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

// Opens without O_TRUNC, so that there is a file to take notes of.
static int opened(int dir, const char *path, int flags, mode_t mode) {
    int truncate = active && (flags & O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY;
    REAL(openat64);
    int fd = real(dir, path, truncate ? flags & ~O_TRUNC : flags, mode);
    int error = errno;
    follow(fd, truncate);
    errno = error;
    return fd;
}

#define MODE(last)                                             \
    mode_t mode = 0;                                           \
    if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { \
        va_list more;                                          \
        va_start(more, last);                                  \
        mode = va_arg(more, mode_t);                           \
        va_end(more);                                          \
    }

// 64-bit off_t everywhere, so that the two names of each are one function;
// the headers must not rename one into the other.
#define OPEN(name) \
    int name(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { MODE(flags) return opened(dir, path, flags, mode); }
OPEN(powercut_open)
OPENAT(powercut_openat)

int powercut_creat(const char *path, mode_t mode) {
    return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

// The lock is held over note and change, so that a sync sees both or neither.
#define CHANGE(fd, offset, length, call)         \
    do {                                         \
        struct tracked *file = tracked(fd);      \
        if (!file) return call;                  \
        pthread_mutex_lock(&lock);               \
        note(file, fd, offset, length);          \
        __typeof__(call) result = call;          \
        int error = errno;                       \
        pthread_mutex_unlock(&lock);             \
        errno = error;                           \
        return result;                           \
    } while (0)

static uint64_t position(int fd) {
    struct stat st;
    if ((fcntl(fd, F_GETFL) & O_APPEND) && !fstat(fd, &st)) return st.st_size;
    return lseek(fd, 0, SEEK_CUR);
}

static uint64_t total(const struct iovec *iov, int count) {
    uint64_t sum = 0;
    for (int i = 0; i < count; i++) sum += iov[i].iov_len;
    return sum;
}

ssize_t write(int fd, const void *bytes, size_t len) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = (ssize_t(*)(int, const void *, size_t))next_symbol("write");
    CHANGE(fd, position(fd), len, real(fd, bytes, len));
}

ssize_t writev(int fd, const struct iovec *iov, int count) {
    REAL(writev);
    CHANGE(fd, position(fd), total(iov, count), real(fd, iov, count));
}

ssize_t powercut_pwrite(int fd, const void *bytes, size_t len, off_t offset) {
    REAL(pwrite64);
    CHANGE(fd, offset, len, real(fd, bytes, len, offset));
}

ssize_t powercut_pwritev(int fd, const struct iovec *iov, int count, off_t offset) {
    REAL(pwritev64);
    CHANGE(fd, offset, total(iov, count), real(fd, iov, count, offset));
}

// Everything behind the new size is noted; growing notes the size alone.
int powercut_ftruncate(int fd, off_t size) {
    REAL(ftruncate64);
    CHANGE(fd, size, INT64_MAX - size, real(fd, size));
}

int powercut_posix_fallocate(int fd, off_t offset, off_t len) {
    REAL(posix_fallocate64);
    CHANGE(fd, offset, 0, real(fd, offset, len));
}

int powercut_fallocate(int fd, int mode, off_t offset, off_t len) {
    REAL(fallocate64);
    if (tracked(fd) && mode & ~FALLOC_FL_KEEP_SIZE) die("fallocate is not followed", tracked(fd)->path);
    CHANGE(fd, offset, 0, real(fd, mode, offset, len));
}

#define SYNC(name)                               \
    int name(int fd) {                           \
        REAL(name);                              \
        struct tracked *file = tracked(fd);      \
        if (!file) return real(fd);              \
        pthread_mutex_lock(&lock);               \
        int result = real(fd), error = errno;    \
        if (!result && !file->gone) forget(file); \
        pthread_mutex_unlock(&lock);             \
        errno = error;                           \
        return result;                           \
    }
SYNC(fsync)
SYNC(fdatasync)

int close(int fd) {
    REAL(close);
    if (active && fd >= 0 && fd < MAX_FDS && by_fd[fd]) {
        pthread_mutex_lock(&lock);
        by_fd[fd] = NULL;
        pthread_mutex_unlock(&lock);
    }
    return real(fd);
}

// The absolute path of a directory entry that need not exist, with the links
// in its directory resolved. Empty if there is none.
static void entry(int dir, const char *path, char *out) {
    char joined[2 * PATH_MAX], parent[PATH_MAX];
    if (path[0] == '/' || dir == AT_FDCWD) snprintf(joined, sizeof joined, "%s", path);
    else snprintf(joined, sizeof joined, "/proc/self/fd/%d/%s", dir, path);
    char *slash = strrchr(joined, '/');
    const char *name = slash ? slash + 1 : joined;
    if (slash) *slash = 0;
    *out = 0;
    if (realpath(slash ? (joined[0] ? joined : "/") : ".", parent)) {
        if (snprintf(out, PATH_MAX, "%s/%s", parent, name) >= PATH_MAX) *out = 0;
    }
}

static void drop(const char *path) {
    char journal[PATH_MAX];
    for (struct tracked *f = files; f; f = f->next)
        if (!f->gone && !strcmp(f->path, path)) f->gone = 1;
    journal_path(path, journal);
    REAL(unlink);
    real(journal);
}

static int removed(int result, const char *path) {
    if (!result && active && below_root(path)) {
        int error = errno;
        pthread_mutex_lock(&lock);
        drop(path);
        pthread_mutex_unlock(&lock);
        errno = error;
    }
    return result;
}

int unlinkat(int dir, const char *name, int flags) {
    char path[PATH_MAX] = "";
    if (active) entry(dir, name, path);
    REAL(unlinkat);
    return removed(real(dir, name, flags), path);
}

int unlink(const char *name) {
    return unlinkat(AT_FDCWD, name, 0);
}

int remove(const char *name) {
    char path[PATH_MAX] = "";
    if (active) entry(AT_FDCWD, name, path);
    REAL(remove);
    return removed(real(name), path);
}

// The notes of a file go with it to its new name.
static void moved(const char *from, const char *to) {
    if (below_root(to)) drop(to);
    if (!below_root(from)) return;
    char old_journal[PATH_MAX], new_journal[PATH_MAX];
    journal_path(from, old_journal);
    if (access(old_journal, F_OK)) return;
    if (!below_root(to)) return drop(from);
    struct tracked *file = track(from);
    strcpy(file->path, to);
    write_header(file);
    journal_path(to, new_journal);
    REAL(renameat);
    if (real(AT_FDCWD, old_journal, AT_FDCWD, new_journal)) die("rename", old_journal);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char from_path[PATH_MAX] = "", to_path[PATH_MAX] = "";
    if (active) entry(from_dir, from, from_path), entry(to_dir, to, to_path);
    if ((flags & RENAME_EXCHANGE) && active && (below_root(from_path) || below_root(to_path)))
        die("RENAME_EXCHANGE is not followed", from_path);
    REAL(renameat2);
    pthread_mutex_lock(&lock);
    int result = real(from_dir, from, to_dir, to, flags), error = errno;
    if (!result && active) moved(from_path, to_path);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return renameat2(from_dir, from, to_dir, to, 0);
}

int rename(const char *from, const char *to) {
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

// Not followed: callers fall back to writes.
ssize_t powercut_copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t len, unsigned flags) {
    REAL(copy_file_range);
    if (tracked(out)) return errno = ENOSYS, -1;
    return real(in, in_at, out, out_at, len, flags);
}

ssize_t powercut_sendfile(int out, int in, off_t *at, size_t len) {
    static ssize_t (*real)(int, int, off_t *, size_t);
    if (!real) real = (ssize_t(*)(int, int, off_t *, size_t))next_symbol("sendfile64");
    if (tracked(out)) return errno = ENOSYS, -1;
    return real(out, in, at, len);
}

int powercut_truncate(const char *path, off_t size) {
    int fd = opened(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    int result = powercut_ftruncate(fd, size), error = errno;
    close(fd);
    errno = error;
    return result;
}

void *powercut_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset) {
    REAL(mmap64);
    if ((prot & PROT_WRITE) && (flags & MAP_TYPE) != MAP_PRIVATE && tracked(fd))
        die("writing through a mapping is not followed", tracked(fd)->path);
    return real(at, len, prot, flags, fd, offset);
}

// Each of these has a second name for 64-bit offsets.
#define ALIAS(ours, name) __asm__(".globl " #name "\n.set " #name ", " #ours);
#define BOTH(name) ALIAS(powercut_##name, name) ALIAS(powercut_##name, name##64)
BOTH(open)
BOTH(openat)
BOTH(creat)
BOTH(pwrite)
BOTH(pwritev)
BOTH(ftruncate)
BOTH(truncate)
BOTH(fallocate)
BOTH(posix_fallocate)
BOTH(sendfile)
BOTH(mmap)
ALIAS(powercut_copy_file_range, copy_file_range)
ALIAS(powercut_open, __open_2)
ALIAS(powercut_open, __open64_2)
ALIAS(powercut_openat, __openat_2)
ALIAS(powercut_openat, __openat64_2)

#endif
