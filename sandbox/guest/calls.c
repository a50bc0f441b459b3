/* PID 1's table of calls: it forks their processes, routes packets, and answers for those that were killed. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "calls.h"

static struct call calls[CALLS_MAX];

/* Each call's process writes there as whom it runs: one page that the forks share, so that it costs no packet. */
static uint32_t *shared_uids;

/* Linux lets a process that lost its parent's word go on for ever; PID 1 steps in when a call's own process, which
 * keeps its time, is this late. */
#define BACKSTOP_MS 3000

struct call *call_find(uint32_t id)
{
    for (size_t i = 0; i < CALLS_MAX; i++)
        if (calls[i].state == CALL_ACTIVE && calls[i].id == id)
            return &calls[i];
    return NULL;
}

struct call *call_next(struct call *after)
{
    for (struct call *call = after ? after + 1 : calls; call < calls + CALLS_MAX; call++)
        if (call->state != CALL_FREE)
            return call;
    return NULL;
}

bool calls_init(void)
{
    void *page =
        mmap(NULL, CALLS_MAX * sizeof *shared_uids, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared_uids = page == MAP_FAILED ? NULL : page;
    return shared_uids != NULL;
}

uint32_t call_uid(const struct call *call)
{
    return shared_uids[call - calls];
}

static struct call *call_take(void)
{
    for (size_t i = 0; i < CALLS_MAX; i++)
        if (calls[i].state == CALL_FREE)
            return &calls[i];
    return NULL;
}

static void drop_queue(struct call *call)
{
    while (call->queue) {
        struct packet *packet = call->queue;
        call->queue = packet->next;
        free(packet);
    }
    call->queue_end = &call->queue;
}

static void call_free(struct call *call)
{
    drop_queue(call);
    close(call->fd);
    call->state = CALL_FREE;
}

static void refuse(uint32_t id, enum exit_stage stage, int error)
{
    struct exit_report report = {.status = X_REFUSED, .stage = (uint8_t)stage, .error = error};
    link_send(F_EXIT, 0, id, &report, sizeof report);
}

/* Other living calls make it uncertain whose process the OOM killer took. */
static void note_company(struct call *call)
{
    for (struct call *other = call_next(NULL); other; other = call_next(other))
        if (other != call && other->kind == KIND_RUN)
            call->company = other->company = true;
}

/* The child's half of the fork: it keeps its end of the pair as descriptor 3, and main.c's two handles; all else that
 * PID 1 holds is closed, the stream above all. */
static void become_call(const struct call *call, const struct open_request *open_request, int fd, uint64_t began_us)
    __attribute__((noreturn));
static void become_call(const struct call *call, const struct open_request *open_request, int fd, uint64_t began_us)
{
    struct request request = {.id = call->id,
                              .fd = FD_CALL,
                              .open = *open_request,
                              .script_fd = -1,
                              .began_us = began_us,
                              .shared_uid = &shared_uids[call - calls]};
    for (int standard = 0; standard < 3; standard++)
        dup2(FD_NULL, standard);
    dup3(fd, FD_CALL, O_CLOEXEC);
    close_from(FD_FIRST_FREE);
    if (open_request->kind == KIND_RUN)
        supervisor_main(&request);
    files_main(&request);
}

void calls_open(uint32_t id, const struct open_request *request)
{
    uint64_t began_us = now_us();
    struct call *call = call_take();
    int pair[2];
    if (call_find(id))
        link_die(GUEST_PROTOCOL, "call %u was opened twice", id);
    if (!call) {
        refuse(id, STAGE_PROCESS, EAGAIN);
        return;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        refuse(id, STAGE_PROCESS, errno);
        return;
    }
    call->id = id;
    shared_uids[call - calls] = UID_UNKNOWN;
    pid_t pid = fork();
    if (pid == 0)
        become_call(call, request, pair[1], began_us);
    int error = errno;
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        refuse(id, STAGE_PROCESS, error);
        return;
    }
    uint64_t deadline = UINT64_MAX;
    if (request->timeout_ms > 0) {
        deadline = began_us / 1000u + request->timeout_ms;
        if (request->kind == KIND_RUN)
            deadline += request->grace_ms + BACKSTOP_MS;
    }
    *call = (struct call){.state = CALL_ACTIVE,
                          .id = id,
                          .pid = pid,
                          .fd = pair[0],
                          .kind = request->kind,
                          .grace_ms = request->grace_ms,
                          .deadline_ms = deadline,
                          .late_status = X_TIMED_OUT,
                          .window = FRAME_WINDOW};
    call->queue_end = &call->queue;
    call->oom_known = oom_count(&call->oom_at_start);
    note_company(call);
}

/* A packet that doesn't fit into the pair now waits in a queue that the input window bounds. */
static void deliver(struct call *call, uint8_t type, uint8_t flag, const void *payload, uint32_t length)
{
    if (!call->queue) {
        enum send_result result = message_send(call->fd, type, flag, call->id, payload, length, false);
        if (result != SEND_FULL)
            return; /* sent, or its process is gone and calls_serve will say so */
    }
    struct packet *packet = malloc(sizeof *packet + length);
    if (!packet)
        link_die(GUEST_NO_START, "no memory is left for %u bytes of a call's input", length);
    *packet = (struct packet){.type = type, .flag = flag, .length = length};
    if (length > 0)
        memcpy(packet->payload, payload, length);
    *call->queue_end = packet;
    call->queue_end = &packet->next;
}

static void send_queue(struct call *call)
{
    while (call->queue) {
        struct packet *packet = call->queue;
        if (message_send(call->fd, packet->type, packet->flag, call->id, packet->payload, packet->length, false) ==
            SEND_FULL)
            return;
        call->queue = packet->next;
        if (!call->queue)
            call->queue_end = &call->queue;
        free(packet);
    }
}

void calls_input(uint32_t id, uint8_t flag, const uint8_t *data, uint32_t length)
{
    struct call *call = call_find(id);
    if (!call)
        return;
    if (length > call->window)
        link_die(GUEST_PROTOCOL, "call %u was sent %u bytes of input beyond its window", id, length - call->window);
    call->window -= length;
    deliver(call, F_INPUT, flag, data, length);
}

void calls_credit(uint32_t id, const uint8_t *data, uint32_t length)
{
    struct call *call = call_find(id);
    if (length != sizeof(uint32_t))
        link_die(GUEST_PROTOCOL, "a CREDIT has %u bytes instead of 4", length);
    if (call)
        deliver(call, F_CREDIT, 0, data, length);
}

void calls_cancel(uint32_t id)
{
    struct call *call = call_find(id);
    if (!call)
        return;
    uint64_t deadline = now_ms();
    if (call->kind == KIND_RUN) {
        deliver(call, M_CANCEL, 0, NULL, 0);
        deadline += call->grace_ms + BACKSTOP_MS;
    }
    if (deadline < call->deadline_ms) {
        call->deadline_ms = deadline;
        call->late_status = X_CANCELLED;
    }
}

/* What only PID 1 knows of a call's end is added to the report on its way. */
static void complete_report(struct call *call, struct exit_report *report)
{
    uint64_t now;
    if (call->collateral)
        report->flags |= EXIT_COLLATERAL;
    if (call->kind != KIND_RUN)
        return;
    if (!call->oom_known || !oom_count(&now)) {
        report->flags |= EXIT_OOM_UNKNOWN;
        report->flags &= (uint8_t)~EXIT_OOM;
        return;
    }
    /* The supervisor sets the flag where it saw a SIGKILL that wasn't its own. A death that its shell reaped it
     * can't see: such a one is this call's if nobody else was there to die. */
    bool seen = (report->flags & EXIT_OOM) != 0;
    uint64_t deaths = now - call->oom_at_start;
    bool mine = deaths > call->oom_claimed && (seen || !call->company);
    report->flags &= (uint8_t)~EXIT_OOM;
    if (mine) {
        report->flags |= EXIT_OOM;
        for (struct call *other = call_next(NULL); other; other = call_next(other))
            if (other != call)
                other->oom_claimed++;
    }
}

void call_end(struct call *call, struct exit_report report)
{
    complete_report(call, &report);
    link_send(F_EXIT, 0, call->id, &report, sizeof report);
    call->state = CALL_LINGERING;
    call->deadline_ms = UINT64_MAX;
    drop_queue(call);
}

/* Its process is gone and said nothing: somebody inside killed it. */
static void answer_for_dead(struct call *call)
{
    if (call->state == CALL_ACTIVE) {
        struct exit_report report = {.status = X_KILLED};
        report.survivors = (uint32_t)orphans_kill(call);
        call_end(call, report);
    }
    call_free(call);
}

static void take_packet(struct call *call, struct message *message)
{
    const struct frame_header *head = &message->head;
    uint32_t grant;
    struct escalation escalation;
    struct exit_report report;
    switch (head->type) {
    case M_CLAIM:
        for (struct call *other = call_next(NULL); other; other = call_next(other))
            other->oom_claimed++;
        return;
    case M_ESCALATE:
        memcpy(&escalation, message->payload, sizeof escalation);
        escalate(call, &escalation);
        return;
    case F_EXIT:
        memcpy(&report, message->payload, sizeof report);
        if (call->state == CALL_ACTIVE)
            call_end(call, report);
        return;
    case F_CREDIT:
        memcpy(&grant, message->payload, sizeof grant);
        call->window += grant;
        break;
    default:
        break;
    }
    if (call->state == CALL_ACTIVE)
        link_commit(FRAME_HEADER + head->length);
}

/* Packets are received where they will be sent from. Returns false when the call's process is gone. */
static bool call_receive(struct call *call)
{
    while (link_has_room()) {
        struct message *message = (struct message *)link_reserve();
        ssize_t got = message_receive(call->fd, message, false);
        if (got < 0)
            return true;
        if (got == 0)
            return false;
        take_packet(call, message);
        if (call->state == CALL_FREE)
            return true;
    }
    return true;
}

size_t calls_poll_set(struct pollfd *set, size_t room)
{
    size_t count = 0;
    bool may_read = link_has_room();
    for (struct call *call = call_next(NULL); call && count < room; call = call_next(call)) {
        short events = (short)((may_read ? POLLIN : 0) | (call->queue ? POLLOUT : 0));
        set[count++] = (struct pollfd){.fd = events ? call->fd : -1, .events = events};
        call->slot = count - 1;
    }
    return count;
}

void calls_serve(const struct pollfd *set, size_t count)
{
    for (struct call *call = call_next(NULL); call; call = call_next(call)) {
        if (call->slot >= count || set[call->slot].fd != call->fd)
            continue;
        short events = set[call->slot].revents;
        if (events & POLLOUT)
            send_queue(call);
        if ((events & (POLLIN | POLLHUP | POLLERR)) && !call_receive(call))
            answer_for_dead(call);
    }
}

uint64_t calls_next_deadline(void)
{
    uint64_t next = UINT64_MAX;
    for (struct call *call = call_next(NULL); call; call = call_next(call))
        if (call->deadline_ms < next)
            next = call->deadline_ms;
    return next;
}

/* File calls have no supervisor: PID 1 keeps their time. For the others this is the backstop. */
void calls_expire(void)
{
    uint64_t now = now_ms();
    for (struct call *call = call_next(NULL); call; call = call_next(call)) {
        if (call->state != CALL_ACTIVE || call->deadline_ms > now)
            continue;
        struct exit_report report = {.status = call->late_status};
        if (call->kind == KIND_RUN)
            report.survivors = (uint32_t)call_crush(call);
        else
            kill(call->pid, SIGKILL);
        call_end(call, report);
        call_free(call);
    }
}

void calls_reset(void)
{
    everything_kill();
    for (struct call *call = call_next(NULL); call; call = call_next(call)) {
        if (call->state == CALL_ACTIVE)
            call_end(call, (struct exit_report){.status = X_CANCELLED});
        call_free(call);
    }
    link_send(F_RESET_DONE, 0, 0, NULL, 0);
}
