#include <errno.h>
#include <fcntl.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

uint64_t now_ms(void)
{
    return now_us() / 1000u;
}

/* A length without end has no end, rather than one in the past. */
uint64_t deadline_after(uint64_t start_ms, uint64_t length_ms)
{
    return length_ms < UINT64_MAX - start_ms ? start_ms + length_ms : UINT64_MAX;
}

/* For poll(2): rounded up by one, since waking a moment early would only spin. */
int milliseconds_until(uint64_t deadline_ms)
{
    if (deadline_ms == UINT64_MAX)
        return -1;
    uint64_t now = now_ms();
    if (deadline_ms <= now)
        return 0;
    uint64_t left = deadline_ms - now + 1;
    return left > 3600000u ? 3600000 : (int)left;
}

/* Reads a regular file that fits, NUL-terminated. A command may have put a FIFO or a device in its place, on which an
 * ordinary open would hang. */
ssize_t read_whole(int dir_fd, const char *path, char *buffer, size_t size)
{
    int fd = RETRY(openat(dir_fd, path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (fd < 0)
        return -1;
    size_t used = 0;
    while (used + 1 < size) {
        ssize_t got = RETRY(read(fd, buffer + used, size - 1 - used));
        if (got <= 0)
            break;
        used += (size_t)got;
    }
    close(fd);
    buffer[used] = '\0';
    return (ssize_t)used;
}

bool write_all(int fd, const void *data, size_t length)
{
    const uint8_t *next = data;
    while (length > 0) {
        ssize_t put = RETRY(write(fd, next, length));
        if (put <= 0)
            return false;
        next += put;
        length -= (size_t)put;
    }
    return true;
}

bool disk_below_reserve(void)
{
    struct statvfs disk;
    if (config.disk_reserve == 0 || statvfs("/", &disk) != 0)
        return false;
    return (uint64_t)disk.f_bavail * disk.f_frsize < config.disk_reserve;
}

/* close_range(2) is Linux 5.9; before it, PID 1's few descriptors are closed one by one. */
void close_from(int first)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, (unsigned)first, ~0u, 0u) == 0)
        return;
#endif
    for (int fd = first; fd < 2 * CALLS_MAX; fd++)
        close(fd);
}
