/* The protocol's constants and fixed layouts; docs/protocol.md explains them, sandbox/wire.py is the other home. */
#ifndef FRAMES_H
#define FRAMES_H

#include <stdint.h>

#define FRAME_MAGIC 0x31584253u
#define FRAME_VERSION 1
#define FRAME_HEADER 12
#define FRAME_MAX 65536
#define FRAME_WINDOW 262144
#define BODY_MAX (2 * 1024 * 1024)
#define SCRIPT_MAX (16 * 1024 * 1024)
#define OUTPUT_LIMIT_MAX (64 * 1024 * 1024)
#define PATH_LEN_MAX 4096
#define PING_MAX 64
#define FATAL_MAX 1024

enum frame_type {
    F_OPEN = 1,
    F_INPUT = 2,
    F_CREDIT = 3,
    F_CANCEL = 4,
    F_PING = 5,
    F_RESET = 6,
    F_HELLO = 16,
    F_OUTPUT = 17,
    F_KEPT = 18,
    F_EXIT = 19,
    F_PONG = 20,
    F_RESET_DONE = 21,
    F_FATAL = 22,
};

enum input_flag { INPUT_LAST = 1 };
enum stream { STREAM_OUT = 1, STREAM_ERR = 2, STREAM_TAIL = 4 };
enum feature { FEATURE_SH = 1, FEATURE_OOM = 2 };
enum call_kind { KIND_RUN = 1, KIND_READ = 2, KIND_GET = 3, KIND_PUT = 4, KIND_CHECK = 5 };
enum call_flag { CALL_MERGE = 1, CALL_WATCH = 2, CALL_STDIN = 4, CALL_SCRIPT = 8 };

enum exit_status {
    X_EXITED = 1,
    X_SIGNALED = 2,
    X_TIMED_OUT = 3,
    X_CANCELLED = 4,
    X_REFUSED = 5,
    X_KILLED = 6,
    X_FAILED = 7,
};

enum exit_stage {
    STAGE_USER = 1,
    STAGE_CWD = 2,
    STAGE_PROCESS = 3,
    STAGE_EXEC = 4,
    STAGE_DISK = 5,
    STAGE_FILE = 6,
    STAGE_INPUT = 7,
};

enum exit_flag {
    EXIT_BACKGROUND = 1,
    EXIT_OOM = 2,
    EXIT_OOM_UNKNOWN = 4,
    EXIT_COLLATERAL = 8,
    EXIT_SWEPT = 16,
};

struct frame_header {
    uint32_t length;
    uint8_t type;
    uint8_t flag;
    uint16_t zero;
    uint32_t id;
} __attribute__((packed));

struct hello {
    uint32_t magic;
    uint16_t version;
    uint16_t features;
    uint32_t pid;
    uint32_t window;
    uint32_t max_frame;
} __attribute__((packed));

struct open_request {
    uint8_t kind;
    uint8_t flags;
    uint16_t zero;
    uint32_t argc;
    uint32_t envc;
    uint32_t body_len;
    uint32_t script_len;
    uint32_t timeout_ms;
    uint32_t grace_ms;
    uint32_t output_limit;
    uint64_t max_bytes;
} __attribute__((packed));

struct exit_report {
    uint8_t status;
    uint8_t stage;
    uint8_t flags;
    uint8_t signal;
    int32_t exit_code;
    int32_t error;
    uint32_t survivors;
    uint64_t total_out;
    uint64_t total_err;
    uint64_t wall_us;
    uint64_t user_us;
    uint64_t sys_us;
    uint64_t maxrss_kib;
    uint32_t mode;
    uint32_t zero;
} __attribute__((packed));

struct tree_entry {
    uint8_t type;
    uint8_t zero;
    uint16_t mode;
    uint32_t path_len;
    uint64_t mtime;
} __attribute__((packed));

#define MODE_KEEP 0xFFFF

enum guest_exit {
    GUEST_EOF = 0,
    GUEST_PROTOCOL = 70,
    GUEST_NO_START = 71,
    GUEST_LEASE = 72,
    GUEST_LIFETIME = 73,
};

_Static_assert(sizeof(struct frame_header) == FRAME_HEADER, "frame header layout");
_Static_assert(sizeof(struct open_request) == 40, "open layout");
_Static_assert(sizeof(struct exit_report) == 72, "exit layout");
_Static_assert(sizeof(struct tree_entry) == 16, "tree entry layout");

#endif
