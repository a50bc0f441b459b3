/* What a hostile program inside a sandbox does, act by act. Each act says on stdout what the kernel answered. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void told(const char *what, long result)
{
    printf("%s: %s\n", what, result < 0 ? strerror(errno) : "ok");
    fflush(stdout);
}

static void pause_ms(long milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static int list_fds(void)
{
    for (int fd = 0; fd < 4096; fd++)
        if (fcntl(fd, F_GETFD) != -1)
            printf("%d\n", fd);
    return 0;
}

/* Signals that were queued beyond RLIMIT_SIGPENDING lose their sender: then a SIGTERM from inside looks like one from
 * outside the namespace. */
static int forge_term(void)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    long queued = 0;
    struct rlimit pending;
    union sigval value = {0};
    getrlimit(RLIMIT_SIGPENDING, &pending);
    while (queued < 2000000 && sigqueue(getpid(), SIGRTMIN, value) == 0)
        queued++;
    printf("queued %ld of %ld\n", queued, (long)pending.rlim_cur);
    told("sigqueue", sigqueue(1, SIGTERM, value));
    pause_ms(200);
    return 0;
}

/* A descriptor's owner gets the signal of its choice when data comes; the kernel lets root own for anybody. */
static int signal_by_io(pid_t target, int number)
{
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    told("F_SETOWN", fcntl(pair[0], F_SETOWN, target));
    told("F_SETSIG", fcntl(pair[0], F_SETSIG, number));
    fcntl(pair[0], F_SETFL, O_ASYNC | O_NONBLOCK);
    if (write(pair[1], "x", 1) != 1)
        return 1;
    pause_ms(100);
    return 0;
}

static int reach(pid_t target)
{
    char path[64], buffer[64];
    struct iovec local = {buffer, sizeof buffer}, remote = {(void *)0x400000, sizeof buffer};
    struct rlimit none = {0, 0};
    struct sched_param param = {0};
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    static const char *const readable[] = {"environ", "mem", "maps", "auxv", "stack", "io", "syscall", "pagemap", "exe"};
    for (size_t i = 0; i < sizeof readable / sizeof readable[0]; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", (int)target, readable[i]);
        int fd = open(path, O_RDONLY);
        told(readable[i], fd < 0 ? -1 : read(fd, buffer, 1));
    }
    snprintf(path, sizeof path, "/proc/%d/fd", (int)target);
    told("fd", opendir(path) ? 0 : -1);
    for (int fd = 0; fd < 8; fd++) {
        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)target, fd);
        if (open(path, O_WRONLY) >= 0)
            printf("fd %d: ok\n", fd);
    }
    static const char *const writable[] = {"oom_score_adj", "mem", "clear_refs", "coredump_filter", "timerslack_ns",
                                           "autogroup", "comm", "setgroups", "uid_map"};
    for (size_t i = 0; i < sizeof writable / sizeof writable[0]; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", (int)target, writable[i]);
        int fd = open(path, O_WRONLY);
        char label[64];
        snprintf(label, sizeof label, "write %s", writable[i]);
        told(label, fd < 0 ? -1 : write(fd, strcmp(writable[i], "oom_score_adj") ? "1" : "1000", strcmp(writable[i], "oom_score_adj") ? 1 : 4));
    }
    told("vm_readv", process_vm_readv(target, &local, 1, &remote, 1, 0));
    told("vm_writev", process_vm_writev(target, &local, 1, &remote, 1, 0));
    told("seize", ptrace(PTRACE_SEIZE, target, 0, 0));
    long pidfd = syscall(SYS_pidfd_open, target, 0);
    told("pidfd_getfd", syscall(438, pidfd, 1, 0));
    told("setpriority", setpriority(PRIO_PROCESS, (id_t)target, 19));
    told("sched_setscheduler", sched_setscheduler(target, SCHED_IDLE, &param));
    told("sched_setaffinity", sched_setaffinity(target, sizeof first, &first));
    told("ioprio_set", syscall(SYS_ioprio_set, 1, target, 3 << 13));
    told("prlimit", prlimit(target, RLIMIT_NOFILE, &none, NULL));
    told("kill", kill(target, SIGCONT));
    return 0;
}

/* Opens the read end of its own stdout again, and takes what is in it. */
static int steal(void)
{
    char buffer[65536];
    int fd = open("/proc/self/fd/1", O_RDONLY);
    if (fd < 0)
        return 1;
    while (read(fd, buffer, sizeof buffer) > 0)
        ;
    return 0;
}

/* Leaves its parent, its session and its process group, and hears no SIGTERM. */
static int leave(const char *seconds)
{
    if (fork() > 0)
        return 0;
    setsid();
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    if (fork() > 0)
        return 0;
    execlp("sleep", "sleep", seconds, NULL);
    return 1;
}

/* Every child leaves the session and forks on; its own parent is soon gone. */
static int bomb(void)
{
    signal(SIGTERM, SIG_IGN);
    for (;;) {
        if (fork() == 0)
            setsid();
    }
}

/* Holds on to a process: its parent can't reap it then. */
static int trace(pid_t target)
{
    told("seize", ptrace(PTRACE_SEIZE, target, 0, 0));
    for (;;)
        pause_ms(1000);
}

/* Adopts what its own descendants detach. */
static int adopt(const char *seconds)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (int i = 0; i < 3; i++)
        if (fork() == 0)
            _exit(leave(seconds));
    signal(SIGTERM, SIG_IGN);
    for (;;)
        pause_ms(1000);
}

static int hog(long mebibytes)
{
    for (long i = 0; i < mebibytes; i++) {
        char *block = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED)
            return 3;
        memset(block, 1, 1 << 20);
    }
    return 0;
}

/* A descriptor of the file stays open for a writer, who goes on appending or cutting. */
static int churn(const char *path, const char *how)
{
    static char block[65536];
    int fd = open(path, O_RDWR | O_CREAT, 0644);
    for (;;) {
        if (strcmp(how, "grow") == 0) {
            if (write(fd, block, sizeof block) < 0)
                return 1;
        } else if (ftruncate(fd, 0) != 0 || ftruncate(fd, 8 << 20) != 0)
            return 1;
    }
}

/* A packet pipe: what a short read leaves of a packet is lost. */
static int packets(void)
{
    static char block[4096];
    fcntl(1, F_SETFL, O_DIRECT);
    memset(block, 'p', sizeof block);
    for (int i = 0; i < 10; i++)
        if (write(1, block, 100) != 100)
            return 1;
    return 0;
}

/* Lowers PID 1's priority in the instants in which PID 1 bears this user's id. */
static int race_priority(long milliseconds)
{
    struct timespec now, end;
    long hits = 0;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += milliseconds / 1000;
    do {
        for (int i = 0; i < 100; i++)
            hits += setpriority(PRIO_PROCESS, 1, 19) == 0;
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec < end.tv_sec);
    printf("hits %ld\n", hits);
    return 0;
}

/* What a root command with CAP_SETUID and CAP_SETGID may do: become anybody and keep its capabilities. */
static void become(unsigned id)
{
    prctl(PR_SET_KEEPCAPS, 1);
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    syscall(SYS_capget, &header, data);
    told("become", setresgid(id, id, id) < 0 || setresuid(id, id, id) < 0 ? -1 : 0);
    data[0].effective = data[0].permitted;
    syscall(SYS_capset, &header, data);
}

static int shm(long mebibytes)
{
    int id = shmget(IPC_PRIVATE, (size_t)mebibytes << 20, 0600);
    void *block = shmat(id, NULL, 0);
    if (id < 0 || block == (void *)-1)
        return 3;
    memset(block, 1, (size_t)mebibytes << 20);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 3 && strcmp(argv[1], "become") == 0) {
        become((unsigned)atoi(argv[2]));
        argc -= 2;
        argv += 2;
    }
    const char *act = argc > 1 ? argv[1] : "", *first = argc > 2 ? argv[2] : "", *second = argc > 3 ? argv[3] : "";
    if (strcmp(act, "fds") == 0)
        return list_fds();
    if (strcmp(act, "forge-term") == 0)
        return forge_term();
    if (strcmp(act, "sigio") == 0)
        return signal_by_io((pid_t)atoi(first), atoi(second));
    if (strcmp(act, "reach") == 0)
        return reach((pid_t)atoi(first));
    if (strcmp(act, "steal") == 0)
        return steal();
    if (strcmp(act, "leave") == 0)
        return leave(first);
    if (strcmp(act, "bomb") == 0)
        return bomb();
    if (strcmp(act, "trace") == 0)
        return trace((pid_t)atoi(first));
    if (strcmp(act, "adopt") == 0)
        return adopt(first);
    if (strcmp(act, "hog") == 0)
        return hog(atol(first));
    if (strcmp(act, "churn") == 0)
        return churn(first, second);
    if (strcmp(act, "packets") == 0)
        return packets();
    if (strcmp(act, "race-priority") == 0)
        return race_priority(atol(first));
    if (strcmp(act, "shm") == 0)
        return shm(atol(first));
    if (strcmp(act, "cpu-limit") == 0) {
        struct rlimit one = {1, 1};
        told("prlimit", prlimit((pid_t)atoi(first), RLIMIT_CPU, &one, NULL));
        return 0;
    }
    fprintf(stderr, "no act %s\n", act);
    return 2;
}
