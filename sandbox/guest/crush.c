/* PID 1's part of the kill ladder: what can't be done by a process that can itself be killed.
 *
 * kill(-1) is atomic against fork: the kernel walks all processes under one lock, and a fork with a signal pending
 * fails. So it ends a fork bomb that no sweep of /proc can catch up with. PID 1 is immune to all signals from inside. */
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calls.h"

#define DEATH_MS 2000
#define SWEEP_MS 100
#define NOBODY ((pid_t)-1) /* 0 is PID 1's own parent */

/* Supervisors are waited for here too: the end of their packets says that they are gone. */
void reap_orphans(void)
{
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
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
static void mark_collateral(const struct call *cause, uint32_t uid)
{
    for (struct call *call = call_next(NULL); call; call = call_next(call))
        if (call != cause && (uid == 0 || call_uid(call) == uid || call_uid(call) == UID_UNKNOWN))
            call->collateral = true;
}

/* With that uid as real and effective one, without a capability, kill(-1) reaches just that uid's processes. The saved
 * uid 0 is the way back. Changing uids may make a process dumpable again (fs.suid_dumpable). */
static void kill_uid(uint32_t uid)
{
    syscall(SYS_setresuid, uid, uid, 0);
    kill(-1, SIGKILL);
    syscall(SYS_setresuid, 0, 0, 0);
    prctl(PR_SET_DUMPABLE, 0);
}

size_t everything_kill(void)
{
    uint64_t deadline = now_ms() + DEATH_MS;
    size_t living;
    kill(-1, SIGKILL);
    do {
        reap_orphans();
        living = process_count_living();
        if (living > 0)
            usleep(2000);
    } while (living > 0 && now_ms() < deadline);
    reap_orphans();
    return living;
}

/* What a killed supervisor left behind. Returns the survivors. */
size_t orphans_kill(struct call *call)
{
    uint64_t deadline = now_ms() + SWEEP_MS;
    uint32_t uid = call_uid(call);
    size_t living;
    while ((living = sweep_orphans()) > 0 && now_ms() < deadline) {
        usleep(1000);
        reap_orphans();
    }
    if (living == 0)
        return 0;
    mark_collateral(call, uid == UID_UNKNOWN ? 0 : uid);
    if (uid == 0 || uid == UID_UNKNOWN)
        return everything_kill();
    kill_uid(uid);
    deadline = now_ms() + DEATH_MS;
    while ((living = sweep_orphans()) > 0 && now_ms() < deadline) {
        usleep(2000);
        reap_orphans();
    }
    return living;
}

/* The backstop: a supervisor that missed its own deadline was stopped, or is starved. */
size_t call_crush(struct call *call)
{
    kill(call->pid, SIGKILL);
    for (int tries = 0; tries < 100 && waitpid(call->pid, NULL, WNOHANG) == 0; tries++)
        usleep(1000);
    call->pid = -1;
    return orphans_kill(call);
}

/* A supervisor's gentler steps did not suffice. Root's own kill(-1) takes the supervisors too, so PID 1 answers. */
void escalate(struct call *call, const struct escalation *escalation)
{
    bool all = escalation->everything || escalation->uid == 0;
    mark_collateral(call, all ? 0 : escalation->uid);
    if (!all) {
        kill_uid(escalation->uid);
        message_send(call->fd, M_ESCALATED, 0, call->id, NULL, 0, false);
        return;
    }
    struct exit_report report = escalation->report;
    report.survivors = (uint32_t)everything_kill();
    if (call->state == CALL_ACTIVE)
        call_end(call, report);
}
