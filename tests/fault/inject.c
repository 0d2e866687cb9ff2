/* Lets the n-th call of one class fail, or every sync take its time, in the process that it is loaded into.
 *
 * Loaded with LD_PRELOAD. FAULT_CONTROL names a file of one page that is mapped shared, so that whoever watches the
 * process arms it, at any moment, and sees how far it got; FAULT_ROOT names the directory (absolute, symlinks resolved)
 * whose files and names are meant by the classes of files. All words are u64:
 *
 *      0       8     16   24      32     40       48         56
 *      | class | how | at | count | seen | struck | delay us | name of the call that failed first, 16 bytes
 *
 * Every call of the class counts one up in `seen`; those from number `at` on, `count` of them, fail with the errno `how`,
 * or write half of what they should (SHORT). `delay us` holds for syncs whatever the class, and is read again while one
 * waits, so that a slow disk can become quick in the midst of a sync.
 *
 * fault_scan() is to be called once all modules are loaded: it learns where the native modules and LMDB stand in memory
 * and takes its place in front of Python's allocators. Processes that are forked afterwards share the control word.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NOTHING, WRITE, SYNC, NAME, MEMORY, LMDB_MEMORY, OBJECT, SOCKET };
enum { SHORT = 1000 };
enum { RANGES_MAX = 64, FRAMES_MAX = 10 };

typedef struct {
    uint64_t klass, how, at, count, seen, struck, delay_us;
    char name[16];
} control_page;

typedef struct {
    uintptr_t begin, end;
    int of;
} code_range;

enum { OF_NATIVE = 1, OF_LMDB, OF_PYTHON, OF_INJECTOR };

static volatile control_page *control;
static char root[4096];
static size_t root_bytes;
static code_range ranges[RANGES_MAX];
static int ranges_count;
static uintptr_t eval_begin, eval_end;
static _Thread_local int inside; /* of the injector itself: what it calls is not meant */

#define REAL(name) ((name##_type)dlsym(RTLD_NEXT, #name))
#define DECLARE(result, name, ...) typedef result (*name##_type)(__VA_ARGS__);

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULT_CONTROL"), *wanted = getenv("FAULT_ROOT");
    if (path == NULL || wanted == NULL)
        return;
    snprintf(root, sizeof root, "%s/", wanted);
    root_bytes = strlen(root);
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    void *page = mmap(NULL, sizeof(control_page), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (page == MAP_FAILED)
        abort();
    control = page;
    unsetenv("LD_PRELOAD"); /* processes that this one executes are not meant */
}

/* --- Whether this call fails ---------------------------------------------------------------------------------- */

static int armed(int klass) { return control != NULL && !inside && control->klass == (uint64_t)klass; }

/* Count a call of the class that is armed; return 0 to go on, else what to fail with. */
static int strikes(const char *name)
{
    uint64_t number = __atomic_add_fetch(&control->seen, 1, __ATOMIC_SEQ_CST);
    uint64_t at = control->at;
    if (at == 0 || number < at || number - at >= control->count)
        return 0;
    if (__atomic_add_fetch(&control->struck, 1, __ATOMIC_SEQ_CST) == 1)
        strncpy((char *)control->name, name, sizeof control->name - 1);
    return (int)control->how;
}

static int is_ours(const char *path)
{
    return root_bytes > 0 && path != NULL &&
           (strncmp(path, root, root_bytes) == 0 ||
            (strlen(path) == root_bytes - 1 && strncmp(path, root, root_bytes - 1) == 0));
}

static int is_our_file(int descriptor)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return is_ours(path);
}

/* A connection or a listener. The pair of Unix sockets that wakes a loop up is neither. */
static int is_our_socket(int descriptor)
{
    int domain = 0;
    socklen_t size = sizeof domain;
    int saved = errno;
    int found = getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_INET;
    errno = saved;
    return found;
}

/* --- Files ---------------------------------------------------------------------------------------------------- */

DECLARE(ssize_t, write, int, const void *, size_t)
DECLARE(ssize_t, pwrite, int, const void *, size_t, off_t)
DECLARE(ssize_t, writev, int, const struct iovec *, int)
DECLARE(ssize_t, pwritev, int, const struct iovec *, int, off_t)

/* What is to become of a write: 0 go on, SHORT write half, else fail with that errno. */
static int write_fault(const char *name, int descriptor)
{
    if (armed(WRITE) && is_our_file(descriptor))
        return strikes(name);
    if (armed(SOCKET) && is_our_socket(descriptor))
        return strikes(name);
    return 0;
}

#define FAIL_IF(fault, result) \
    do { \
        int cause = (fault); \
        if (cause != 0) { \
            errno = cause; \
            return result; \
        } \
    } while (0)

ssize_t write(int descriptor, const void *data, size_t size)
{
    int fault = write_fault("write", descriptor);
    if (fault == SHORT)
        return REAL(write)(descriptor, data, size / 2);
    FAIL_IF(fault, -1);
    return REAL(write)(descriptor, data, size);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset)
{
    int fault = write_fault("pwrite", descriptor);
    if (fault == SHORT)
        return REAL(pwrite)(descriptor, data, size / 2, offset);
    FAIL_IF(fault, -1);
    return REAL(pwrite)(descriptor, data, size, offset);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
    int fault = write_fault("writev", descriptor);
    if (fault == SHORT)
        return REAL(write)(descriptor, parts[0].iov_base, parts[0].iov_len / 2);
    FAIL_IF(fault, -1);
    return REAL(writev)(descriptor, parts, count);
}

ssize_t pwritev(int descriptor, const struct iovec *parts, int count, off_t offset)
{
    int fault = write_fault("pwritev", descriptor);
    if (fault == SHORT)
        return REAL(pwrite)(descriptor, parts[0].iov_base, parts[0].iov_len / 2, offset);
    FAIL_IF(fault, -1);
    return REAL(pwritev)(descriptor, parts, count, offset);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off_t offset) __attribute__((alias("pwrite")));
ssize_t pwritev64(int descriptor, const struct iovec *parts, int count, off_t offset)
    __attribute__((alias("pwritev")));

static uint64_t monotonic_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void wait_for_the_disk(void)
{
    const struct timespec step = {0, 500000};
    uint64_t begun = monotonic_us();
    while (monotonic_us() - begun < control->delay_us)
        nanosleep(&step, NULL);
}

static int sync_with(const char *name, int descriptor, int (*synchronize)(int))
{
    if (control != NULL && !inside && (control->klass == SYNC || control->delay_us > 0) && is_our_file(descriptor)) {
        wait_for_the_disk();
        if (armed(SYNC))
            FAIL_IF(strikes(name), -1);
    }
    return synchronize(descriptor);
}

DECLARE(int, fsync, int)
DECLARE(int, fdatasync, int)

int fsync(int descriptor) { return sync_with("fsync", descriptor, REAL(fsync)); }
int fdatasync(int descriptor) { return sync_with("fdatasync", descriptor, REAL(fdatasync)); }

/* --- Names ---------------------------------------------------------------------------------------------------- */

DECLARE(int, open, const char *, int, ...)
DECLARE(int, openat, int, const char *, int, ...)
DECLARE(int, rename, const char *, const char *)
DECLARE(int, unlink, const char *)
DECLARE(int, unlinkat, int, const char *, int)
DECLARE(int, mkdir, const char *, mode_t)
DECLARE(int, ftruncate, int, off_t)
DECLARE(int, fallocate, int, int, off_t, off_t)

#define MODE(flags, last) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list arguments; \
        va_start(arguments, last); \
        mode = va_arg(arguments, mode_t); \
        va_end(arguments); \
    }

static int name_fault(const char *name, const char *path) { return armed(NAME) && is_ours(path) ? strikes(name) : 0; }

int open(const char *path, int flags, ...)
{
    MODE(flags, flags)
    FAIL_IF(name_fault("open", path), -1);
    return REAL(open)(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...)
{
    MODE(flags, flags)
    FAIL_IF(name_fault("openat", path), -1);
    return REAL(openat)(folder, path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));
int openat64(int folder, const char *path, int flags, ...) __attribute__((alias("openat")));

int rename(const char *from, const char *to)
{
    FAIL_IF(name_fault("rename", from), -1);
    return REAL(rename)(from, to);
}

int unlink(const char *path)
{
    FAIL_IF(name_fault("unlink", path), -1);
    return REAL(unlink)(path);
}

int unlinkat(int folder, const char *path, int flags)
{
    FAIL_IF(name_fault("unlinkat", path), -1);
    return REAL(unlinkat)(folder, path, flags);
}

int mkdir(const char *path, mode_t mode)
{
    FAIL_IF(name_fault("mkdir", path), -1);
    return REAL(mkdir)(path, mode);
}

int ftruncate(int descriptor, off_t size)
{
    if (armed(NAME) && is_our_file(descriptor))
        FAIL_IF(strikes("ftruncate"), -1);
    return REAL(ftruncate)(descriptor, size);
}

int ftruncate64(int descriptor, off_t size) __attribute__((alias("ftruncate")));

int fallocate(int descriptor, int mode, off_t offset, off_t size)
{
    if (armed(NAME) && is_our_file(descriptor))
        FAIL_IF(strikes("fallocate"), -1);
    return REAL(fallocate)(descriptor, mode, offset, size);
}

/* --- Sockets -------------------------------------------------------------------------------------------------- */

DECLARE(int, accept, int, struct sockaddr *, socklen_t *)
DECLARE(int, accept4, int, struct sockaddr *, socklen_t *, int)
DECLARE(ssize_t, read, int, void *, size_t)
DECLARE(ssize_t, recv, int, void *, size_t, int)
DECLARE(ssize_t, recvmsg, int, struct msghdr *, int)
DECLARE(ssize_t, send, int, const void *, size_t, int)
DECLARE(ssize_t, sendmsg, int, const struct msghdr *, int)
DECLARE(int, listen, int, int)
DECLARE(int, epoll_ctl, int, int, int, struct epoll_event *)
DECLARE(int, setsockopt, int, int, int, const void *, socklen_t)

static int socket_fault(const char *name, int descriptor)
{
    int fault = armed(SOCKET) && is_our_socket(descriptor) ? strikes(name) : 0;
    return fault == SHORT ? ENOBUFS : fault;
}

int accept(int descriptor, struct sockaddr *address, socklen_t *size)
{
    FAIL_IF(socket_fault("accept", descriptor), -1);
    return REAL(accept)(descriptor, address, size);
}

int accept4(int descriptor, struct sockaddr *address, socklen_t *size, int flags)
{
    FAIL_IF(socket_fault("accept4", descriptor), -1);
    return REAL(accept4)(descriptor, address, size, flags);
}

ssize_t read(int descriptor, void *data, size_t size)
{
    FAIL_IF(socket_fault("read", descriptor), -1);
    return REAL(read)(descriptor, data, size);
}

ssize_t recv(int descriptor, void *data, size_t size, int flags)
{
    FAIL_IF(socket_fault("recv", descriptor), -1);
    return REAL(recv)(descriptor, data, size, flags);
}

ssize_t recvmsg(int descriptor, struct msghdr *message, int flags)
{
    FAIL_IF(socket_fault("recvmsg", descriptor), -1);
    return REAL(recvmsg)(descriptor, message, flags);
}

ssize_t send(int descriptor, const void *data, size_t size, int flags)
{
    int fault = armed(SOCKET) && is_our_socket(descriptor) ? strikes("send") : 0;
    if (fault == SHORT)
        return REAL(send)(descriptor, data, (size + 1) / 2, flags);
    FAIL_IF(fault, -1);
    return REAL(send)(descriptor, data, size, flags);
}

ssize_t sendmsg(int descriptor, const struct msghdr *message, int flags)
{
    int fault = armed(SOCKET) && is_our_socket(descriptor) ? strikes("sendmsg") : 0;
    if (fault == SHORT)
        return REAL(send)(descriptor, message->msg_iov[0].iov_base, (message->msg_iov[0].iov_len + 1) / 2, flags);
    FAIL_IF(fault, -1);
    return REAL(sendmsg)(descriptor, message, flags);
}

int listen(int descriptor, int backlog)
{
    FAIL_IF(socket_fault("listen", descriptor), -1);
    return REAL(listen)(descriptor, backlog);
}

int epoll_ctl(int epoll, int operation, int descriptor, struct epoll_event *event)
{
    /* Only additions can fail for want of memory or watches. libuv aborts the process when one does, which is its own
     * decision and nobody's to handle, so what calls from there is let through. */
    if (operation == EPOLL_CTL_ADD) {
        Dl_info info;
        if (dladdr(__builtin_return_address(0), &info) == 0 || strstr(info.dli_fname, "uvloop") == NULL)
            FAIL_IF(socket_fault("epoll_ctl", descriptor), -1);
    }
    return REAL(epoll_ctl)(epoll, operation, descriptor, event);
}

int setsockopt(int descriptor, int level, int option, const void *value, socklen_t size)
{
    FAIL_IF(socket_fault("setsockopt", descriptor), -1);
    return REAL(setsockopt)(descriptor, level, option, value, size);
}

/* --- Memory --------------------------------------------------------------------------------------------------- */

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
DECLARE(void *, mmap, void *, size_t, int, int, int, off_t)

static int module_of(uintptr_t address)
{
    for (int at = 0; at < ranges_count; at++)
        if (address >= ranges[at].begin && address < ranges[at].end)
            return ranges[at].of;
    return 0;
}

static int memory_fault(const char *name, void *caller)
{
    if (control == NULL || inside)
        return 0;
    uint64_t klass = control->klass;
    if (klass != MEMORY && klass != LMDB_MEMORY)
        return 0;
    return module_of((uintptr_t)caller) == (klass == MEMORY ? OF_NATIVE : OF_LMDB) ? strikes(name) : 0;
}

void *malloc(size_t size)
{
    FAIL_IF(memory_fault("malloc", __builtin_return_address(0)), NULL);
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    FAIL_IF(memory_fault("calloc", __builtin_return_address(0)), NULL);
    return __libc_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
    FAIL_IF(memory_fault("realloc", __builtin_return_address(0)), NULL);
    return __libc_realloc(block, size);
}

void *mmap(void *address, size_t size, int protection, int flags, int descriptor, off_t offset)
{
    if (armed(LMDB_MEMORY) && module_of((uintptr_t)__builtin_return_address(0)) == OF_LMDB)
        FAIL_IF(strikes("mmap"), MAP_FAILED);
    return REAL(mmap)(address, size, protection, flags, descriptor, offset);
}

void *mmap64(void *address, size_t size, int protection, int flags, int descriptor, off_t offset)
    __attribute__((alias("mmap")));

/* Python's own allocators, for objects that a native module asks for. The layout is PyMemAllocatorEx. */
typedef struct {
    void *context;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *);
} python_allocator;

static python_allocator before[3];

/* Whether a native module asks, with nothing but Python's own C functions between it and the allocator. */
static int native_asks(void)
{
    void *frames[FRAMES_MAX];
    inside = 1;
    int count = backtrace(frames, FRAMES_MAX);
    inside = 0;
    for (int at = 1; at < count; at++) {
        uintptr_t address = (uintptr_t)frames[at];
        if (address >= eval_begin && address < eval_end)
            return 0;
        int of = module_of(address);
        if (of == OF_NATIVE)
            return 1;
        if (of != OF_PYTHON && of != OF_INJECTOR)
            return 0;
    }
    return 0;
}

static int object_fault(const char *name) { return armed(OBJECT) && native_asks() ? strikes(name) : 0; }

static void *object_malloc(void *context, size_t size)
{
    python_allocator *real = context;
    return object_fault("new") ? NULL : real->malloc(real->context, size);
}

static void *object_calloc(void *context, size_t count, size_t size)
{
    python_allocator *real = context;
    return object_fault("new") ? NULL : real->calloc(real->context, count, size);
}

static void *object_realloc(void *context, void *block, size_t size)
{
    python_allocator *real = context;
    return object_fault("grow") ? NULL : real->realloc(real->context, block, size);
}

static void object_free(void *context, void *block)
{
    python_allocator *real = context;
    real->free(real->context, block);
}

static void add_range(const struct dl_phdr_info *info, int of)
{
    for (int at = 0; at < info->dlpi_phnum; at++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[at];
        if (part->p_type == PT_LOAD && (part->p_flags & PF_X) && ranges_count < RANGES_MAX) {
            uintptr_t first = info->dlpi_addr + part->p_vaddr;
            ranges[ranges_count++] = (code_range){first, first + part->p_memsz, of};
        }
    }
}

static int on_module(struct dl_phdr_info *info, size_t size, void *python)
{
    const char *name = info->dlpi_name;
    uintptr_t base = info->dlpi_addr;
    (void)size;
    if (strstr(name, "/broker_native/") != NULL)
        add_range(info, OF_NATIVE);
    else if (strstr(name, "/lmdb/") != NULL)
        add_range(info, OF_LMDB);
    else if (base == (uintptr_t)((Dl_info *)python)[0].dli_fbase)
        add_range(info, OF_PYTHON);
    else if (base == (uintptr_t)((Dl_info *)python)[1].dli_fbase)
        add_range(info, OF_INJECTOR);
    return 0;
}

/* Learn where the modules are, and stand before Python's allocators; return how many stretches of code are known. */
int fault_scan(void)
{
    Dl_info modules[2];
    ElfW(Sym) *symbol = NULL;
    void *frames[2];
    void (*get)(int, python_allocator *) = (void (*)(int, python_allocator *))dlsym(RTLD_DEFAULT, "PyMem_GetAllocator");
    void (*set)(int, python_allocator *) = (void (*)(int, python_allocator *))dlsym(RTLD_DEFAULT, "PyMem_SetAllocator");
    void *eval = dlsym(RTLD_DEFAULT, "_PyEval_EvalFrameDefault");
    backtrace(frames, 2); /* loads what it needs now and not in the midst of an allocation */
    dladdr((void *)fault_scan, &modules[1]);
    if (eval == NULL || dladdr1(eval, &modules[0], (void **)&symbol, RTLD_DL_SYMENT) == 0 || symbol == NULL)
        return -1;
    eval_begin = (uintptr_t)eval;
    eval_end = eval_begin + symbol->st_size;
    dl_iterate_phdr(on_module, modules);
    for (int domain = 1; domain <= 2; domain++) {
        get(domain, &before[domain]);
        python_allocator wrapped = {&before[domain], object_malloc, object_calloc, object_realloc, object_free};
        set(domain, &wrapped);
    }
    return ranges_count;
}
