/* One RUN call's own process: it makes the pipes, starts the shell, keeps the time, keeps the output, ends the tree.
 *
 * It is a child subreaper, so whatever the command detaches (setsid, double fork) becomes its child again and nothing
 * of the call can leave its tree. It was forked, not executed: a start costs no exec and no page that PID 1 hasn't. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "supervisor.h"

/* How often a long call looks at the free disk. */
#define DISK_CHECK_MS 250

static void no_room(const struct supervisor *self, int error) __attribute__((noreturn));
static void no_room(const struct supervisor *self, int error)
{
    request_fail(self->request, X_REFUSED, STAGE_PROCESS, error);
    _exit(0);
}

/* /dev/stdout is a link to the pipe, and opening it asks who owns the pipe: so the call's user must. */
static void make_pipes(struct supervisor *self, struct shell_pipes *ends, const struct user *user)
{
    int out[2], err[2] = {-1, -1}, in[2] = {-1, FD_NULL}, trouble[2];
    const struct open_request *open = &self->request->open;
    bool merge = open->flags & CALL_MERGE, has_stdin = open->flags & CALL_STDIN;
    if (pipe2(trouble, O_CLOEXEC) < 0)
        no_room(self, errno);
    setfsgid(user->gid);
    setfsuid(user->uid);
    if (pipe2(out, O_CLOEXEC) < 0 || (!merge && pipe2(err, O_CLOEXEC) < 0) || (has_stdin && pipe2(in, O_CLOEXEC) < 0))
        no_room(self, errno);
    setfsuid(0);
    setfsgid(0);
    prctl(PR_SET_DUMPABLE, 0);
    *ends = (struct shell_pipes){.in = has_stdin ? in[0] : FD_NULL,
                                 .out = out[1],
                                 .err = merge ? out[1] : err[1],
                                 .trouble = trouble[1]};
    self->streams[0].fd = out[0];
    self->streams[1].fd = err[0];
    self->trouble_fd = trouble[0];
    self->in.fd = has_stdin ? in[1] : -1;
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    fcntl(trouble[0], F_SETFL, O_NONBLOCK);
    if (!merge)
        fcntl(err[0], F_SETFL, O_NONBLOCK);
    if (has_stdin)
        fcntl(in[1], F_SETFL, O_NONBLOCK);
}

static void close_shell_ends(const struct shell_pipes *ends)
{
    close(ends->out);
    if (ends->err != ends->out)
        close(ends->err);
    if (ends->in != FD_NULL)
        close(ends->in);
    close(ends->trouble);
}

static void open_signal_fd(struct supervisor *self)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    self->signal_fd = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    if (self->signal_fd < 0)
        no_room(self, errno);
}

static void start_shell(struct supervisor *self, const struct user *user)
{
    struct shell_pipes ends;
    open_signal_fd(self);
    make_pipes(self, &ends, user);
    self->shell = fork();
    if (self->shell == 0)
        shell_main(self->request, user, &ends);
    if (self->shell < 0)
        no_room(self, errno);
    close_shell_ends(&ends);
    if (self->request->script_fd >= 0)
        close(self->request->script_fd);
}

/* A SIGKILL that wasn't ours is how the OOM killer's work looks from here; PID 1 compares it with the kernel's count. */
void supervisor_reap(struct supervisor *self)
{
    int status;
    struct rusage usage;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
        bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        bool like_killed = WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGKILL;
        if (!self->killing && (killed || (pid == self->shell && like_killed)))
            self->saw_sigkill = true;
        if (pid != self->shell)
            continue;
        self->shell_status = status;
        self->shell_usage = usage;
        self->shell_ended_us = now_us();
        self->shell_gone = true;
    }
    self->childless = pid < 0 && errno == ECHILD;
}

void supervisor_take_messages(struct supervisor *self)
{
    static struct message message;
    ssize_t got;
    uint32_t grant;
    while ((got = message_receive(self->request->fd, &message, false)) > 0) {
        switch (message.head.type) {
        case M_CANCEL:
            self->cancel_asked = true;
            break;
        case M_ESCALATED:
            self->answered = true;
            break;
        case F_CREDIT:
            memcpy(&grant, message.payload, sizeof grant);
            self->credit += grant;
            break;
        case F_INPUT:
            stdin_take(self, message.payload, message.head.length, message.head.flag & INPUT_LAST);
            break;
        default:
            break;
        }
    }
    if (got == 0)
        _exit(0);
}

/* What stopped the command before it began, if anything did. */
static bool had_trouble(const struct supervisor *self)
{
    struct trouble trouble;
    if (RETRY(read(self->trouble_fd, &trouble, sizeof trouble)) != sizeof trouble)
        return false;
    request_fail(self->request, trouble.stage == STAGE_PROCESS ? X_REFUSED : X_FAILED, trouble.stage, trouble.error);
    return true;
}

static void fill_report(const struct supervisor *self, struct exit_report *report)
{
    const struct rusage *usage = &self->shell_usage;
    *report = (struct exit_report){
        .status = (uint8_t)self->ending,
        .flags = (uint8_t)((self->childless ? 0 : EXIT_BACKGROUND) | (self->saw_sigkill ? EXIT_OOM : 0) |
                           (self->swept ? EXIT_SWEPT : 0)),
        .total_out = self->streams[0].keep.total,
        .total_err = self->streams[1].keep.total,
        .wall_us = (self->shell_gone ? self->shell_ended_us : now_us()) - self->request->began_us,
        .user_us = (uint64_t)usage->ru_utime.tv_sec * 1000000u + (uint64_t)usage->ru_utime.tv_usec,
        .sys_us = (uint64_t)usage->ru_stime.tv_sec * 1000000u + (uint64_t)usage->ru_stime.tv_usec,
        .maxrss_kib = (uint64_t)usage->ru_maxrss,
    };
    if (self->ending == X_REFUSED) {
        report->stage = STAGE_DISK;
        report->error = ENOSPC;
    }
    if (self->shell_gone && WIFSIGNALED(self->shell_status))
        report->signal = (uint8_t)WTERMSIG(self->shell_status);
    if (self->shell_gone && WIFEXITED(self->shell_status))
        report->exit_code = WEXITSTATUS(self->shell_status);
    if (self->ending == X_EXITED && report->signal)
        report->status = X_SIGNALED;
}

bool supervisor_send_kept(const struct supervisor *self, int patience_ms)
{
    return keep_send(&self->streams[0].keep, self->request, STREAM_OUT, patience_ms) &&
           keep_send(&self->streams[1].keep, self->request, STREAM_ERR, patience_ms);
}

/* Children that the command left go on, by policy. They keep their pipes, so that none dies of SIGPIPE, and their
 * subreaper, so that they never become PID 1's orphans. */
static void linger(struct supervisor *self) __attribute__((noreturn));
static void linger(struct supervisor *self)
{
    static uint8_t ignored[FRAME_MAX];
    stdin_close(self);
    for (int i = 0; i < 2; i++)
        keep_free(&self->streams[i].keep);
    while (!self->childless) {
        struct pollfd set[] = {{.fd = self->signal_fd, .events = POLLIN},
                               {.fd = self->streams[0].fd, .events = POLLIN},
                               {.fd = self->streams[1].fd, .events = POLLIN},
                               {.fd = self->request->fd, .events = 0}};
        poll(set, 4, -1);
        if (set[3].revents)
            _exit(0);
        for (int i = 0; i < 2; i++) {
            if (!set[1 + i].revents || RETRY(read(self->streams[i].fd, ignored, sizeof ignored)) != 0)
                continue;
            close(self->streams[i].fd);
            self->streams[i].fd = -1;
        }
        supervisor_drain_signals(self);
        self->saw_sigkill = false;
        supervisor_reap(self);
        if (self->saw_sigkill)
            message_send(self->request->fd, M_CLAIM, 0, 0, NULL, 0, false);
    }
    _exit(0);
}

void supervisor_drain_signals(const struct supervisor *self)
{
    struct signalfd_siginfo info;
    while (RETRY(read(self->signal_fd, &info, sizeof info)) == sizeof info)
        ;
}

void supervisor_finish(struct supervisor *self, uint32_t survivors)
{
    struct exit_report report;
    if (self->ending != X_EXITED || !had_trouble(self)) {
        fill_report(self, &report);
        report.survivors = survivors;
        if (!self->kept_sent)
            supervisor_send_kept(self, -1);
        request_exit(self->request, &report);
    }
    linger(self);
}

void supervisor_provisional(const struct supervisor *self, struct exit_report *report)
{
    fill_report(self, report);
    report->flags |= EXIT_SWEPT;
    report->flags &= (uint8_t)~EXIT_BACKGROUND;
}

static uint64_t next_deadline(const struct supervisor *self)
{
    uint64_t next = self->deadline_ms;
    if (config.disk_reserve > 0 && self->ending == X_EXITED && !self->shell_gone && self->disk_check_ms < next)
        next = self->disk_check_ms;
    return next;
}

static void wait_for_something(struct supervisor *self)
{
    struct pollfd set[] = {
        {.fd = self->signal_fd, .events = POLLIN},
        {.fd = self->request->fd, .events = (short)(POLLIN | (self->live.length > 0 ? POLLOUT : 0))},
        {.fd = stream_wanted(self, 0) ? self->streams[0].fd : -1, .events = POLLIN},
        {.fd = stream_wanted(self, 1) ? self->streams[1].fd : -1, .events = POLLIN},
        {.fd = self->in.length > 0 ? self->in.fd : -1, .events = POLLOUT},
    };
    poll(set, 5, milliseconds_until(next_deadline(self)));
    if (set[1].revents & POLLOUT)
        stream_flush_live(self);
    if (set[1].revents & (POLLIN | POLLHUP))
        supervisor_take_messages(self);
    for (int i = 0; i < 2; i++)
        if (set[2 + i].revents)
            stream_read(self, i, FRAME_MAX);
    if (set[4].revents)
        stdin_feed(self);
    if (set[0].revents) {
        supervisor_drain_signals(self);
        supervisor_reap(self);
    }
}

static void check_disk(struct supervisor *self)
{
    if (config.disk_reserve == 0 || now_ms() < self->disk_check_ms)
        return;
    self->disk_check_ms = now_ms() + DISK_CHECK_MS;
    if (disk_below_reserve())
        ladder_begin(self, X_REFUSED);
}

static void supervise(struct supervisor *self) __attribute__((noreturn));
static void supervise(struct supervisor *self)
{
    for (;;) {
        wait_for_something(self);
        if (self->ending == X_EXITED && self->shell_gone) {
            if (stream_drain_at_exit(self))
                supervisor_finish(self, 0);
            self->deadline_ms = UINT64_MAX;
        } else if (self->ending == X_EXITED && now_ms() >= self->deadline_ms) {
            ladder_begin(self, X_TIMED_OUT);
        } else if (self->ending == X_EXITED) {
            check_disk(self);
        }
        if (self->ending == X_EXITED && self->cancel_asked)
            ladder_begin(self, X_CANCELLED);
        if (self->ending != X_EXITED)
            ladder_step(self);
    }
}

void supervisor_main(struct request *request)
{
    static struct supervisor self;
    struct user user;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (!request_read(request))
        _exit(0);
    if (!user_find(request->user, &user)) {
        request_fail(request, X_FAILED, STAGE_USER, ENOENT);
        _exit(0);
    }
    *request->shared_uid = user.uid;
    if (disk_below_reserve()) {
        request_fail(request, X_REFUSED, STAGE_DISK, ENOSPC);
        _exit(0);
    }
    self = (struct supervisor){
        .request = request,
        .ending = X_EXITED,
        .uid = user.uid,
        .credit = FRAME_WINDOW,
        .deadline_ms = request->open.timeout_ms ? request->began_us / 1000u + request->open.timeout_ms : UINT64_MAX,
        .disk_check_ms = now_ms() + DISK_CHECK_MS,
    };
    for (int i = 0; i < 2; i++)
        keep_init(&self.streams[i].keep, request->open.output_limit);
    start_shell(&self, &user);
    if (request->rest_length > 0 || request->input_ended)
        stdin_take(&self, request->rest, request->rest_length, request->input_ended);
    supervise(&self);
}
