/* One file call's own process: it becomes the user and then does what he may, and nothing else.
 *
 * The kernel judges every path, link and mode; there is no check here that could be raced. It has no children, so it
 * needs no supervisor: PID 1 keeps its time and kills it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <unistd.h>

#include "guest.h"

/* ECANCELED where the call is to end: whoever waits removes what he has half written. */
static int wait_for_packet(struct transfer *transfer)
{
    uint32_t grant;
    if (message_receive(transfer->request->fd, transfer->packet, true) <= 0)
        _exit(0);
    transfer->packet_at = 0;
    if (transfer->packet->head.type == F_INPUT) {
        transfer->request->input_ended = transfer->packet->head.flag & INPUT_LAST;
        return 0;
    }
    transfer->packet->head.length = 0;
    if (transfer->packet->head.type == M_CANCEL)
        return ECANCELED;
    if (transfer->packet->head.type == F_CREDIT) {
        memcpy(&grant, transfer->packet->payload, sizeof grant);
        transfer->credit += grant;
    }
    return 0;
}

/* Sends within the controller's credit, waiting for more of it. */
int transfer_send(struct transfer *transfer, const void *data, size_t length)
{
    const uint8_t *next = data;
    while (length > 0) {
        size_t part = length < FRAME_MAX ? length : FRAME_MAX;
        if (transfer->credit == 0) {
            int error = wait_for_packet(transfer);
            if (error)
                return error;
            continue;
        }
        part = part < transfer->credit ? part : (size_t)transfer->credit;
        if (message_send(transfer->request->fd, F_OUTPUT, STREAM_OUT, transfer->request->id, next, (uint32_t)part,
                         true) != SENT)
            return EPIPE;
        transfer->credit -= part;
        next += part;
        length -= part;
    }
    return 0;
}

static void grant(struct transfer *transfer, size_t taken)
{
    transfer->ungranted += (uint32_t)taken;
    if (transfer->request->input_ended || transfer->ungranted < FRAME_WINDOW / 4)
        return;
    message_send(transfer->request->fd, F_CREDIT, 0, transfer->request->id, &transfer->ungranted, sizeof(uint32_t),
                 true);
    transfer->ungranted = 0;
}

static size_t take(struct transfer *transfer, uint8_t *data, size_t length)
{
    struct request *request = transfer->request;
    size_t part;
    if (request->rest_length > 0) {
        part = request->rest_length < length ? request->rest_length : length;
        memcpy(data, request->rest, part);
        request->rest += part;
        request->rest_length -= part;
        return part;
    }
    part = transfer->packet->head.length - transfer->packet_at;
    part = part < length ? part : length;
    memcpy(data, transfer->packet->payload + transfer->packet_at, part);
    transfer->packet_at += part;
    return part;
}

/* Exactly `length` bytes of the call's input; EPROTO where it ends before. */
int transfer_receive(struct transfer *transfer, void *data, size_t length)
{
    uint8_t *next = data;
    while (length > 0) {
        size_t part = take(transfer, next, length);
        if (part == 0) {
            int error = transfer->request->input_ended ? EPROTO : wait_for_packet(transfer);
            if (error)
                return error;
            continue;
        }
        grant(transfer, part);
        next += part;
        length -= part;
    }
    return 0;
}

static int carry_out(struct transfer *transfer)
{
    const char *path = transfer->request->argv[0];
    switch (transfer->request->open.kind) {
    case KIND_READ:
        return tree_read(transfer, path);
    case KIND_GET:
        return tree_get(transfer, path);
    case KIND_PUT:
        return disk_below_reserve() ? ENOSPC : tree_put(transfer, path);
    default:
        return 0;
    }
}

void files_main(struct request *request)
{
    static struct message packet;
    struct user user;
    if (!request_read(request))
        _exit(0);
    setfsuid(0); /* the image's passwd may be root's alone */
    if (!user_find(request->user, &user)) {
        request_fail(request, X_FAILED, STAGE_USER, ENOENT);
        _exit(0);
    }
    request->slot->uid = user.uid;
    if (!user_become(&user)) {
        request_fail(request, X_REFUSED, STAGE_PROCESS, errno);
        _exit(0);
    }
    if (chdir(request->cwd) != 0) {
        request_fail(request, X_FAILED, STAGE_CWD, errno);
        _exit(0);
    }
    packet.head.length = 0;
    struct transfer transfer = {.request = request, .credit = FRAME_WINDOW, .packet = &packet};
    int error = carry_out(&transfer);
    if (error == ECANCELED) {
        request_fail(request, X_CANCELLED, 0, 0);
        _exit(0);
    }
    struct exit_report report = {.status = error ? X_FAILED : X_EXITED,
                                 .stage = error ? STAGE_FILE : 0,
                                 .error = error,
                                 .total_out = transfer.bytes,
                                 .mode = transfer.mode};
    request_exit(request, &report);
    _exit(0);
}
