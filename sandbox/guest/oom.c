/* The kernel's own count of processes that the OOM killer took in this container.
 *
 * Docker's `OOMKilled` stays false as long as PID 1 lives, so this counter is the only witness. cgroup v1 keeps it in
 * memory.oom_control (Linux 4.13), v2 in memory.events; a runtime with a kernel of its own (gVisor) has neither. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

static bool count_in(int fd, uint64_t *count)
{
    char text[1024];
    ssize_t got = RETRY(pread(fd, text, sizeof text - 1, 0));
    if (got <= 0)
        return false;
    text[got] = '\0';
    const char *line = text;
    while (line) {
        if (strncmp(line, "oom_kill ", 9) == 0) {
            *count = strtoull(line + 9, NULL, 10);
            return true;
        }
        line = strchr(line, '\n');
        if (line)
            line++;
    }
    return false;
}

bool oom_open(void)
{
    static const char *const places[] = {"/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        uint64_t ignored;
        int fd = RETRY(open(places[i], O_RDONLY | O_NONBLOCK | O_CLOEXEC));
        bool found = fd >= 0 && count_in(fd, &ignored) && dup3(fd, FD_OOM, O_CLOEXEC) >= 0;
        if (fd >= 0)
            close(fd);
        if (found)
            return true;
    }
    return false;
}

/* False where there is no counter: the descriptor is /dev/null then. */
bool oom_count(uint64_t *count)
{
    return count_in(FD_OOM, count);
}
