/* The head and the tail of a stream, in one block of `limit` bytes.
 *
 * Byte i stands at i while i < head, and at head + (i - head) % tail after that: so the block is the plain text as
 * long as nothing was left out, and a ring behind a fixed head from then on. */
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#include "guest.h"

void keep_init(struct keep *keep, size_t limit)
{
    *keep = (struct keep){.limit = limit, .head = limit * 2 / 5};
}

static size_t place(const struct keep *keep, uint64_t index)
{
    if (index < keep->head)
        return (size_t)index;
    return keep->head + (size_t)((index - keep->head) % (keep->limit - keep->head));
}

/* Pages are taken from the kernel when they are first written, so a large limit costs a quiet command nothing. */
static bool allocate(struct keep *keep)
{
    if (!keep->bytes) {
        void *block = mmap(NULL, keep->limit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        keep->bytes = block == MAP_FAILED ? NULL : block;
    }
    return keep->bytes != NULL;
}

void keep_add(struct keep *keep, const uint8_t *data, size_t length)
{
    if (keep->limit == 0 || length == 0 || !allocate(keep)) {
        keep->total += length;
        return;
    }
    while (length > 0) {
        size_t at = place(keep, keep->total);
        size_t run = (keep->total < keep->head ? keep->head : keep->limit) - at;
        if (run > length)
            run = length;
        memcpy(keep->bytes + at, data, run);
        keep->total += run;
        data += run;
        length -= run;
    }
}

static bool send_part(const struct request *request, uint8_t flag, const uint8_t *data, size_t length, int patience_ms)
{
    while (length > 0) {
        uint32_t size = length > FRAME_MAX ? FRAME_MAX : (uint32_t)length;
        if (patience_ms >= 0) {
            struct pollfd room = {.fd = request->fd, .events = POLLOUT};
            if (poll(&room, 1, patience_ms) <= 0)
                return false;
        }
        if (message_send(request->fd, F_KEPT, flag, request->id, data, size, patience_ms < 0) != SENT)
            return false;
        data += size;
        length -= size;
    }
    return true;
}

/* With a patience (milliseconds for each packet) it gives up where PID 1 can't take more; -1 waits. */
bool keep_send(const struct keep *keep, const struct request *request, uint8_t stream, int patience_ms)
{
    if (!keep->bytes)
        return true;
    if (keep->total <= keep->limit)
        return send_part(request, stream, keep->bytes, (size_t)keep->total, patience_ms);
    uint8_t tail = stream | STREAM_TAIL;
    size_t oldest = place(keep, keep->total);
    return send_part(request, stream, keep->bytes, keep->head, patience_ms) &&
           send_part(request, tail, keep->bytes + oldest, keep->limit - oldest, patience_ms) &&
           send_part(request, tail, keep->bytes + keep->head, oldest - keep->head, patience_ms);
}

void keep_free(struct keep *keep)
{
    if (keep->bytes)
        munmap(keep->bytes, keep->limit);
    keep->bytes = NULL;
}
