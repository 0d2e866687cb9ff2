/* Waiting for many sockets and one deadline: epoll with a timerfd on Linux, poll elsewhere.
 *
 * The caller numbers its sockets densely from 0 in the order in which it adds them, and gets the numbers back. Reading is
 * of interest unless the caller says otherwise; writing is switched on while something waits to be written. Events are
 * level-triggered, so a caller may take one buffer from each ready socket and come back. A socket whose peer has gone is
 * readable whatever was of interest.
 *
 * A deadline is a time of clock_ns(). The timerfd gives it without the kernel's timer slack (50 us of a thread's sleep),
 * which would be half a tick of the load driver. Elsewhere the last millisecond is slept without listening.
 *
 * One thread owns a Poller. Nothing here closes the caller's sockets.
 */
#ifndef BROKER_DRIVER_POLL_H
#define BROKER_DRIVER_POLL_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__) && !defined(DRIVER_PORTABLE)
#define DRIVER_EPOLL 1
#include <sys/epoll.h>
#include <sys/timerfd.h>
#else
#define DRIVER_EPOLL 0
#endif

#define POLLER_NEVER UINT64_MAX
#define POLLER_EVENTS_MAX 256
#define POLLER_TIMER UINT32_MAX

typedef struct {
    uint32_t index;
    uint8_t readable; /* also when the peer has closed or the socket has failed: the read will say so */
    uint8_t writable;
} PollerEvent;

typedef struct {
    uint32_t count;
#if DRIVER_EPOLL
    int epoll_fd;
    int timer_fd;
    uint64_t armed_ns; /* the deadline that the timer has, POLLER_NEVER when it has none */
#else
    struct pollfd *sockets;
    uint32_t capacity;
    uint32_t next; /* where the next look begins, so that the first sockets do not starve the last */
#endif
} Poller;

static inline uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Processor time of the calling thread. */
static inline uint64_t clock_cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#if DRIVER_EPOLL

static inline void poller_close(Poller *poller)
{
    if (poller->timer_fd >= 0)
        close(poller->timer_fd);
    if (poller->epoll_fd >= 0)
        close(poller->epoll_fd);
    poller->timer_fd = poller->epoll_fd = -1;
}

/* Returns 0, or an errno; a Poller that failed to open needs no close. */
static inline int poller_open(Poller *poller)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data = {.u32 = POLLER_TIMER}};
    poller->count = 0;
    poller->armed_ns = POLLER_NEVER;
    poller->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    poller->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    /* Edge-triggered, so that an expiry needs no read: setting the timer again clears it. */
    if (poller->epoll_fd >= 0 && poller->timer_fd >= 0
        && epoll_ctl(poller->epoll_fd, EPOLL_CTL_ADD, poller->timer_fd, &event) == 0)
        return 0;
    int reason = errno;
    poller_close(poller);
    return reason;
}

static inline int poller_add(Poller *poller, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data = {.u32 = poller->count}};
    if (epoll_ctl(poller->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        return errno;
    poller->count++;
    return 0;
}

static inline int poller_interest(Poller *poller, int fd, uint32_t index, int reading, int writing)
{
    struct epoll_event event = {.events = 0, .data = {.u32 = index}};
    if (reading)
        event.events |= EPOLLIN;
    if (writing)
        event.events |= EPOLLOUT;
    return epoll_ctl(poller->epoll_fd, EPOLL_CTL_MOD, fd, &event) == 0 ? 0 : errno;
}

static inline int poller_arm(Poller *poller, uint64_t deadline_ns)
{
    struct itimerspec when = {{0, 0}, {0, 0}};
    if (deadline_ns == poller->armed_ns)
        return 0;
    /* POLLER_NEVER is in 584 years. */
    when.it_value.tv_sec = (time_t)(deadline_ns / 1000000000u);
    when.it_value.tv_nsec = (long)(deadline_ns % 1000000000u);
    poller->armed_ns = deadline_ns;
    return timerfd_settime(poller->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) == 0 ? 0 : errno;
}

/* Returns the number of events, 0 when the deadline has come or a signal arrived, or -errno. */
static inline int poller_wait(Poller *poller, uint64_t deadline_ns, PollerEvent *events)
{
    struct epoll_event ready[POLLER_EVENTS_MAX];
    int timeout_ms = deadline_ns <= clock_ns() ? 0 : -1;
    int failed = timeout_ms == 0 ? 0 : poller_arm(poller, deadline_ns);
    if (failed)
        return -failed;
    int count = epoll_wait(poller->epoll_fd, ready, POLLER_EVENTS_MAX, timeout_ms);
    if (count < 0)
        return errno == EINTR ? 0 : -errno;
    int taken = 0;
    for (int i = 0; i < count; i++) {
        if (ready[i].data.u32 == POLLER_TIMER) {
            poller->armed_ns = POLLER_NEVER;
            continue;
        }
        events[taken].index = ready[i].data.u32;
        events[taken].readable = (ready[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0;
        events[taken].writable = (ready[i].events & EPOLLOUT) != 0;
        taken++;
    }
    return taken;
}

#else

static inline int poller_open(Poller *poller)
{
    memset(poller, 0, sizeof *poller);
    return 0;
}

static inline void poller_close(Poller *poller)
{
    free(poller->sockets);
    memset(poller, 0, sizeof *poller);
}

static inline int poller_add(Poller *poller, int fd)
{
    /* poll passes over what is no descriptor; epoll refuses it, and so does this. */
    if (fcntl(fd, F_GETFD) < 0)
        return errno;
    if (poller->count == poller->capacity) {
        uint32_t capacity = poller->capacity ? 2 * poller->capacity : 64;
        struct pollfd *sockets = realloc(poller->sockets, capacity * sizeof *sockets);
        if (!sockets)
            return ENOMEM;
        poller->sockets = sockets;
        poller->capacity = capacity;
    }
    poller->sockets[poller->count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    return 0;
}

static inline int poller_interest(Poller *poller, int fd, uint32_t index, int reading, int writing)
{
    (void)fd;
    poller->sockets[index].events = (short)((reading ? POLLIN : 0) | (writing ? POLLOUT : 0));
    return 0;
}

/* poll counts milliseconds: the last part of a wait is slept without listening, then everything is looked at once. */
static inline int poller_timeout_ms(uint64_t deadline_ns)
{
    if (deadline_ns == POLLER_NEVER)
        return -1;
    uint64_t now_ns = clock_ns();
    uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    if (left_ns >= 1000000)
        return left_ns / 1000000 > 60000 ? 60000 : (int)(left_ns / 1000000);
    struct timespec rest = {.tv_sec = 0, .tv_nsec = (long)left_ns};
    if (left_ns)
        nanosleep(&rest, NULL);
    return 0;
}

static inline int poller_wait(Poller *poller, uint64_t deadline_ns, PollerEvent *events)
{
    int count = poll(poller->sockets, (nfds_t)poller->count, poller_timeout_ms(deadline_ns));
    if (count < 0)
        return errno == EINTR ? 0 : -errno;
    int taken = 0;
    uint32_t index = poller->next;
    for (uint32_t looked = 0; looked < poller->count && taken < count && taken < POLLER_EVENTS_MAX; looked++) {
        short found = poller->sockets[index].revents;
        if (found) {
            events[taken].index = index;
            events[taken].readable = (found & (POLLIN | POLLERR | POLLHUP | POLLNVAL)) != 0;
            events[taken].writable = (found & POLLOUT) != 0;
            taken++;
        }
        index = index + 1 == poller->count ? 0 : index + 1;
    }
    poller->next = index;
    return taken;
}

#endif
#endif
