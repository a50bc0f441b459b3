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

void supervisor_refuse(const struct supervisor *self, int error)
{
    struct exit_report report = {.status = X_REFUSED, .stage = STAGE_PROCESS, .error = error};
    size_t living = process_count_living();
    report.exit_code = living < 255 ? (int32_t)living : 255;
    request_exit(self->request, &report);
    _exit(0);
}

static bool make_pipe(int *ours, int *theirs, int our_end)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return false;
    *ours = ends[our_end];
    *theirs = ends[1 - our_end];
    return fcntl(*ours, F_SETFL, O_NONBLOCK) == 0;
}

/* /dev/stdout is a link to the pipe, and opening it asks who owns the pipe: so the call's user must. */
static void make_pipes(struct supervisor *self, struct shell_pipes *ends, const struct user *user)
{
    const struct open_request *open = &self->request->open;
    bool merge = open->flags & CALL_MERGE, has_stdin = open->flags & CALL_STDIN;
    setfsgid(user->gid);
    setfsuid(user->uid);
    bool made = make_pipe(&self->streams[0].fd, &ends->out, 0) &&
                (merge || make_pipe(&self->streams[1].fd, &ends->err, 0)) &&
                (!has_stdin || make_pipe(&self->in.fd, &ends->in, 1));
    int error = errno;
    identity_protect();
    if (!made)
        supervisor_refuse(self, error);
    if (merge)
        ends->err = ends->out;
}

static void start_shell(struct supervisor *self, const struct user *user)
{
    struct shell_pipes ends = {-1, -1, -1};
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    self->signal_fd = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    if (self->signal_fd < 0)
        supervisor_refuse(self, errno);
    make_pipes(self, &ends, user);
    self->shell = fork();
    if (self->shell == 0)
        shell_main(self->request, user, &ends);
    if (self->shell < 0)
        supervisor_refuse(self, errno);
    close(ends.out);
    if (ends.err != ends.out)
        close(ends.err);
    if (ends.in >= 0)
        close(ends.in);
    if (self->request->script_fd >= 0)
        close(self->request->script_fd);
}

/* A SIGKILL that wasn't ours is how the OOM killer's work looks from here; PID 1 compares it with the kernel's count. */
static bool looks_like_oom(const struct supervisor *self, pid_t pid, int status)
{
    bool like_killed = pid == self->shell && WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGKILL;
    return !self->killing && (like_killed || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
}

void supervisor_reap(struct supervisor *self)
{
    int status;
    struct rusage usage;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
        self->sigkills += looks_like_oom(self, pid, status);
        if (pid != self->shell)
            continue;
        self->shell_status = status;
        self->shell_usage = usage;
        self->shell_ended_us = now_us();
        self->shell_gone = true;
    }
    self->childless = pid < 0 && errno == ECHILD;
}

void supervisor_reap_within(struct supervisor *self, uint64_t milliseconds)
{
    struct pollfd child = {.fd = self->signal_fd, .events = POLLIN};
    poll(&child, 1, (int)milliseconds);
    supervisor_drain_signals(self);
    supervisor_reap(self);
}

void supervisor_drain_signals(const struct supervisor *self)
{
    struct signalfd_siginfo ignored;
    (void)!read(self->signal_fd, &ignored, sizeof ignored);
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

static uint64_t next_deadline(const struct supervisor *self)
{
    uint64_t next = self->deadline_ms;
    if (config.disk_reserve > 0 && self->ending == X_EXITED && !self->shell_gone && self->disk_check_ms < next)
        next = self->disk_check_ms;
    return next;
}

static void wait_for_something(struct supervisor *self)
{
    bool has_packets = self->live.length > 0 || stdin_owes_credit(self);
    struct pollfd set[] = {
        {.fd = self->signal_fd, .events = POLLIN},
        {.fd = self->request->fd, .events = (short)(POLLIN | (has_packets ? POLLOUT : 0))},
        {.fd = stream_wanted(self, 0) ? self->streams[0].fd : -1, .events = POLLIN},
        {.fd = stream_wanted(self, 1) ? self->streams[1].fd : -1, .events = POLLIN},
        {.fd = self->in.length > 0 ? self->in.fd : -1, .events = POLLOUT},
    };
    poll(set, 5, milliseconds_until(next_deadline(self)));
    if (set[1].revents & POLLOUT) {
        stream_flush_live(self);
        stdin_grant(self);
    }
    if (set[1].revents & (POLLIN | POLLHUP | POLLERR))
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

static void supervise(struct supervisor *self) NORETURN;
static void supervise(struct supervisor *self)
{
    for (;;) {
        wait_for_something(self);
        if (self->ending == X_EXITED && self->shell_gone) {
            self->request->slot->ended = true;
            self->deadline_ms = UINT64_MAX;
            if (stream_drain_at_exit(self))
                supervisor_finish(self, 0);
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
    setfsuid(0); /* the image's passwd may be root's alone */
    if (!user_find(request->user, &user)) {
        request_fail(request, X_FAILED, STAGE_USER, ENOENT);
        _exit(0);
    }
    request->slot->uid = user.uid;
    if (disk_below_reserve()) {
        request_fail(request, X_REFUSED, STAGE_DISK, ENOSPC);
        _exit(0);
    }
    self = (struct supervisor){
        .request = request,
        .ending = X_EXITED,
        .uid = user.uid,
        .streams = {{.fd = -1}, {.fd = -1}},
        .in = {.fd = -1},
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
