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

static void give_up(const struct request *request, enum exit_stage stage, int error) NORETURN;
static void give_up(const struct request *request, enum exit_stage stage, int error)
{
    request->slot->trouble = error;
    request->slot->trouble_stage = (uint8_t)stage;
    _exit(127);
}

/* Children are what the OOM killer should take, so that PID 1 and the supervisors survive it. The descriptor is closed
 * by the exec. */
static void become_expendable(void)
{
    int fd = openat(FD_PROC, "self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        (void)write_all(fd, "500", 3);
}

static bool limit(int resource, uint64_t value)
{
    struct rlimit both = {value, value};
    return value == 0 || setrlimit(resource, &both) == 0;
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
static void exec_failed(const char *program, int error) NORETURN;
static void exec_failed(const char *program, int error)
{
    bool absent = error == ENOENT || error == ENOTDIR;
    dprintf(STDERR_FILENO, "%s: %s\n", program, absent ? "not found" : strerror(error));
    _exit(absent ? 127 : 126);
}

static const char *search_path(char *const *environment)
{
    for (; *environment; environment++)
        if (strncmp(*environment, "PATH=", 5) == 0)
            return *environment + 5;
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

static void execute(char *const *argv, char *const *environment) NORETURN;
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
    sigset_t none;
    setsid();
    become_expendable();
    if ((pipes->in >= 0 && dup2(pipes->in, 0) < 0) || dup2(pipes->out, 1) < 0 || dup2(pipes->err, 2) < 0)
        give_up(request, STAGE_PROCESS, errno);
    if (request->script_fd >= 0)
        fcntl(request->script_fd, F_SETFD, 0);
    if (!limit(RLIMIT_NOFILE, config.nofile) || !limit(RLIMIT_CPU, config.cpu) || !user_become(user))
        give_up(request, STAGE_PROCESS, errno);
    if (chdir(request->cwd) != 0)
        give_up(request, STAGE_CWD, errno);
    add_variable(request->envp, "HOME", user->home);
    add_variable(request->envp, "USER", user->name);
    add_variable(request->envp, "LOGNAME", user->name);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execute(request->argv, request->envp);
}
