/* Records what a process does to the files below one directory, for the enumeration of power-loss states.
 *
 * Loaded with LD_PRELOAD. POWERLOSS_ROOT names the directory (absolute, symlinks resolved), POWERLOSS_TRACE the file
 * that the record goes to. The process itself calls powerloss_mark() through ctypes to say what it has acknowledged,
 * and powerloss_fail() to let its next commit fail.
 *
 * One operation is
 *
 *      0     1       2        4      8       16        24         28         32
 *      | op | flags | unused | zero | inode | offset  | started  | path size | data size | path | data
 *        u8   u8      u16      u32    u64     u64       u32        u32         u32
 *
 * `started` is the number of operations that were complete when this one began: a sync covers no others. Operations
 * that change something run under one lock, so their order in the trace is the order in which they took effect; a sync
 * runs outside of it, as it is slow and other threads write meanwhile. LMDB's lock files are shared memory and change
 * without any call; LMDB rebuilds them whenever it opens one alone, so what they hold is not recorded.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OP_CREATE = 1, OP_MKDIR, OP_WRITE, OP_TRUNCATE, OP_SYNC, OP_RENAME, OP_UNLINK, OP_LINK, OP_MARK };
enum {
    FLAG_DURABLE = 1, /* a write through O_DSYNC or O_SYNC: on the disk when it returns */
    FLAG_FAILED = 2,  /* a sync that failed: what it should have written will not be tried again */
};
enum { FAIL_NOTHING, FAIL_SYNC, FAIL_META };

#define DESCRIPTORS_MAX 4096

typedef struct {
    uint8_t op, flags;
    uint16_t unused;
    uint32_t zero;
    uint64_t inode, offset;
    uint32_t started, path_bytes, data_bytes;
} __attribute__((packed)) record_header;

typedef struct {
    int tracked;
    int durable;
    uint64_t inode;
} descriptor_state;

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static descriptor_state descriptors[DESCRIPTORS_MAX];
static char root[4096];
static size_t root_bytes;
static int trace = -1;
static uint32_t completed;
static _Thread_local int failing; /* of the thread that asked: the sealer's own syncs are not meant */

/* Looked up at every call: some come before any constructor has run, and speed does not matter here. */
#define REAL(name) ((name##_type)dlsym(RTLD_NEXT, #name))
#define DECLARE(result, name, ...) typedef result (*name##_type)(__VA_ARGS__);

DECLARE(int, open, const char *, int, ...)
DECLARE(int, openat, int, const char *, int, ...)
DECLARE(int, close, int)
DECLARE(ssize_t, write, int, const void *, size_t)
DECLARE(ssize_t, pwrite, int, const void *, size_t, off_t)
DECLARE(ssize_t, writev, int, const struct iovec *, int)
DECLARE(ssize_t, pwritev, int, const struct iovec *, int, off_t)
DECLARE(int, ftruncate, int, off_t)
DECLARE(int, fsync, int)
DECLARE(int, fdatasync, int)
DECLARE(int, rename, const char *, const char *)
DECLARE(int, link, const char *, const char *)
DECLARE(int, unlink, const char *)
DECLARE(int, unlinkat, int, const char *, int)
DECLARE(int, mkdir, const char *, mode_t)

__attribute__((constructor)) static void recorder_begin(void)
{
    const char *wanted = getenv("POWERLOSS_ROOT"), *path = getenv("POWERLOSS_TRACE");
    if (wanted == NULL || path == NULL)
        return;
    snprintf(root, sizeof root, "%s/", wanted);
    root_bytes = strlen(root);
    trace = REAL(open)(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    /* Processes that this one starts are not part of the story. */
    unsetenv("LD_PRELOAD");
}

static int is_ours(const char *path) { return trace >= 0 && path != NULL && strncmp(path, root, root_bytes) == 0; }

/* The folder that the root stands for, without its slash. */
static int is_root(const char *path)
{
    return trace >= 0 && strlen(path) == root_bytes - 1 && strncmp(path, root, root_bytes - 1) == 0;
}

static void put(const void *data, size_t size)
{
    const char *at = data;
    while (size > 0) {
        ssize_t done = REAL(write)(trace, at, size);
        if (done < 0)
            abort();
        at += done;
        size -= (size_t)done;
    }
}

/* The caller holds `order`. For RENAME and LINK, `data` is the new path. */
static void record(int op, int flags, uint64_t inode, uint64_t offset, uint32_t started, const char *path,
                   const struct iovec *parts, int parts_count, size_t data_bytes)
{
    size_t path_bytes = path == NULL ? 0 : strlen(path) - root_bytes;
    record_header header = {
        .op = (uint8_t)op, .flags = (uint8_t)flags, .inode = inode, .offset = offset, .started = started,
        .path_bytes = (uint32_t)path_bytes, .data_bytes = (uint32_t)data_bytes,
    };
    put(&header, sizeof header);
    if (path != NULL)
        put(path + root_bytes, path_bytes);
    for (int i = 0; i < parts_count && data_bytes > 0; i++) {
        size_t size = parts[i].iov_len < data_bytes ? parts[i].iov_len : data_bytes;
        put(parts[i].iov_base, size);
        data_bytes -= size;
    }
    completed++;
}

static uint64_t inode_of(int descriptor)
{
    struct stat status;
    return fstat(descriptor, &status) == 0 ? (uint64_t)status.st_ino : 0;
}

static descriptor_state *state_of(int descriptor)
{
    if (descriptor < 0 || descriptor >= DESCRIPTORS_MAX || !descriptors[descriptor].tracked)
        return NULL;
    return &descriptors[descriptor];
}

/* --- Names ----------------------------------------------------------------------------------------------------- */

static void opened(int descriptor, const char *path, int flags, int existed)
{
    if (descriptor < 0 || descriptor >= DESCRIPTORS_MAX)
        return;
    descriptor_state *state = &descriptors[descriptor];
    state->tracked = 1;
    state->durable = (flags & (O_DSYNC | O_SYNC)) != 0;
    state->inode = is_root(path) ? 0 : inode_of(descriptor);
    if (!existed)
        record(OP_CREATE, 0, state->inode, 0, completed, path, NULL, 0, 0);
    else if (flags & O_TRUNC)
        record(OP_TRUNCATE, 0, state->inode, 0, completed, NULL, NULL, 0, 0);
}

int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list arguments;
        va_start(arguments, flags);
        mode = va_arg(arguments, mode_t);
        va_end(arguments);
    }
    if (!is_ours(path) && !is_root(path))
        return REAL(open)(path, flags, mode);
    pthread_mutex_lock(&order);
    int existed = access(path, F_OK) == 0;
    int descriptor = REAL(open)(path, flags, mode);
    int saved = errno;
    opened(descriptor, path, flags, existed);
    pthread_mutex_unlock(&order);
    errno = saved;
    return descriptor;
}

int openat(int folder, const char *path, int flags, ...)
{
    mode_t mode = 0;
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list arguments;
        va_start(arguments, flags);
        mode = va_arg(arguments, mode_t);
        va_end(arguments);
    }
    if (is_ours(path))
        return open(path, flags, mode);
    return REAL(openat)(folder, path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));
int openat64(int folder, const char *path, int flags, ...) __attribute__((alias("openat")));

int creat(const char *path, mode_t mode) { return open(path, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open(path, O_WRONLY | O_CREAT | O_TRUNC, mode); }

int close(int descriptor)
{
    pthread_mutex_lock(&order);
    descriptor_state *state = state_of(descriptor);
    if (state != NULL)
        state->tracked = 0;
    pthread_mutex_unlock(&order);
    return REAL(close)(descriptor);
}

static uint64_t inode_at(const char *path)
{
    struct stat status;
    return lstat(path, &status) == 0 ? (uint64_t)status.st_ino : 0;
}

static int two_names(int op, const char *from, const char *to, int (*change)(const char *, const char *))
{
    if (!is_ours(from) || !is_ours(to))
        return change(from, to);
    pthread_mutex_lock(&order);
    uint64_t inode = inode_at(from);
    int result = change(from, to);
    int saved = errno;
    struct iovec name = {(void *)(to + root_bytes), strlen(to) - root_bytes};
    if (result == 0)
        record(op, 0, inode, 0, completed, from, &name, 1, name.iov_len);
    pthread_mutex_unlock(&order);
    errno = saved;
    return result;
}

int rename(const char *from, const char *to) { return two_names(OP_RENAME, from, to, REAL(rename)); }
int link(const char *from, const char *to) { return two_names(OP_LINK, from, to, REAL(link)); }

int unlink(const char *path)
{
    if (!is_ours(path))
        return REAL(unlink)(path);
    pthread_mutex_lock(&order);
    uint64_t inode = inode_at(path);
    int result = REAL(unlink)(path);
    int saved = errno;
    if (result == 0)
        record(OP_UNLINK, 0, inode, 0, completed, path, NULL, 0, 0);
    pthread_mutex_unlock(&order);
    errno = saved;
    return result;
}

int unlinkat(int folder, const char *path, int flags)
{
    if (is_ours(path) && (flags & AT_REMOVEDIR) == 0)
        return unlink(path);
    return REAL(unlinkat)(folder, path, flags);
}

int mkdir(const char *path, mode_t mode)
{
    if (!is_ours(path))
        return REAL(mkdir)(path, mode);
    pthread_mutex_lock(&order);
    int result = REAL(mkdir)(path, mode);
    int saved = errno;
    if (result == 0)
        record(OP_MKDIR, 0, inode_at(path), 0, completed, path, NULL, 0, 0);
    pthread_mutex_unlock(&order);
    errno = saved;
    return result;
}

/* --- Bytes ------------------------------------------------------------------------------------------------------ */

/* The caller holds `order`. A durable write is LMDB's meta page: it may be told to fail after it has reached the cache,
 * which is when it is not known whether it will ever reach the disk. */
static ssize_t wrote(descriptor_state *state, ssize_t done, off_t offset, const struct iovec *parts, int parts_count)
{
    if (done <= 0)
        return done;
    int fails = state->durable && failing == FAIL_META;
    int flags = state->durable && !fails ? FLAG_DURABLE : 0;
    record(OP_WRITE, flags, state->inode, (uint64_t)offset, completed, NULL, parts, parts_count, (size_t)done);
    if (fails) {
        failing = FAIL_NOTHING;
        errno = EIO;
        return -1;
    }
    return done;
}

static ssize_t write_parts(int descriptor, const struct iovec *parts, int parts_count, off_t offset, int positioned)
{
    pthread_mutex_lock(&order);
    descriptor_state *state = state_of(descriptor);
    off_t at = positioned || state == NULL ? offset : lseek(descriptor, 0, SEEK_CUR);
    ssize_t done = positioned ? REAL(pwritev)(descriptor, parts, parts_count, offset)
                              : REAL(writev)(descriptor, parts, parts_count);
    int saved = errno;
    if (state != NULL) {
        errno = saved;
        done = wrote(state, done, at, parts, parts_count);
        saved = errno;
    }
    pthread_mutex_unlock(&order);
    errno = saved;
    return done;
}

ssize_t write(int descriptor, const void *data, size_t size)
{
    if (state_of(descriptor) == NULL)
        return REAL(write)(descriptor, data, size);
    struct iovec part = {(void *)data, size};
    return write_parts(descriptor, &part, 1, 0, 0);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset)
{
    if (state_of(descriptor) == NULL)
        return REAL(pwrite)(descriptor, data, size, offset);
    struct iovec part = {(void *)data, size};
    return write_parts(descriptor, &part, 1, offset, 1);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
    return state_of(descriptor) == NULL ? REAL(writev)(descriptor, parts, count)
                                        : write_parts(descriptor, parts, count, 0, 0);
}

ssize_t pwritev(int descriptor, const struct iovec *parts, int count, off_t offset)
{
    return state_of(descriptor) == NULL ? REAL(pwritev)(descriptor, parts, count, offset)
                                        : write_parts(descriptor, parts, count, offset, 1);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off_t offset) __attribute__((alias("pwrite")));
ssize_t pwritev64(int descriptor, const struct iovec *parts, int count, off_t offset)
    __attribute__((alias("pwritev")));

int ftruncate(int descriptor, off_t size)
{
    pthread_mutex_lock(&order);
    int result = REAL(ftruncate)(descriptor, size);
    int saved = errno;
    descriptor_state *state = state_of(descriptor);
    if (result == 0 && state != NULL)
        record(OP_TRUNCATE, 0, state->inode, (uint64_t)size, completed, NULL, NULL, 0, 0);
    pthread_mutex_unlock(&order);
    errno = saved;
    return result;
}

int ftruncate64(int descriptor, off_t size) __attribute__((alias("ftruncate")));

/* --- Syncs ------------------------------------------------------------------------------------------------------ */

static int sync_with(int descriptor, int (*synchronize)(int))
{
    pthread_mutex_lock(&order);
    descriptor_state *state = state_of(descriptor);
    uint32_t started = completed;
    uint64_t inode = state == NULL ? 0 : state->inode;
    int fails = state != NULL && failing == FAIL_SYNC;
    if (fails)
        failing = FAIL_NOTHING;
    pthread_mutex_unlock(&order);
    int result = fails ? -1 : synchronize(descriptor);
    int saved = fails ? EIO : errno;
    if (state != NULL) {
        pthread_mutex_lock(&order);
        record(OP_SYNC, result == 0 ? 0 : FLAG_FAILED, inode, 0, started, NULL, NULL, 0, 0);
        pthread_mutex_unlock(&order);
    }
    errno = saved;
    return result;
}

int fsync(int descriptor) { return sync_with(descriptor, REAL(fsync)); }
int fdatasync(int descriptor) { return sync_with(descriptor, REAL(fdatasync)); }

/* --- For the process itself ------------------------------------------------------------------------------------- */

/* Note that something happened: `kind` goes to the flags, `value` to the offset. */
void powerloss_mark(int kind, uint64_t value)
{
    if (trace < 0)
        return;
    pthread_mutex_lock(&order);
    record(OP_MARK, kind, 0, value, completed, NULL, NULL, 0, 0);
    pthread_mutex_unlock(&order);
}

/* Let this thread's next sync (1) or write of a meta page (2) fail with EIO; tell what was still to fail. */
int powerloss_fail(int what)
{
    pthread_mutex_lock(&order);
    int before = failing;
    failing = what;
    pthread_mutex_unlock(&order);
    return before;
}
