/* What PID 1 has for a call's process and can't give it now, since it never waits for one.
 *
 * Input keeps its order. The rest doesn't wait behind it: a cancel must not wait for a command to read its stdin, and
 * credits add up. So a call can make PID 1 hold one window of input, and nothing more whatever comes in what pieces. */
#include <stdlib.h>
#include <string.h>

#include "calls.h"

static bool fits(const struct call *call, uint8_t type, uint8_t flag, const void *payload, uint32_t length)
{
    return message_send(call->fd, type, flag, call->id, payload, length, false) != SEND_FULL;
}

bool backlog_waits(const struct call *call)
{
    const struct backlog *log = &call->backlog;
    return log->length > 0 || log->credit > 0 || log->last || log->cancel || log->escalated;
}

static void store(struct backlog *log, const uint8_t *data, uint32_t length)
{
    if (!log->input && !(log->input = malloc(FRAME_WINDOW)))
        link_die(GUEST_NO_START, "no memory is left for %u bytes of a call's input", length);
    if (log->start + log->length + length > FRAME_WINDOW) {
        memmove(log->input, log->input + log->start, log->length);
        log->start = 0;
    }
    memcpy(log->input + log->start + log->length, data, length);
    log->length += length;
}

static void free_input(struct backlog *log)
{
    free(log->input);
    log->input = NULL;
    log->start = 0;
    log->length = 0;
}

static void send_input(struct call *call)
{
    struct backlog *log = &call->backlog;
    while (log->length > 0 || log->last) {
        uint32_t part = log->length < FRAME_MAX ? (uint32_t)log->length : FRAME_MAX;
        bool last = log->last && part == log->length;
        const uint8_t *data = part > 0 ? log->input + log->start : NULL;
        if (!fits(call, F_INPUT, last ? INPUT_LAST : 0, data, part))
            return;
        log->start += part;
        log->length -= part;
        log->last = log->last && !last;
    }
    free_input(log);
}

void backlog_send(struct call *call)
{
    struct backlog *log = &call->backlog;
    if (log->cancel && fits(call, M_CANCEL, 0, NULL, 0))
        log->cancel = false;
    if (log->escalated && fits(call, M_ESCALATED, 0, NULL, 0))
        log->escalated = false;
    while (log->credit > 0) {
        uint32_t part = log->credit < UINT32_MAX ? (uint32_t)log->credit : UINT32_MAX;
        if (!fits(call, F_CREDIT, 0, &part, sizeof part))
            return;
        log->credit -= part;
    }
    if (log->length > 0 || log->last)
        send_input(call);
}

/* The caller has judged that the window holds it, and so does the buffer. */
void backlog_input(struct call *call, const uint8_t *data, uint32_t length, bool last)
{
    struct backlog *log = &call->backlog;
    if (length == 0 && !last)
        return;
    if (log->length == 0 && fits(call, F_INPUT, last ? INPUT_LAST : 0, data, length))
        return;
    if (length > 0)
        store(log, data, length);
    log->last = last;
}

void backlog_credit(struct call *call, uint32_t amount)
{
    call->backlog.credit += amount;
    backlog_send(call);
}

void backlog_cancel(struct call *call)
{
    call->backlog.cancel = true;
    backlog_send(call);
}

void backlog_escalated(struct call *call)
{
    call->backlog.escalated = true;
    backlog_send(call);
}

void backlog_drop(struct call *call)
{
    free_input(&call->backlog);
    call->backlog = (struct backlog){0};
}
