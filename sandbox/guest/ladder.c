/* How a call is ended from outside: each step harder than the one before, and wider only where it must be.
 *
 *   1. SIGTERM and SIGCONT to the call's tree, then the grace
 *   2. SIGKILL to the shell's process group, and sweeps of the tree, many or long enough to tell a fork bomb
 *   3. PID 1 kills the whole uid, and at last everything: only a fork bomb gets this far
 *
 * Steps 1 and 2 touch no other call and none of its background children. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "supervisor.h"

#define SWEEP_MS 100
/* On a busy host few sweeps fit into that time, and a slow chain of forks that any two of them would catch passes for
 * a bomb: the wider step would hit bystanders for nothing. */
#define SWEEPS_LEAST 50
#define SWEEP_MOST_MS 1000
#define DEATH_MS 2000
/* PID 1 answers at once unless the controller takes no output; then its own backstop comes first. */
#define ANSWER_MS 10000
#define KEPT_PATIENCE_MS 100

void ladder_begin(struct supervisor *self, enum exit_status why)
{
    self->ending = why;
    self->killing = true;
    self->live.length = 0;
    self->deadline_ms = now_ms() + self->request->open.grace_ms;
    process_signal_tree(getpid(), SIGTERM, SIGCONT);
    if (process_scan_is_blind && !self->shell_gone) {
        kill(-self->shell, SIGTERM);
        kill(-self->shell, SIGCONT);
    }
}

/* A group's number may be another's once the group is empty, but not as long as somebody of ours is in it. */
static void kill_group(const struct supervisor *self)
{
    if (!self->shell_gone || process_tree_has_group(getpid(), self->shell))
        kill(-self->shell, SIGKILL);
}

/* Sweeps until nothing lives, or until a fork bomb has shown that sweeping can't win. Zombies that stay are no bomb:
 * somebody traces them, and until he lets go they can't be reaped. */
static bool kill_tree(struct supervisor *self)
{
    uint64_t began = now_ms();
    unsigned sweeps = 0;
    unsigned quiet = 0;
    if (self->childless)
        return true;
    kill_group(self);
    do {
        sweeps++;
        quiet = process_signal_tree(getpid(), SIGKILL, 0) == 0 ? quiet + 1 : 0;
        supervisor_reap(self);
        if (!self->childless)
            supervisor_reap_within(self, 2);
    } while (!self->childless && (sweeps < SWEEPS_LEAST || now_ms() < began + SWEEP_MS) &&
             now_ms() < began + SWEEP_MOST_MS);
    self->only_zombies = quiet >= 2 && !process_scan_is_blind;
    return self->childless || self->only_zombies;
}

/* The kept output goes first: where PID 1 kills everything, this process goes too. */
static void ask_pid_one(struct supervisor *self, bool everything)
{
    struct escalation escalation = {.uid = self->uid, .everything = everything};
    self->swept = true;
    if (!self->kept_sent) {
        stream_drain_now(self);
        supervisor_send_kept(self, KEPT_PATIENCE_MS);
        self->kept_sent = true;
    }
    supervisor_provisional(self, &escalation.report);
    self->answered = false;
    message_send(self->request->fd, M_ESCALATE, 0, self->request->id, &escalation, sizeof escalation, true);
    uint64_t deadline = now_ms() + ANSWER_MS;
    while (!self->answered && now_ms() < deadline) {
        struct pollfd answer = {.fd = self->request->fd, .events = POLLIN};
        poll(&answer, 1, milliseconds_until(deadline));
        supervisor_take_messages(self);
    }
}

static bool wait_for_deaths(struct supervisor *self)
{
    uint64_t deadline = now_ms() + DEATH_MS;
    while (!self->childless && now_ms() < deadline)
        supervisor_reap_within(self, 20);
    return self->childless;
}

static uint32_t count_survivors(void)
{
    size_t living = process_signal_tree(getpid(), SIGKILL, 0);
    return living > 0 ? (uint32_t)living : 1;
}

static void ladder_end(struct supervisor *self) NORETURN;
static void ladder_end(struct supervisor *self)
{
    bool dead = kill_tree(self);
    if (!dead) {
        ask_pid_one(self, false);
        dead = wait_for_deaths(self);
    }
    if (!dead) {
        ask_pid_one(self, true);
        dead = wait_for_deaths(self);
    }
    if (!self->kept_sent)
        stream_drain_now(self);
    supervisor_finish(self, dead ? 0 : count_survivors());
}

/* Called after every event while the call is being ended. A tree that obeys SIGTERM ends it at once. */
void ladder_step(struct supervisor *self)
{
    supervisor_reap(self);
    if (self->childless || now_ms() >= self->deadline_ms)
        ladder_end(self);
}
