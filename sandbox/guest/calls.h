/* The table of calls, shared by its parts: calls.c routes, backlog.c keeps
 * what waits, late.c ends what is late, crush.c kills, blame.c tells whom the OOM killer took. PID 1 only. */
#ifndef CALLS_H
#define CALLS_H

#include "guest.h"

enum call_state {
    CALL_FREE,
    CALL_ACTIVE,
    CALL_LINGERING, /* it was answered; its supervisor stays for the children that it left */
};

/* What a call's process has no room for now. The input window bounds it. */
struct backlog {
    uint8_t *input;
    size_t start;
    size_t length;
    uint64_t credit;
    bool last;
    bool cancel;
    bool escalated;
};

struct call {
    enum call_state state;
    uint32_t id;
    pid_t pid; /* 0 when it was reaped: the number may be another's by now */
    int fd;
    uint8_t kind;
    uint32_t grace_ms;
    uint64_t began_us;
    uint64_t deadline_ms;
    enum exit_status late_status;
    uint32_t window;
    bool input_ended;
    bool stopping; /* a file call that was told to end */
    struct backlog backlog;
    bool collateral;
    bool company; /* others' processes could have been the OOM killer's choice */
    bool left_children;
    bool oom_known;
    uint64_t oom_at_start;
    uint64_t oom_claimed;
    size_t place; /* in the set that is polled */
};

/* calls.c */
struct call *call_find(uint32_t id);
struct call *call_next(struct call *after);
volatile struct slot *call_slot(const struct call *call);
void call_end(struct call *call, struct exit_report report);
void call_free(struct call *call);

/* late.c */
uint64_t late_first_deadline(const struct call *call, const struct open_request *request);

/* backlog.c */
void backlog_input(struct call *call, const uint8_t *data, uint32_t length, bool last);
void backlog_credit(struct call *call, uint32_t amount);
void backlog_cancel(struct call *call);
void backlog_escalated(struct call *call);
bool backlog_waits(const struct call *call);
void backlog_send(struct call *call);
void backlog_drop(struct call *call);

/* crush.c */
void escalate(struct call *call, const struct escalation *escalation);
void call_kill(const struct call *call);
size_t call_crush(struct call *call);
size_t everything_kill(void);

/* blame.c */
void blame_begin(struct call *call);
void blame_end(struct call *call, struct exit_report *report);
void blame_background(uint32_t deaths);

#endif
