/* Whose process did the OOM killer take? The kernel counts its victims in the container and doesn't name them.
 *
 * A supervisor counts the deaths by SIGKILL that it saw and didn't cause. A death that the command's shell reaped it
 * can't see: such a one is this call's if nobody else was there to die. One victim is blamed on one call. */
#include "calls.h"

void blame_begin(struct call *call)
{
    call->oom_known = oom_count(&call->oom_at_start);
    for (struct call *other = call_next(NULL); other; other = call_next(other))
        if (other != call && other->kind == KIND_RUN && (other->state == CALL_ACTIVE || other->left_children))
            call->company = other->company = true;
}

static uint64_t unclaimed(const struct call *call, uint64_t now)
{
    uint64_t deaths = now - call->oom_at_start;
    return deaths > call->oom_claimed ? deaths - call->oom_claimed : 0;
}

static void claim(const struct call *claimant, uint64_t now, uint64_t deaths)
{
    for (struct call *other = call_next(NULL); other; other = call_next(other)) {
        uint64_t left = unclaimed(other, now);
        if (other != claimant)
            other->oom_claimed += deaths < left ? deaths : left;
    }
}

void blame_end(struct call *call, struct exit_report *report)
{
    uint64_t now, seen = call_slot(call)->sigkills;
    if (!call->oom_known || !oom_count(&now)) {
        report->flags |= EXIT_OOM_UNKNOWN;
        return;
    }
    uint64_t mine = unclaimed(call, now);
    if (call->company && mine > seen)
        mine = seen;
    if (mine == 0)
        return;
    report->flags |= EXIT_OOM;
    claim(call, now, mine);
}

/* Of calls that were answered already: their victims are nobody else's. */
void blame_background(uint32_t deaths)
{
    uint64_t now;
    if (oom_count(&now))
        claim(NULL, now, deaths);
}
