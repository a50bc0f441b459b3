/* How a RUN call is answered, and what its process does after that. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "supervisor.h"

/* What took the shell by SIGKILL has mostly taken its children too; so long they have to become reapable. */
#define DYING_MS 20

/* What kept the command from beginning, if anything did. */
static bool had_trouble(const struct supervisor *self)
{
    uint8_t stage = self->request->slot->trouble_stage;
    if (stage == 0)
        return false;
    request_fail(self->request, stage == STAGE_PROCESS ? X_REFUSED : X_FAILED, stage, self->request->slot->trouble);
    return true;
}

static void fill_report(const struct supervisor *self, struct exit_report *report)
{
    const struct rusage *usage = &self->shell_usage;
    *report = (struct exit_report){
        .status = (uint8_t)self->ending,
        .flags = (uint8_t)((self->childless || self->only_zombies ? 0 : EXIT_BACKGROUND) | (self->swept ? EXIT_SWEPT : 0)),
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
    self->request->slot->sigkills = self->sigkills;
}

/* PID 1 sends it in this process's name if its next kill takes this process too. */
void supervisor_provisional(const struct supervisor *self, struct exit_report *report)
{
    fill_report(self, report);
    report->flags |= EXIT_SWEPT;
    report->flags &= (uint8_t)~EXIT_BACKGROUND;
}

bool supervisor_send_kept(const struct supervisor *self, int patience_ms)
{
    return keep_send(&self->streams[0].keep, self->request, STREAM_OUT, patience_ms) &&
           keep_send(&self->streams[1].keep, self->request, STREAM_ERR, patience_ms);
}

static void await_the_dying(struct supervisor *self)
{
    uint64_t deadline = now_ms() + DYING_MS;
    bool killed = self->shell_gone && WIFSIGNALED(self->shell_status) && WTERMSIG(self->shell_status) == SIGKILL;
    while (killed && !self->childless && now_ms() < deadline)
        supervisor_reap_within(self, 2);
}

static void tell_of_sigkills(struct supervisor *self)
{
    if (self->sigkills > 0)
        message_send(self->request->fd, M_CLAIM, 0, 0, &self->sigkills, sizeof self->sigkills, false);
    self->sigkills = 0;
}

/* Children that the command left go on, by policy. They keep their pipes, so that none dies of SIGPIPE, and their
 * subreaper, so that they never become PID 1's orphans. */
static void linger(struct supervisor *self) NORETURN;
static void linger(struct supervisor *self)
{
    static uint8_t ignored[FRAME_MAX];
    stdin_close(self);
    for (int i = 0; i < 2; i++)
        keep_free(&self->streams[i].keep);
    self->sigkills = 0;
    self->killing = false;
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
        supervisor_reap(self);
        tell_of_sigkills(self);
    }
    _exit(0);
}

void supervisor_finish(struct supervisor *self, uint32_t survivors)
{
    struct exit_report report;
    await_the_dying(self);
    if (self->ending != X_EXITED || !had_trouble(self)) {
        fill_report(self, &report);
        report.survivors = survivors;
        if (!self->kept_sent)
            supervisor_send_kept(self, -1);
        request_exit(self->request, &report);
    }
    linger(self);
}
