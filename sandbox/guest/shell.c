/* Between fork and exec: the supervisor's child becomes the command. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "guest.h"

static void give_up(const struct shell_pipes *pipes, enum exit_stage stage, int error) __attribute__((noreturn));
static void give_up(const struct shell_pipes *pipes, enum exit_stage stage, int error)
{
    struct trouble trouble = {.stage = (uint8_t)stage, .error = error};
    (void)write_all(pipes->trouble, &trouble, sizeof trouble);
    _exit(127);
}

/* Children are what the OOM killer should take, so that PID 1 and the supervisors survive it. */
static void become_expendable(void)
{
    int fd = openat(FD_PROC, "self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        (void)write_all(fd, "500", 3);
        close(fd);
    }
}

static void default_signals(void)
{
    sigset_t none;
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static bool limit(int resource, uint64_t value)
{
    struct rlimit both = {value, value};
    return value == 0 || setrlimit(resource, &both) == 0;
}

static bool set_limits(void)
{
    struct rlimit none = {0, 0};
    return setrlimit(RLIMIT_CORE, &none) == 0 && limit(RLIMIT_NOFILE, config.nofile) &&
           limit(RLIMIT_FSIZE, config.fsize) && limit(RLIMIT_CPU, config.cpu);
}

static bool has_variable(char *const *environment, const char *name)
{
    size_t length = strlen(name);
    for (; *environment; environment++)
        if (strncmp(*environment, name, length) == 0 && (*environment)[length] == '=')
            return true;
    return false;
}

static char *new_variable(const char *name, const char *value)
{
    size_t size = strlen(name) + strlen(value) + 2;
    char *text = malloc(size);
    if (text)
        snprintf(text, size, "%s=%s", name, value);
    return text;
}

static void add_variable(char **environment, const char *name, const char *value)
{
    if (!*value || has_variable(environment, name))
        return;
    while (*environment)
        environment++;
    *environment = new_variable(name, value);
}

/* Says on the command's own stderr what a shell would say, with a shell's exit status. */
static void exec_failed(const char *program, int error) __attribute__((noreturn));
static void exec_failed(const char *program, int error)
{
    dprintf(STDERR_FILENO, "%s: %s\n", program, error == ENOENT ? "not found" : strerror(error));
    _exit(error == ENOENT ? 127 : 126);
}

static const char *search_path(char *const *environment)
{
    for (; *environment; environment++)
        if (strncmp(*environment, "PATH=", 5) == 0)
            return *environment + 5;
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

static void execute(char *const *argv, char *const *environment) __attribute__((noreturn));
static void execute(char *const *argv, char *const *environment)
{
    const char *program = argv[0];
    int error = ENOENT;
    if (strchr(program, '/')) {
        execve(program, argv, environment);
        exec_failed(program, errno);
    }
    char candidate[PATH_LEN_MAX];
    for (const char *part = search_path(environment); *program && *part;) {
        size_t length = strcspn(part, ":");
        if (length > 0 && snprintf(candidate, sizeof candidate, "%.*s/%s", (int)length, part, program) <
                              (int)sizeof candidate) {
            execve(candidate, argv, environment);
            if (errno != ENOENT && errno != ENOTDIR)
                error = errno;
        }
        part += length + (part[length] == ':');
    }
    exec_failed(program, error);
}

void shell_main(const struct request *request, const struct user *user, const struct shell_pipes *pipes)
{
    close(request->fd);
    setsid();
    become_expendable();
    if (dup2(pipes->in, 0) < 0 || dup2(pipes->out, 1) < 0 || dup2(pipes->err, 2) < 0)
        give_up(pipes, STAGE_PROCESS, errno);
    if (request->script_fd >= 0)
        fcntl(request->script_fd, F_SETFD, 0);
    if (!set_limits() || !user_become(user))
        give_up(pipes, STAGE_PROCESS, errno);
    if (chdir(request->cwd) != 0)
        give_up(pipes, STAGE_CWD, errno);
    add_variable(request->envp, "HOME", user->home);
    add_variable(request->envp, "USER", user->name);
    add_variable(request->envp, "LOGNAME", user->name);
    default_signals();
    execute(request->argv, request->envp);
}
