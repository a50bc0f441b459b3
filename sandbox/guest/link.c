/* The stream to the controller, bounded both ways. */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

#define IN_SIZE (2 * (FRAME_HEADER + FRAME_MAX))
#define OUT_SIZE (4 * (FRAME_HEADER + FRAME_MAX))

static uint8_t in_buffer[IN_SIZE];
static size_t in_start, in_end;

static uint8_t out_buffer[OUT_SIZE];
static size_t out_start, out_end;

/* Returns false at the end of the stream: the controller closed it, or died. */
bool link_fill(void)
{
    if (in_start > 0) {
        memmove(in_buffer, in_buffer + in_start, in_end - in_start);
        in_end -= in_start;
        in_start = 0;
    }
    ssize_t got = RETRY(read(FD_LINK_IN, in_buffer + in_end, IN_SIZE - in_end));
    if (got > 0)
        in_end += (size_t)got;
    return got > 0 || (got < 0 && errno == EAGAIN);
}

/* The payload stays valid until the next link_fill. */
bool link_next(struct frame *frame)
{
    if (in_end - in_start < FRAME_HEADER)
        return false;
    memcpy(&frame->head, in_buffer + in_start, FRAME_HEADER);
    judge_header(&frame->head);
    if (in_end - in_start < FRAME_HEADER + frame->head.length)
        return false;
    frame->payload = in_buffer + in_start + FRAME_HEADER;
    in_start += FRAME_HEADER + frame->head.length;
    return true;
}

bool link_pending(void)
{
    return out_end > out_start;
}

static void make_room(void)
{
    if (out_start == 0)
        return;
    memmove(out_buffer, out_buffer + out_start, out_end - out_start);
    out_end -= out_start;
    out_start = 0;
}

/* Two frames' room: one for what a call sends, one that PID 1 can always add of its own (a PONG, an EXIT). */
bool link_has_room(void)
{
    if (OUT_SIZE - out_end < 2 * (FRAME_HEADER + FRAME_MAX))
        make_room();
    return OUT_SIZE - out_end >= 2 * (FRAME_HEADER + FRAME_MAX);
}

/* Where the next frame may be written in place; link_commit makes it part of the stream. */
uint8_t *link_reserve(void)
{
    return out_buffer + out_end;
}

void link_commit(size_t length)
{
    out_end += length;
}

void link_send(uint8_t type, uint8_t flag, uint32_t id, const void *payload, uint32_t length)
{
    struct frame_header head = {.length = length, .type = type, .flag = flag, .id = id};
    if (OUT_SIZE - out_end < FRAME_HEADER + length)
        make_room();
    if (OUT_SIZE - out_end < FRAME_HEADER + length) {
        /* Only a controller that asks (PING, OPEN) without ever reading gets here: wait for it as a pipe would. */
        struct pollfd out = {.fd = FD_LINK_OUT, .events = POLLOUT};
        while (OUT_SIZE - (out_end - out_start) < FRAME_HEADER + length) {
            if (poll(&out, 1, (int)(config.lease_ms > 60000 ? 60000 : config.lease_ms)) == 0)
                _exit(GUEST_LEASE);
            link_flush();
        }
        make_room();
    }
    memcpy(out_buffer + out_end, &head, FRAME_HEADER);
    if (length > 0)
        memcpy(out_buffer + out_end + FRAME_HEADER, payload, length);
    out_end += FRAME_HEADER + length;
}

void link_flush(void)
{
    while (link_pending()) {
        ssize_t put = RETRY(write(FD_LINK_OUT, out_buffer + out_start, out_end - out_start));
        if (put < 0 && errno == EAGAIN)
            return;
        if (put <= 0)
            _exit(GUEST_EOF);
        out_start += (size_t)put;
    }
    out_start = out_end = 0;
}

void link_die(enum guest_exit status, const char *format, ...)
{
    char text[FATAL_MAX];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (length > (int)sizeof text - 1)
        length = (int)sizeof text - 1;
    struct pollfd out = {.fd = FD_LINK_OUT, .events = POLLOUT};
    link_flush();
    if (link_pending() && poll(&out, 1, 200) > 0)
        link_flush();
    if (!link_pending() && length > 0) {
        link_send(F_FATAL, 0, 0, text, (uint32_t)length);
        link_flush();
    }
    _exit(status);
}
