/* PID 1 of a sandbox. It routes frames between the controller and the calls' processes, and ends them when they or
 * the controller can't. It runs no command itself and reads no file that a command can write. */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

struct config config = {.lease_ms = 120000};

static uint64_t started_ms, last_frame_ms;

static void read_option(const char *text)
{
    static const struct {
        const char *name;
        uint64_t *value;
        int base;
    } options[] = {
        {"--lease-ms=", &config.lease_ms, 10},         {"--lifetime-ms=", &config.lifetime_ms, 10},
        {"--caps=", &config.caps, 16},                 {"--nofile=", &config.nofile, 10},
        {"--fsize=", &config.fsize, 10},               {"--cpu=", &config.cpu, 10},
        {"--disk-reserve=", &config.disk_reserve, 10},
    };
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        size_t length = strlen(options[i].name);
        if (strncmp(text, options[i].name, length) == 0) {
            char *end;
            *options[i].value = strtoull(text + length, &end, options[i].base);
            if (text[length] != '\0' && *end == '\0')
                return;
        }
    }
    link_die(GUEST_NO_START, "the guest was given an option that it doesn't know: %.200s", text);
}

static void require_pid_one(void)
{
    if (getpid() != 1)
        link_die(GUEST_NO_START,
                 "the guest has the process id %d and must have 1; start the container without an init of the engine",
                 (int)getpid());
}

/* Without this any root process inside could read and write PID 1's memory and forge every result. */
static void protect_memory(void)
{
    if (prctl(PR_SET_DUMPABLE, 0) != 0)
        link_die(GUEST_NO_START, "the kernel refused PR_SET_DUMPABLE: %s", strerror(errno));
}

static void open_handles(void)
{
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null_fd < 0 || dup3(null_fd, 100, O_CLOEXEC) < 0)
        link_die(GUEST_NO_START, "/dev/null can't be opened: %s", strerror(errno));
    int proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (proc_fd < 0 || dup3(proc_fd, 101, O_CLOEXEC) < 0)
        link_die(GUEST_NO_START, "/proc can't be opened: %s", strerror(errno));
    /* Every number from FD_CALL to FD_SIGNALS is taken at once, so that no later descriptor lands among them. */
    for (int fd = FD_CALL; fd <= FD_SIGNALS; fd++)
        dup3(100, fd, O_CLOEXEC);
    dup3(101, FD_PROC, O_CLOEXEC);
    close(100);
    close(101);
}

static void open_signals(void)
{
    sigset_t all;
    sigfillset(&all);
    if (sigprocmask(SIG_BLOCK, &all, NULL) != 0)
        link_die(GUEST_NO_START, "signals can't be blocked: %s", strerror(errno));
    sigemptyset(&all);
    sigaddset(&all, SIGCHLD);
    sigaddset(&all, SIGTERM);
    int fd = signalfd(-1, &all, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0 || move_descriptor(fd, FD_SIGNALS) < 0)
        link_die(GUEST_NO_START, "no signalfd can be had: %s", strerror(errno));
}

/* Docker writes /etc/hosts only for a container with a network of its own. */
static void name_localhost(void)
{
    char text[8192];
    if (read_whole(AT_FDCWD, "/etc/hosts", text, sizeof text) > 0 && strstr(text, "localhost"))
        return;
    mkdir("/etc", 0755);
    int fd = open("/etc/hosts", O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644);
    static const char line[] = "127.0.0.1\tlocalhost\n::1\tlocalhost\n";
    if (fd >= 0) {
        (void)write_all(fd, line, sizeof line - 1);
        close(fd);
    }
}

static bool interface_is_up(const char *name)
{
    struct ifreq request = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return true;
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    bool up = ioctl(fd, SIOCGIFFLAGS, &request) != 0 || (request.ifr_flags & IFF_UP);
    close(fd);
    return up;
}

/* Interfaces that are down don't count: kernels put fallback tunnels (tunl0, sit0) into every new namespace. */
static size_t list_interfaces(char *names, size_t room)
{
    char text[16384], *line, *rest = text;
    size_t used = 0;
    if (read_whole(FD_PROC, "self/net/dev", text, sizeof text) < 0)
        return 0;
    while ((line = strsep(&rest, "\n"))) {
        char *colon = strchr(line, ':');
        if (!colon)
            continue;
        *colon = '\0';
        line += strspn(line, " ");
        size_t length = strlen(line) + 1;
        if (used + length > room || !interface_is_up(line))
            continue;
        memcpy(names + used, line, length);
        used += length;
    }
    return used;
}

static void say_hello(bool oom_known)
{
    struct {
        struct hello fixed;
        char names[4096];
    } hello = {.fixed = {.magic = FRAME_MAGIC,
                         .version = FRAME_VERSION,
                         .pid = (uint32_t)getpid(),
                         .window = FRAME_WINDOW,
                         .max_frame = FRAME_MAX}};
    if (access("/bin/sh", X_OK) == 0)
        hello.fixed.features |= FEATURE_SH;
    if (oom_known)
        hello.fixed.features |= FEATURE_OOM;
    size_t names = list_interfaces(hello.names, sizeof hello.names);
    link_send(F_HELLO, 0, 0, &hello, (uint32_t)(sizeof hello.fixed + names));
}

static void handle_frame(const struct frame *frame)
{
    const struct frame_header *head = &frame->head;
    struct open_request request;
    switch (head->type) {
    case F_OPEN:
        if (head->length != sizeof request)
            link_die(GUEST_PROTOCOL, "an OPEN has %u bytes instead of %zu", head->length, sizeof request);
        memcpy(&request, frame->payload, sizeof request);
        if (request.kind < KIND_RUN || request.kind > KIND_CHECK || request.body_len > BODY_MAX ||
            request.script_len > SCRIPT_MAX || request.output_limit > OUTPUT_LIMIT_MAX)
            link_die(GUEST_PROTOCOL, "an OPEN asks for more than the protocol allows");
        calls_open(head->id, &request);
        break;
    case F_INPUT:
        calls_input(head->id, head->flag, frame->payload, head->length);
        break;
    case F_CREDIT:
        calls_credit(head->id, frame->payload, head->length);
        break;
    case F_CANCEL:
        calls_cancel(head->id);
        break;
    case F_PING:
        if (head->length > PING_MAX)
            link_die(GUEST_PROTOCOL, "a PING has %u bytes; the most is %u", head->length, PING_MAX);
        link_send(F_PONG, 0, 0, frame->payload, head->length);
        break;
    case F_RESET:
        calls_reset();
        break;
    default:
        link_die(GUEST_PROTOCOL, "a frame has the unknown type %u", head->type);
    }
}

static void handle_input(void)
{
    struct frame frame;
    if (!link_fill())
        _exit(GUEST_EOF);
    while (link_next(&frame)) {
        last_frame_ms = now_ms();
        handle_frame(&frame);
    }
}

/* Only a SIGTERM from outside the namespace counts, which has no sender inside: else any tool could end PID 1. */
static void handle_signals(void)
{
    struct signalfd_siginfo info;
    while (RETRY(read(FD_SIGNALS, &info, sizeof info)) == sizeof info)
        if (info.ssi_signo == SIGTERM && info.ssi_pid == 0 && info.ssi_code == SI_USER)
            link_die(GUEST_TERM, "the sandbox was told to end from outside (SIGTERM)");
    reap_orphans();
}

static uint64_t next_deadline(void)
{
    uint64_t next = calls_next_deadline();
    uint64_t lease = last_frame_ms + config.lease_ms;
    uint64_t end = config.lifetime_ms > 0 ? started_ms + config.lifetime_ms : UINT64_MAX;
    next = lease < next ? lease : next;
    return end < next ? end : next;
}

/* The lease is looked at only when nothing waits to be read: a sandbox that was paused for longer than its lease first
 * hears the pings that it missed. */
static void check_clock(bool heard)
{
    uint64_t now = now_ms();
    if (config.lifetime_ms > 0 && now >= started_ms + config.lifetime_ms)
        link_die(GUEST_LIFETIME, "the sandbox's lifetime of %llu s has ended",
                 (unsigned long long)(config.lifetime_ms / 1000));
    if (!heard && now >= last_frame_ms + config.lease_ms)
        link_die(GUEST_LEASE, "no word came from the controller for %llu s",
                 (unsigned long long)(config.lease_ms / 1000));
    calls_expire();
}

static void serve(void)
{
    static struct pollfd set[3 + CALLS_MAX];
    for (;;) {
        set[0] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
        set[1] = (struct pollfd){.fd = FD_SIGNALS, .events = POLLIN};
        set[2] = (struct pollfd){.fd = link_pending() ? STDOUT_FILENO : -1, .events = POLLOUT};
        size_t count = calls_poll_set(set + 3, CALLS_MAX);
        if (poll(set, 3 + count, milliseconds_until(next_deadline())) < 0 && errno != EINTR)
            link_die(GUEST_NO_START, "poll failed: %s", strerror(errno));
        if (set[1].revents)
            handle_signals();
        calls_serve(set + 3, count);
        if (set[0].revents)
            handle_input();
        check_clock(set[0].revents != 0);
        link_flush();
    }
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    require_pid_one();
    protect_memory();
    for (int i = 1; i < argc; i++)
        read_option(argv[i]);
    open_handles();
    open_signals();
    bool oom_known = oom_open();
    if (!calls_init() || fcntl(STDOUT_FILENO, F_SETFL, O_WRONLY | O_NONBLOCK) < 0)
        link_die(GUEST_NO_START, "the guest has no room to begin: %s", strerror(errno));
    name_localhost();
    started_ms = last_frame_ms = now_ms();
    say_hello(oom_known);
    link_flush();
    serve();
}
