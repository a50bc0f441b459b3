/* Calls that are to end, and don't of themselves: cancelled ones, and those whose time is over. */
#include <errno.h>
#include <signal.h>

#include "calls.h"

/* A supervisor keeps its own time but may be stopped or starved; when it is this late, PID 1 steps in. */
#define BACKSTOP_MS 3000
/* A file call that is told to end removes what it has half written. */
#define TIDY_MS 1000

uint64_t late_first_deadline(const struct call *call, const struct open_request *request)
{
    if (request->timeout_ms == 0)
        return UINT64_MAX;
    uint64_t deadline = call->began_us / 1000u + request->timeout_ms;
    return call->kind == KIND_RUN ? deadline + request->grace_ms + BACKSTOP_MS : deadline;
}

static void ask_to_end(struct call *call, enum exit_status why)
{
    uint64_t deadline = now_ms() + (call->kind == KIND_RUN ? call->grace_ms + BACKSTOP_MS : TIDY_MS);
    if (call->stopping)
        return;
    backlog_cancel(call);
    call->stopping = true;
    if (deadline < call->deadline_ms || call->kind != KIND_RUN || call_slot(call)->ended) {
        call->deadline_ms = deadline;
        call->late_status = why;
    }
}

void calls_cancel(uint32_t id)
{
    struct call *call = call_find(id);
    if (call)
        ask_to_end(call, X_CANCELLED);
}

uint64_t calls_next_deadline(void)
{
    uint64_t next = UINT64_MAX;
    for (struct call *call = call_next(NULL); call; call = call_next(call))
        if (call->deadline_ms < next)
            next = call->deadline_ms;
    return next;
}

/* A command that ended by itself is late no more: if its output waits, then for the controller. */
static bool only_waits_to_be_read(const struct call *call)
{
    return call->kind == KIND_RUN && !call->stopping && call_slot(call)->ended;
}

static void call_expire(struct call *call)
{
    if (call->kind != KIND_RUN && !call->stopping) {
        ask_to_end(call, X_TIMED_OUT); /* a file call has no supervisor: PID 1 keeps its time */
        return;
    }
    struct exit_report report = {.status = call->late_status};
    if (call->kind == KIND_RUN)
        report.survivors = (uint32_t)call_crush(call);
    else
        call_kill(call);
    call_end(call, report);
    call_free(call);
}

void calls_expire(void)
{
    uint64_t now = now_ms();
    for (struct call *call = call_next(NULL); call; call = call_next(call)) {
        if (call->deadline_ms > now || call->state != CALL_ACTIVE)
            continue;
        if (only_waits_to_be_read(call))
            call->deadline_ms = UINT64_MAX;
        else
            call_expire(call);
    }
}
