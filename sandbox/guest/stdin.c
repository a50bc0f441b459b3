/* A command's stdin: fed as it is taken, and credited then. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "supervisor.h"

void stdin_close(struct supervisor *self)
{
    if (self->in.fd >= 0)
        close(self->in.fd);
    self->in.fd = -1;
    self->in.length = 0;
}

/* Told in large steps, since each one wakes the controller. What finds no room is owed. */
bool stdin_owes_credit(const struct supervisor *self)
{
    return !self->in.ended && self->in.ungranted >= FRAME_WINDOW / 4;
}

void stdin_grant(struct supervisor *self)
{
    if (stdin_owes_credit(self) && message_send(self->request->fd, F_CREDIT, 0, self->request->id, &self->in.ungranted,
                                                sizeof self->in.ungranted, false) == SENT)
        self->in.ungranted = 0;
}

static void count_taken(struct supervisor *self, size_t taken)
{
    self->in.ungranted += (uint32_t)taken;
    stdin_grant(self);
}

/* Bytes for a command that closed its stdin are taken and dropped, so that a writer never hangs. */
void stdin_take(struct supervisor *self, const uint8_t *data, size_t length, bool last)
{
    struct stdin_state *in = &self->in;
    in->ended = in->ended || last;
    if (in->fd < 0) {
        count_taken(self, length);
        return;
    }
    if (length > 0 && !in->bytes)
        in->bytes = malloc(2 * FRAME_WINDOW);
    if (length > 0 && (!in->bytes || in->length + length > FRAME_WINDOW)) {
        stdin_close(self);
        return;
    }
    if (in->start + in->length + length > 2 * FRAME_WINDOW) {
        memmove(in->bytes, in->bytes + in->start, in->length);
        in->start = 0;
    }
    if (length > 0)
        memcpy(in->bytes + in->start + in->length, data, length);
    in->length += length;
    stdin_feed(self);
}

void stdin_feed(struct supervisor *self)
{
    struct stdin_state *in = &self->in;
    size_t taken = 0;
    while (in->length > 0) {
        ssize_t put = RETRY(write(in->fd, in->bytes + in->start, in->length));
        if (put < 0 && errno == EAGAIN)
            break;
        if (put < 0) {
            taken += in->length;
            stdin_close(self);
            break;
        }
        in->start += (size_t)put;
        in->length -= (size_t)put;
        taken += (size_t)put;
    }
    if (in->length == 0)
        in->start = 0;
    if (in->ended && in->length == 0)
        stdin_close(self);
    count_taken(self, taken);
}
