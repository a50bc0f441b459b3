/* The state of one RUN call, shared by supervisor.c (its life), report.c (its answer), streams.c and stdin.c (its
 * bytes) and ladder.c (its end by force). */
#ifndef SUPERVISOR_H
#define SUPERVISOR_H

#include <sys/resource.h>

#include "guest.h"

struct stream_state {
    int fd;
    struct keep keep;
    uint64_t due; /* bytes that the pipe held when the shell exited and that are still to be read */
};

/* Bytes for the command's stdin that its pipe had no room for; the input window bounds them. */
struct stdin_state {
    int fd;
    uint8_t *bytes;
    size_t start;
    size_t length;
    uint32_t ungranted;
    bool ended;
};

/* One OUTPUT packet that the pair had no room for: while it waits, no pipe is read. */
struct live_state {
    uint8_t stream;
    uint32_t length;
    uint8_t bytes[FRAME_MAX];
};

struct supervisor {
    struct request *request;
    enum exit_status ending; /* X_EXITED as long as nobody ended the command but itself */
    uint32_t uid;
    pid_t shell;
    int signal_fd;
    struct stream_state streams[2];
    struct stdin_state in;
    struct live_state live;
    uint64_t credit;
    uint64_t deadline_ms;
    uint64_t disk_check_ms;
    uint64_t shell_ended_us;
    int shell_status;
    struct rusage shell_usage;
    uint32_t sigkills; /* deaths by SIGKILL that weren't ours */
    bool shell_gone;
    bool childless;
    bool only_zombies; /* are left: traced ones, which can't be reaped */
    bool killing;
    bool cancel_asked;
    bool counted_due;
    bool kept_sent;
    bool swept;
    bool answered; /* by PID 1: the uid was killed */
};

/* supervisor.c */
void supervisor_reap(struct supervisor *self);
void supervisor_reap_within(struct supervisor *self, uint64_t milliseconds);
void supervisor_take_messages(struct supervisor *self);
void supervisor_drain_signals(const struct supervisor *self);
void supervisor_refuse(const struct supervisor *self, int error) NORETURN;

/* report.c */
void supervisor_finish(struct supervisor *self, uint32_t survivors) NORETURN;
void supervisor_provisional(const struct supervisor *self, struct exit_report *report);
bool supervisor_send_kept(const struct supervisor *self, int patience_ms);

/* streams.c */
bool stream_wanted(const struct supervisor *self, int index);
ssize_t stream_read(struct supervisor *self, int index, size_t most);
void stream_flush_live(struct supervisor *self);
bool stream_drain_at_exit(struct supervisor *self);
void stream_drain_now(struct supervisor *self);

/* stdin.c */
void stdin_take(struct supervisor *self, const uint8_t *data, size_t length, bool last);
void stdin_feed(struct supervisor *self);
void stdin_grant(struct supervisor *self);
bool stdin_owes_credit(const struct supervisor *self);
void stdin_close(struct supervisor *self);

/* ladder.c */
void ladder_begin(struct supervisor *self, enum exit_status why);
void ladder_step(struct supervisor *self);

#endif
