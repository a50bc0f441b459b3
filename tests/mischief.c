/* What an agent with a compiler can try against its own sandbox. Each mode is one attempt; it says how it went. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <unistd.h>

static void say(const char *what, int result)
{
    printf("%s: %s\n", what, result < 0 ? strerror(errno) : "ok");
    fflush(stdout);
}

/* Memory that no process holds any more when this one is gone. */
static int shared_memory(int megabytes)
{
    for (int i = 0; i < megabytes; i++) {
        int id = shmget(IPC_PRIVATE, 1 << 20, IPC_CREAT | 0600);
        char *place = id < 0 ? (char *)-1 : shmat(id, NULL, 0);
        if (place == (char *)-1) {
            say("shared memory", -1);
            return 1;
        }
        memset(place, 1, 1 << 20);
        shmdt(place);
    }
    say("shared memory", 0);
    return 0;
}

/* The limits of another process: PID 1's and the supervisor's. */
static int limits(void)
{
    static const int kinds[] = {RLIMIT_NOFILE, RLIMIT_AS, RLIMIT_CPU, RLIMIT_STACK};
    struct rlimit least = {3, 3};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        say("guest", prlimit(1, kinds[i], &least, NULL));
        say("supervisor", prlimit(getppid(), kinds[i], &least, NULL));
    }
    return 0;
}

static int descriptors(void)
{
    int count = 0;
    while (open("/dev/null", O_RDONLY) >= 0)
        count++;
    say("descriptors", -1);
    printf("%d\n", count);
    return 0;
}

/* A user's pipes share a budget of pages over all containers; beyond it they get small. */
static int pipes(int seconds)
{
    int ends[2], count = 0;
    while (count < 1500 && pipe(ends) == 0) {
        if (fcntl(ends[1], F_SETPIPE_SZ, 1 << 20) < 0 && count > 200)
            break;
        count++;
    }
    printf("%d pipes\n", count);
    fflush(stdout);
    if (fork() == 0) {
        sleep((unsigned)seconds);
        _exit(0);
    }
    return 0;
}

/* Many small processes that hold kernel memory, each as dear to the OOM killer as it may be. */
static int kernel_memory(int processes)
{
    static char block[65536];
    for (int i = 0; i < processes; i++) {
        if (fork() != 0)
            continue;
        int fd = open("/proc/self/oom_score_adj", O_WRONLY);
        if (fd >= 0 && write(fd, "0", 1) < 0)
            say("score", -1);
        int pair[2];
        while (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0)
            while (send(pair[0], block, sizeof block, MSG_DONTWAIT) > 0)
                ;
        pause();
        _exit(0);
    }
    sleep(2);
    return 0;
}

int main(int count, char **words)
{
    const char *mode = count > 1 ? words[1] : "";
    int number = count > 2 ? atoi(words[2]) : 0;
    if (strcmp(mode, "shared-memory") == 0)
        return shared_memory(number);
    if (strcmp(mode, "limits") == 0)
        return limits();
    if (strcmp(mode, "descriptors") == 0)
        return descriptors();
    if (strcmp(mode, "pipes") == 0)
        return pipes(number);
    if (strcmp(mode, "kernel-memory") == 0)
        return kernel_memory(number);
    return 2;
}
