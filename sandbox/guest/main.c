/* PID 1 of a sandbox. It routes frames between the controller and the calls' processes, and ends them when they or
 * the controller can't. It runs no command itself and reads no file that a command can write.
 *
 * It hears no signal but SIGCHLD: from inside any other could be forged (one that was queued beyond the limit loses its
 * sender), so the engine is told to stop a sandbox by SIGKILL. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "guest.h"

static uint64_t lease_end_ms, life_end_ms;

static void handle_frame(const struct frame *frame)
{
    const struct frame_header *head = &frame->head;
    struct open_request request;
    switch (head->type) {
    case F_OPEN:
        memcpy(&request, frame->payload, sizeof request);
        judge_open(&request);
        calls_open(head->id, &request);
        break;
    case F_INPUT:
        calls_input(head->id, head->flag, frame->payload, head->length);
        break;
    case F_CREDIT:
        calls_credit(head->id, frame->payload);
        break;
    case F_CANCEL:
        calls_cancel(head->id);
        break;
    case F_PING:
        link_send(F_PONG, 0, 0, frame->payload, head->length);
        break;
    case F_RESET:
        calls_reset();
        break;
    }
}

static void handle_input(void)
{
    struct frame frame;
    if (!link_fill())
        _exit(GUEST_EOF);
    while (link_next(&frame)) {
        lease_end_ms = deadline_after(now_ms(), config.lease_ms);
        handle_frame(&frame);
    }
}

static void handle_deaths(void)
{
    struct signalfd_siginfo ignored;
    (void)!read(FD_SIGNALS, &ignored, sizeof ignored);
    reap_orphans();
}

static uint64_t next_deadline(void)
{
    uint64_t next = calls_next_deadline();
    next = lease_end_ms < next ? lease_end_ms : next;
    return life_end_ms < next ? life_end_ms : next;
}

/* The lease is looked at only when nothing waits to be read: a sandbox that was paused for longer than its lease first
 * hears the pings that it missed. */
static void check_clock(bool heard)
{
    uint64_t now = now_ms();
    if (now >= life_end_ms)
        link_die(GUEST_LIFETIME, "the sandbox's lifetime of %llu s has ended",
                 (unsigned long long)(config.lifetime_ms / 1000));
    if (!heard && now >= lease_end_ms)
        link_die(GUEST_LEASE, "no word came from the controller for %llu s",
                 (unsigned long long)(config.lease_ms / 1000));
    calls_expire();
}

static void serve(void)
{
    static struct pollfd set[3 + CALLS_MAX];
    for (;;) {
        set[0] = (struct pollfd){.fd = FD_LINK_IN, .events = POLLIN};
        set[1] = (struct pollfd){.fd = FD_SIGNALS, .events = POLLIN};
        set[2] = (struct pollfd){.fd = link_pending() ? FD_LINK_OUT : -1, .events = POLLOUT};
        size_t count = calls_poll_set(set + 3);
        if (poll(set, 3 + count, milliseconds_until(next_deadline())) < 0 && errno != EINTR)
            link_die(GUEST_NO_START, "poll failed: %s", strerror(errno));
        calls_serve(set + 3, count);
        if (set[0].revents)
            handle_input();
        check_clock(set[0].revents != 0);
        link_flush();
        if (set[1].revents)
            handle_deaths();
    }
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    lease_end_ms = deadline_after(now_ms(), config.lease_ms);
    life_end_ms = config.lifetime_ms > 0 ? deadline_after(now_ms(), config.lifetime_ms) : UINT64_MAX;
    serve();
}
