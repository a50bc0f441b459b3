/* A command's output: kept and, where it is watched, sent as it comes. */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "supervisor.h"

static bool is_watched(const struct supervisor *self)
{
    return self->request->open.flags & CALL_WATCH;
}

/* A watcher that takes nothing stops its own command: the pipe fills up. A command that is being ended is drained
 * whether anyone watches or not. */
static bool may_read(const struct supervisor *self)
{
    if (!is_watched(self) || self->ending != X_EXITED)
        return true;
    return self->live.length == 0 && self->credit > 0;
}

bool stream_wanted(const struct supervisor *self, int index)
{
    const struct stream_state *stream = &self->streams[index];
    if (self->shell_gone && self->ending == X_EXITED && stream->due == 0)
        return false;
    return stream->fd >= 0 && may_read(self);
}

void stream_flush_live(struct supervisor *self)
{
    struct live_state *live = &self->live;
    if (live->length == 0)
        return;
    if (message_send(self->request->fd, F_OUTPUT, live->stream, self->request->id, live->bytes, live->length, false) !=
        SEND_FULL)
        live->length = 0;
}

static void send_live(struct supervisor *self, int index, const uint8_t *data, uint32_t length)
{
    uint8_t stream = index == 0 ? STREAM_OUT : STREAM_ERR;
    if (self->live.length > 0 || length > self->credit)
        return; /* only while the command is being ended: what was kept still has these bytes */
    self->credit -= length;
    if (message_send(self->request->fd, F_OUTPUT, stream, self->request->id, data, length, false) != SEND_FULL)
        return;
    self->live.stream = stream;
    self->live.length = length;
    memcpy(self->live.bytes, data, length);
}

/* Bytes read; 0 at the end or when there is nothing now. */
ssize_t stream_read(struct supervisor *self, int index, size_t most)
{
    static uint8_t buffer[FRAME_MAX];
    struct stream_state *stream = &self->streams[index];
    most = most < sizeof buffer ? most : sizeof buffer;
    if (is_watched(self) && self->ending == X_EXITED && self->credit < most)
        most = self->credit;
    if (self->shell_gone && self->ending == X_EXITED && stream->due < most)
        most = stream->due;
    if (stream->fd < 0 || most == 0 || !may_read(self))
        return 0;
    ssize_t got = RETRY(read(stream->fd, buffer, most));
    if (got < 0) {
        stream->due = 0; /* a child opened the pipe again and took what the shell had left in it */
        return 0;
    }
    if (got == 0) {
        close(stream->fd);
        stream->fd = -1;
        stream->due = 0;
        return 0;
    }
    keep_add(&stream->keep, buffer, (size_t)got);
    if (stream->due > 0)
        stream->due -= (uint64_t)got;
    if (is_watched(self))
        send_live(self, index, buffer, (uint32_t)got);
    return got;
}

/* The call ends with its shell and not with the last holder of its pipes: what they hold now belongs to it, what
 * background children write later does not. True when all of that was read. */
bool stream_drain_at_exit(struct supervisor *self)
{
    for (int i = 0; i < 2 && !self->counted_due; i++) {
        int held = 0;
        if (self->streams[i].fd >= 0 && ioctl(self->streams[i].fd, FIONREAD, &held) == 0)
            self->streams[i].due = (uint64_t)held;
    }
    self->counted_due = true;
    for (int i = 0; i < 2; i++)
        while (self->streams[i].due > 0 && stream_read(self, i, FRAME_MAX) > 0)
            ;
    return self->streams[0].due == 0 && self->streams[1].due == 0 && self->live.length == 0;
}

/* After a kill: everything that the pipes hold, once. Whoever survived can't keep it busy for ever. */
void stream_drain_now(struct supervisor *self)
{
    for (int i = 0; i < 2; i++)
        for (int rounds = 0; rounds < 32 && stream_read(self, i, FRAME_MAX) > 0; rounds++)
            ;
}
