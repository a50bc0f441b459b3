/* Packets between PID 1 and a call's process: a SOCK_SEQPACKET pair, so one packet is one frame and none is ever cut. */
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "guest.h"

enum send_result message_send(int fd, uint8_t type, uint8_t flag, uint32_t id, const void *payload, uint32_t length,
                              bool wait)
{
    struct frame_header head = {.length = length, .type = type, .flag = flag, .id = id};
    struct iovec parts[2] = {{&head, FRAME_HEADER}, {(void *)(uintptr_t)payload, length}};
    struct msghdr packet = {.msg_iov = parts, .msg_iovlen = length > 0 ? 2 : 1};
    for (;;) {
        if (RETRY(sendmsg(fd, &packet, MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT))) >= 0)
            return SENT;
        if (errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM)
            return SEND_GONE;
        if (!wait)
            return SEND_FULL;
        usleep(1000); /* the sandbox is at its memory limit: an answer must not be lost to that */
    }
}

/* The packet's length; 0 when the other side is gone; -1 when there is none now. */
ssize_t message_receive(int fd, struct message *message, bool wait)
{
    ssize_t got;
    /* A side that goes while a packet for it lies unread resets the pair: that is told once, before the packets that it
     * has sent itself. */
    do
        got = recv(fd, message, sizeof *message, wait ? 0 : MSG_DONTWAIT);
    while (got < 0 && (errno == EINTR || errno == ECONNRESET));
    if (got < 0)
        return errno == EAGAIN ? -1 : 0;
    if (got < FRAME_HEADER || message->head.length != (uint32_t)(got - FRAME_HEADER))
        return 0;
    return got;
}
