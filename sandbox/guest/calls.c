/* PID 1's table of calls: it forks their processes, routes packets, and answers for those that were killed. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "calls.h"

static struct call calls[CALLS_MAX];
static struct call *calls_end = calls; /* behind the last that is in use: a busy table is seldom long */
static volatile struct slot *slots;

struct call *call_find(uint32_t id)
{
    for (struct call *call = calls; call < calls_end; call++)
        if (call->state == CALL_ACTIVE && call->id == id)
            return call;
    return NULL;
}

struct call *call_next(struct call *after)
{
    for (struct call *call = after ? after + 1 : calls; call < calls_end; call++)
        if (call->state != CALL_FREE)
            return call;
    return NULL;
}

bool calls_init(void)
{
    void *memory = mmap(NULL, CALLS_MAX * sizeof *slots, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    slots = memory == MAP_FAILED ? NULL : memory;
    return slots != NULL;
}

volatile struct slot *call_slot(const struct call *call)
{
    return &slots[call - calls];
}

static struct call *find_free(void)
{
    for (struct call *call = calls; call < calls + CALLS_MAX; call++)
        if (call->state == CALL_FREE)
            return call;
    return NULL;
}

void call_free(struct call *call)
{
    backlog_drop(call);
    close(call->fd);
    call->state = CALL_FREE;
    while (calls_end > calls && calls_end[-1].state == CALL_FREE)
        calls_end--;
}

/* Where no process can be had, it says how many there are: children that ended calls have left are what fills the
 * sandbox, and a reset is what empties it. */
static void refuse(uint32_t id, int error)
{
    struct exit_report report = {.status = X_REFUSED, .stage = STAGE_PROCESS, .error = error};
    size_t living = process_count_living();
    report.exit_code = living < 255 ? (int32_t)living : 255;
    link_send(F_EXIT, 0, id, &report, sizeof report);
}

/* The child's half of the fork: it keeps its end of the pair as descriptor 3; what PID 1 alone may hold is closed, the
 * stream above all. */
static void become_call(const struct call *call, const struct open_request *open_request, int fd) NORETURN;
static void become_call(const struct call *call, const struct open_request *open_request, int fd)
{
    struct request request = {.id = call->id,
                              .fd = FD_CALL,
                              .open = *open_request,
                              .script_fd = -1,
                              .began_us = call->began_us,
                              .slot = call_slot(call)};
    dup3(fd, FD_CALL, O_CLOEXEC);
    close_from(FD_LINK_IN);
    if (open_request->kind == KIND_RUN)
        supervisor_main(&request);
    files_main(&request);
}

void calls_open(uint32_t id, const struct open_request *request)
{
    int pair[2];
    if (call_find(id))
        link_die(GUEST_PROTOCOL, "call %u was opened twice", id);
    struct call *call = find_free();
    if (!call || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        refuse(id, call ? errno : EAGAIN);
        return;
    }
    *call = (struct call){.id = id,
                          .fd = pair[0],
                          .kind = request->kind,
                          .grace_ms = request->grace_ms,
                          .began_us = now_us(),
                          .late_status = X_TIMED_OUT,
                          .window = FRAME_WINDOW};
    *call_slot(call) = (struct slot){.uid = UID_UNKNOWN};
    call->pid = fork();
    if (call->pid == 0)
        become_call(call, request, pair[1]);
    int error = errno;
    close(pair[1]);
    if (call->pid < 0) {
        close(pair[0]);
        refuse(id, error);
        return;
    }
    call->state = CALL_ACTIVE;
    call->deadline_ms = late_first_deadline(call, request);
    if (call >= calls_end)
        calls_end = call + 1;
    blame_begin(call);
}

void calls_input(uint32_t id, uint8_t flag, const uint8_t *data, uint32_t length)
{
    struct call *call = call_find(id);
    if (!call || call->input_ended)
        return;
    if (length > call->window)
        link_die(GUEST_PROTOCOL, "call %u was sent %u bytes of input beyond its window", id, length - call->window);
    call->window -= length;
    call->input_ended = flag & INPUT_LAST;
    backlog_input(call, data, length, call->input_ended);
}

void calls_credit(uint32_t id, const uint8_t *data)
{
    struct call *call = call_find(id);
    uint32_t amount;
    memcpy(&amount, data, sizeof amount);
    if (call)
        backlog_credit(call, amount);
}

/* What only PID 1 knows of a call's end is added to the report on its way. */
void call_end(struct call *call, struct exit_report report)
{
    if (call->collateral)
        report.flags |= EXIT_COLLATERAL;
    if (call->kind == KIND_RUN)
        blame_end(call, &report);
    else if (report.status == X_CANCELLED && call->stopping)
        report.status = (uint8_t)call->late_status;
    if (report.wall_us == 0)
        report.wall_us = now_us() - call->began_us;
    link_send(F_EXIT, 0, call->id, &report, sizeof report);
    call->state = CALL_LINGERING;
    call->left_children = report.flags & EXIT_BACKGROUND;
    call->deadline_ms = UINT64_MAX;
    backlog_drop(call);
}

/* Its process is gone and said nothing: somebody inside killed it. */
static void answer_for_dead(struct call *call)
{
    if (call->state == CALL_ACTIVE) {
        struct exit_report report = {.status = X_KILLED};
        if (call->kind == KIND_RUN)
            report.survivors = (uint32_t)call_crush(call);
        call_end(call, report);
    }
    call_free(call);
}

static void take_packet(struct call *call, const struct message *message)
{
    const struct frame_header *head = &message->head;
    struct escalation escalation;
    struct exit_report report;
    uint32_t number;
    switch (head->type) {
    case M_CLAIM:
        memcpy(&number, message->payload, sizeof number);
        blame_background(number);
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
        memcpy(&number, message->payload, sizeof number);
        call->window += number;
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
    }
    return true;
}

size_t calls_poll_set(struct pollfd *set)
{
    size_t count = 0;
    bool may_read = link_has_room();
    for (struct call *call = call_next(NULL); call; call = call_next(call)) {
        short events = (short)((may_read ? POLLIN : 0) | (backlog_waits(call) ? POLLOUT : 0));
        set[count] = (struct pollfd){.fd = events ? call->fd : -1, .events = events};
        call->place = count++;
    }
    return count;
}

void calls_serve(const struct pollfd *set, size_t count)
{
    for (struct call *call = call_next(NULL); call; call = call_next(call)) {
        short events = call->place < count && set[call->place].fd == call->fd ? set[call->place].revents : 0;
        if (events && backlog_waits(call))
            backlog_send(call);
        if ((events & (POLLIN | POLLHUP | POLLERR)) && !call_receive(call))
            answer_for_dead(call);
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
