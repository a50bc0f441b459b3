/* What happens once, before the first frame is read. No command has run in this container yet, but an earlier episode
 * may have left its files in the image. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

struct config config = {.lease_ms = 120000};

/* The link to the controller leaves 0 and 1 to /dev/null, so that a fork has nothing to put there. 2 stays the
 * container's stderr, for the last words of a guest that crashes. Whatever else the runtime left open is closed. */
static bool open_descriptors(void)
{
    int in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, FD_FIRST_FREE), out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, in + 1);
    if (in < 0 || out < 0 || dup3(in, FD_LINK_IN, O_CLOEXEC) < 0 || dup3(out, FD_LINK_OUT, O_CLOEXEC) < 0)
        return false;
    close_from(FD_SIGNALS);
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null_fd < 0)
        return false;
    if (dup2(null_fd, STDIN_FILENO) < 0 || dup2(null_fd, STDOUT_FILENO) < 0)
        return false;
    /* Each fixed number is taken at once, so that no later descriptor lands among them. */
    static const int placeholders[] = {FD_CALL, FD_PROC, FD_SIGNALS, FD_OOM};
    for (size_t i = 0; i < sizeof placeholders / sizeof placeholders[0]; i++)
        if (placeholders[i] != null_fd && dup3(STDIN_FILENO, placeholders[i], O_CLOEXEC) < 0)
            return false;
    int proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (proc_fd < 0 || dup3(proc_fd, FD_PROC, O_CLOEXEC) < 0)
        return false;
    close(proc_fd);
    return fcntl(FD_LINK_OUT, F_SETFL, O_WRONLY | O_NONBLOCK) == 0;
}

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
        if (strncmp(text, options[i].name, length) == 0 && isxdigit((unsigned char)text[length])) {
            char *end;
            errno = 0;
            *options[i].value = strtoull(text + length, &end, options[i].base);
            if (*end == '\0' && errno == 0)
                return;
        }
    }
    link_die(GUEST_NO_START, "the guest was given an option that it doesn't know: %.200s", text);
}

/* All signals stay blocked, in the calls' processes too. One that was ignored would be ignored by every command. */
static bool block_signals(void)
{
    sigset_t all, child;
    struct sigaction action;
    for (int number = 1; number < NSIG; number++)
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN)
            signal(number, SIG_DFL);
    sigfillset(&all);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    if (sigprocmask(SIG_SETMASK, &all, NULL) != 0)
        return false;
    int fd = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    return fd >= 0 && dup3(fd, FD_SIGNALS, O_CLOEXEC) >= 0 && close(fd) == 0;
}

static uint64_t allowed(int resource, uint64_t value)
{
    struct rlimit limit;
    return getrlimit(resource, &limit) == 0 && limit.rlim_max < value ? limit.rlim_max : value;
}

/* Here is set what every call inherits. Only the descriptors and the CPU time of a command are no limits for PID 1. */
static bool set_inherited(void)
{
    struct rlimit none = {0, 0}, files;
    config.nofile = allowed(RLIMIT_NOFILE, config.nofile);
    config.cpu = allowed(RLIMIT_CPU, config.cpu);
    config.fsize = allowed(RLIMIT_FSIZE, config.fsize);
    struct rlimit size = {config.fsize, config.fsize};
    if (config.fsize > 0 && setrlimit(RLIMIT_FSIZE, &size) != 0)
        return false;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    umask(022);
    return setrlimit(RLIMIT_CORE, &none) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}

/* Docker writes /etc/hosts only for a container with a network of its own. A link there could lead to the guest's own
 * stream, so only a plain file counts; nothing can replace it between the look and the opening. */
static void name_localhost(void)
{
    static const char line[] = "127.0.0.1\tlocalhost\n::1\tlocalhost\n", *const path = "/etc/hosts";
    char text[8192] = "";
    struct stat status;
    if (lstat(path, &status) == 0 &&
        (!S_ISREG(status.st_mode) || read_whole(AT_FDCWD, path, text, sizeof text) < 0 || strstr(text, "localhost")))
        return;
    mkdir("/etc", 0755);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    size_t length = strlen(text);
    if (length == 0 || text[length - 1] == '\n' || write_all(fd, "\n", 1))
        (void)write_all(fd, line, sizeof line - 1);
    close(fd);
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

/* Interfaces that are down don't count: kernels put fallback tunnels (tunl0, sit0) into every new namespace. A list
 * that can't be read is told as one of an unknown interface: who wants no network must not take it for none. */
static size_t list_interfaces(char *names, size_t room)
{
    char text[16384], *line, *rest = text;
    size_t used = 0;
    if (read_whole(FD_PROC, "self/net/dev", text, sizeof text) <= 0)
        return (size_t)snprintf(names, room, "?") + 1;
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

void begin(int argc, char **argv)
{
    if (!open_descriptors())
        _exit(GUEST_NO_START);
    if (getpid() != 1)
        link_die(GUEST_NO_START,
                 "the guest has the process id %d and must have 1; start the container without an init of the engine",
                 (int)getpid());
    for (int i = 1; i < argc; i++)
        read_option(argv[i]);
    bool oom_known = oom_open();
    process_look_at_mount();
    name_localhost();
    if (!block_signals() || !set_inherited() || !calls_init())
        link_die(GUEST_NO_START, "the guest has no room to begin: %s", strerror(errno));
    if (!identity_take())
        link_die(GUEST_NO_START, "the guest needs the capabilities SETUID, SETGID and KILL: %s", strerror(errno));
    say_hello(oom_known);
    link_flush();
}
