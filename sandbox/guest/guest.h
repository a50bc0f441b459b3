/* What the guest's parts know of each other. main.c tells the story; each other file holds one idea. */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "frames.h"

#define RETRY(call)                                                                                                    \
    __extension__({                                                                                                    \
        __typeof__(call) result_;                                                                                      \
        do                                                                                                             \
            result_ = (call);                                                                                          \
        while (result_ == -1 && errno == EINTR);                                                                       \
        result_;                                                                                                       \
    })

#define PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define NORETURN __attribute__((noreturn))

/* What the command line asked for; fixed for the life of the sandbox. */
struct config {
    uint64_t lease_ms;
    uint64_t lifetime_ms;
    uint64_t caps;
    uint64_t nofile;
    uint64_t fsize;
    uint64_t cpu;
    uint64_t disk_reserve;
};

extern struct config config;

/* Descriptors with fixed numbers, all opened before any command ran, so that none can have replaced what they name.
 * 0 and 1 are /dev/null in PID 1 and in each call's process, which keeps those before FD_LINK_IN. */
enum descriptor { FD_CALL = 3, FD_PROC, FD_LINK_IN, FD_LINK_OUT, FD_SIGNALS, FD_OOM, FD_FIRST_FREE };

/* begin.c */
void begin(int argc, char **argv);

/* identity.c: whom the guest itself runs as */
#define UID_UNKNOWN UINT32_MAX
extern uid_t guest_uid;
bool identity_take(void);
void identity_protect(void);
void identity_kill(uint32_t uid);

/* util.c */
uint64_t now_us(void);
uint64_t now_ms(void);
uint64_t deadline_after(uint64_t start_ms, uint64_t length_ms);
int milliseconds_until(uint64_t deadline_ms);
ssize_t read_whole(int dir_fd, const char *path, char *buffer, size_t size);
bool write_all(int fd, const void *data, size_t length);
bool disk_below_reserve(void);
void close_from(int first);

/* rules.c: what the controller may send */
void judge_header(const struct frame_header *head);
void judge_open(const struct open_request *request);

/* link.c: the stream to the controller, PID 1's side of it */
struct frame {
    struct frame_header head;
    const uint8_t *payload;
};
bool link_fill(void);
bool link_next(struct frame *frame);
void link_send(uint8_t type, uint8_t flag, uint32_t id, const void *payload, uint32_t length);
uint8_t *link_reserve(void);
void link_commit(size_t length);
bool link_has_room(void);
bool link_pending(void);
void link_flush(void);
void link_die(enum guest_exit status, const char *format, ...) PRINTF(2, 3) NORETURN;

/* message.c: the packets between PID 1 and a call's process; each is a frame, or one of these */
enum message_type {
    M_CANCEL = F_CANCEL,
    M_ESCALATE = 64,  /* to PID 1: a struct escalation; the uid must be killed as a whole */
    M_ESCALATED = 65, /* to the supervisor: done */
    M_CLAIM = 66,     /* to PID 1: background children of an ended call died by SIGKILL */
};
struct escalation {
    uint32_t uid;
    uint32_t everything;
    struct exit_report report;
} __attribute__((packed));
struct message {
    struct frame_header head;
    uint8_t payload[FRAME_MAX];
};
enum send_result { SENT, SEND_FULL, SEND_GONE };
enum send_result message_send(int fd, uint8_t type, uint8_t flag, uint32_t id, const void *payload, uint32_t length,
                              bool wait);
ssize_t message_receive(int fd, struct message *message, bool wait);

/* crush.c */
void reap_orphans(void);

/* proctable.c */
struct process {
    pid_t pid;
    pid_t parent;
    pid_t group;
    bool zombie;
    bool marked;
};
struct process_table {
    struct process *entries;
    size_t count;
};
extern bool process_scan_is_blind;
void process_look_at_mount(void);
struct process_table process_scan(void);
void process_mark_tree(struct process_table *table, pid_t root);
size_t process_signal_tree(pid_t root, int first, int second);
bool process_tree_has_group(pid_t root, pid_t group);
size_t process_count_living(void);

/* oom.c */
bool oom_open(void);
bool oom_count(uint64_t *count);

/* calls.c: PID 1's table of calls */
#define CALLS_MAX 512
struct pollfd;
bool calls_init(void);
void calls_open(uint32_t id, const struct open_request *request);
void calls_input(uint32_t id, uint8_t flag, const uint8_t *data, uint32_t length);
void calls_credit(uint32_t id, const uint8_t *data);
void calls_cancel(uint32_t id);
void calls_reset(void);
size_t calls_poll_set(struct pollfd *set);
void calls_serve(const struct pollfd *set, size_t count);
uint64_t calls_next_deadline(void);
void calls_expire(void);

/* What a call's processes tell PID 1, and the shell before its exec tells its supervisor, at the cost of no packet: a
 * slot of memory that the forks share. No command ever has it mapped. */
struct slot {
    uint32_t uid;      /* UID_UNKNOWN until the user is found */
    uint32_t sigkills; /* deaths by SIGKILL that nobody of ours caused */
    int32_t trouble;   /* errno of what kept the command from beginning */
    uint8_t trouble_stage;
    bool ended; /* by itself, in time: what is left is to hand its output over */
};

/* user.c */
#define GROUPS_MAX 64
struct user {
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS_MAX];
    size_t group_count;
    char name[256];
    char home[1024];
};
bool user_find(const char *text, struct user *user);
bool user_become(const struct user *user);

/* request.c: what a call's process learns from OPEN and the body */
struct request {
    uint32_t id;
    int fd;
    struct open_request open;
    char *body;
    const char *user;
    const char *cwd;
    char **argv;
    char **envp;
    int script_fd;
    bool more_input; /* than body and script */
    bool input_ended;
    uint64_t began_us;
    volatile struct slot *slot;
    const uint8_t *rest; /* input that came in the body's last packet */
    size_t rest_length;
};
bool request_read(struct request *request);
void request_exit(const struct request *request, const struct exit_report *report);
void request_fail(const struct request *request, enum exit_status status, enum exit_stage stage, int error);

/* keep.c */
struct keep {
    size_t limit;
    size_t head;
    uint64_t total;
    uint8_t *bytes;
};
void keep_init(struct keep *keep, size_t limit);
void keep_add(struct keep *keep, const uint8_t *data, size_t length);
bool keep_send(const struct keep *keep, const struct request *request, uint8_t stream, int patience_ms);
void keep_free(struct keep *keep);

/* supervisor.c, files.c: the body of a call's process; they don't return */
void supervisor_main(struct request *request) NORETURN;
void files_main(struct request *request) NORETURN;

/* shell.c: between fork and exec */
struct shell_pipes {
    int in; /* -1: /dev/null */
    int out;
    int err;
};
void shell_main(const struct request *request, const struct user *user, const struct shell_pipes *pipes) NORETURN;

/* files.c, tree_out.c, tree_in.c: file data over the call's streams; what returns an int returns 0 or an errno */
struct transfer {
    struct request *request;
    uint64_t bytes;
    uint32_t mode;
    uint64_t credit;
    struct message *packet; /* INPUT being taken apart */
    size_t packet_at;
    uint32_t ungranted;
};
int transfer_send(struct transfer *transfer, const void *data, size_t length);
int transfer_receive(struct transfer *transfer, void *data, size_t length);
int tree_read(struct transfer *transfer, const char *path);
int tree_get(struct transfer *transfer, const char *path);
int tree_put(struct transfer *transfer, const char *path);

#endif
