/* PID 1's part of the kill ladder: what can't be done by a process that can itself be killed.
 *
 * kill(-1) is atomic against fork: the kernel walks all processes under one lock, and a fork with a signal pending
 * fails. So it ends a fork bomb that no sweep of /proc can catch up with. PID 1 is immune to all signals from inside. */
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calls.h"

#define DEATH_MS 2000
#define SWEEP_MS 100
#define NOBODY ((pid_t)-1) /* 0 is PID 1's own parent */

/* Supervisors are reaped here too; the end of their packets says that they are gone. */
void reap_orphans(void)
{
    pid_t pid;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
        for (struct call *call = call_next(NULL); call; call = call_next(call))
            if (call->pid == pid)
                call->pid = 0;
}

void call_kill(const struct call *call)
{
    if (call->pid > 0)
        kill(call->pid, SIGKILL);
}

static bool is_call_process(pid_t pid)
{
    for (struct call *call = call_next(NULL); call; call = call_next(call))
        if (call->pid == pid)
            return true;
    return false;
}

/* One pass over what no call's process answers for: PID 1's adopted children and theirs. */
static size_t sweep_orphans(void)
{
    struct process_table table = process_scan();
    size_t living = 0;
    for (size_t i = 0; i < table.count; i++)
        if (table.entries[i].parent == 1 && !is_call_process(table.entries[i].pid))
            table.entries[i].marked = true;
    process_mark_tree(&table, NOBODY);
    for (size_t i = 0; i < table.count; i++) {
        if (!table.entries[i].marked || table.entries[i].zombie)
            continue;
        living++;
        kill(table.entries[i].pid, SIGKILL);
    }
    return living;
}

/* Other calls are told that they may have been hit. */
static void mark_collateral(const struct call *cause, bool all, uint32_t uid)
{
    for (struct call *call = call_next(NULL); call; call = call_next(call))
        if (call != cause && (all || call_slot(call)->uid == uid))
            call->collateral = true;
}

/* kill(-1, 0) finds a process as long as there is any, even a zombie, whatever /proc lets be seen. */
static bool anything_is_left(void)
{
    return kill(-1, 0) == 0 || errno != ESRCH;
}

size_t everything_kill(void)
{
    uint64_t deadline = now_ms() + DEATH_MS;
    kill(-1, SIGKILL);
    reap_orphans();
    while (anything_is_left() && now_ms() < deadline) {
        usleep(1000);
        reap_orphans();
    }
    if (!anything_is_left())
        return 0;
    size_t living = process_count_living();
    return living > 0 ? living : 1;
}

static size_t sweep_orphans_for(uint64_t milliseconds)
{
    uint64_t deadline = now_ms() + milliseconds;
    size_t living;
    while ((living = sweep_orphans()) > 0 && now_ms() < deadline) {
        usleep(1000);
        reap_orphans();
    }
    return living;
}

/* A dying process closes its packets before its children are PID 1's. */
static void await_death(struct call *call)
{
    for (int tries = 0; tries < 100 && call->pid > 0; tries++) {
        reap_orphans();
        if (call->pid > 0)
            usleep(1000);
    }
    call->pid = 0;
}

/* Ends a supervisor that was killed, or that missed its own deadline since it was stopped or is starved; and what it
 * leaves behind. Returns the survivors. */
size_t call_crush(struct call *call)
{
    uint32_t uid = call_slot(call)->uid;
    call_kill(call);
    await_death(call);
    if (uid == UID_UNKNOWN)
        return 0; /* it had no child yet */
    if (sweep_orphans_for(SWEEP_MS) == 0 && !process_scan_is_blind)
        return 0;
    mark_collateral(call, uid == guest_uid, uid);
    if (uid == guest_uid)
        return everything_kill();
    identity_kill(uid);
    return sweep_orphans_for(DEATH_MS);
}

/* A supervisor's gentler steps did not suffice. Where PID 1 has to kill everything, the supervisor goes too and PID 1
 * answers in its place. */
void escalate(struct call *call, const struct escalation *escalation)
{
    bool all = escalation->everything || escalation->uid == guest_uid;
    mark_collateral(call, all, escalation->uid);
    if (!all) {
        identity_kill(escalation->uid);
        backlog_escalated(call);
        return;
    }
    struct exit_report report = escalation->report;
    report.survivors = (uint32_t)everything_kill();
    if (call->state == CALL_ACTIVE)
        call_end(call, report);
}
