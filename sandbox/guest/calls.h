/* The table of calls, shared by its two halves: calls.c routes, crush.c kills. PID 1 only. */
#ifndef CALLS_H
#define CALLS_H

#include "guest.h"

struct packet {
    struct packet *next;
    uint8_t type;
    uint8_t flag;
    uint32_t length;
    uint8_t payload[];
};

enum call_state {
    CALL_FREE,
    CALL_ACTIVE,
    CALL_LINGERING, /* it was answered; its supervisor stays for the children that it left */
};

struct call {
    enum call_state state;
    uint32_t id;
    pid_t pid;
    int fd;
    uint8_t kind;
    uint32_t grace_ms;
    uint64_t deadline_ms;
    enum exit_status late_status;
    uint32_t window;
    struct packet *queue;
    struct packet **queue_end;
    bool collateral;
    bool company;
    bool oom_known;
    uint64_t oom_at_start;
    uint64_t oom_claimed;
    size_t slot;
};

/* calls.c */
struct call *call_find(uint32_t id);
struct call *call_next(struct call *after);
uint32_t call_uid(const struct call *call);
void call_end(struct call *call, struct exit_report report);

/* crush.c */
void escalate(struct call *call, const struct escalation *escalation);
size_t orphans_kill(struct call *call);
size_t call_crush(struct call *call);
size_t everything_kill(void);

#endif
