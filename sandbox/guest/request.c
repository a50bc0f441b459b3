/* The beginning and the end of every call, as its own process sees them. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guest.h"

/* Above the digits that a script may use in its redirections. */
#define SCRIPT_FD_MIN 10

void request_exit(const struct request *request, const struct exit_report *report)
{
    struct exit_report sent = *report;
    if (sent.wall_us == 0)
        sent.wall_us = now_us() - request->began_us;
    message_send(request->fd, F_EXIT, 0, request->id, &sent, sizeof sent, true);
}

void request_fail(const struct request *request, enum exit_status status, enum exit_stage stage, int error)
{
    struct exit_report report = {.status = (uint8_t)status, .stage = (uint8_t)stage, .error = error};
    request_exit(request, &report);
}

/* Linux 6.3; an administrator may refuse memfds without it (vm.memfd_noexec=2). A script is read, not executed. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

/* A memfd, so that a script of any length runs although the kernel takes no argument over 128 KiB. Sealed before it is
 * run: the command can't change what it is. */
static bool make_script(struct request *request)
{
    int fd = memfd_create("script", MFD_ALLOW_SEALING | MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("script", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    if (fd < 0)
        return false;
    request->script_fd = fcntl(fd, F_DUPFD_CLOEXEC, SCRIPT_FD_MIN);
    close(fd);
    return request->script_fd >= 0;
}

/* Sets `at` to the string that begins there and moves past it; false where the body has no more. */
static bool take_string(char **next, const char *end, char **string)
{
    char *zero = *next < end ? memchr(*next, '\0', (size_t)(end - *next)) : NULL;
    if (!zero)
        return false;
    *string = *next;
    *next = zero + 1;
    return true;
}

static bool parse_body(struct request *request)
{
    uint32_t argc = request->open.argc, envc = request->open.envc;
    char *next = request->body, *end = request->body + request->open.body_len, *user, *cwd;
    request->argv = calloc((size_t)argc + 2, sizeof *request->argv);
    request->envp = calloc((size_t)envc + 4, sizeof *request->envp);
    if (!request->argv || !request->envp || !take_string(&next, end, &user) || !take_string(&next, end, &cwd))
        return false;
    for (uint32_t i = 0; i < argc; i++)
        if (!take_string(&next, end, &request->argv[i]))
            return false;
    for (uint32_t i = 0; i < envc; i++)
        if (!take_string(&next, end, &request->envp[i]))
            return false;
    request->user = user;
    request->cwd = cwd;
    return next == end;
}

static void add_script_argument(struct request *request)
{
    static char path[32] = "/proc/self/fd/";
    char digits[12], *digit = digits + sizeof digits - 1;
    *digit = '\0';
    for (int number = request->script_fd; number > 0; number /= 10)
        *--digit = (char)('0' + number % 10);
    strcpy(path + strlen("/proc/self/fd/"), digit);
    request->argv[request->open.argc] = path;
}

/* Takes what belongs to body and script out of one packet; what remains is the command's stdin. */
static bool consume(struct request *request, size_t *body_got, size_t *script_got, const uint8_t *data, size_t length)
{
    size_t part = request->open.body_len - *body_got;
    part = part < length ? part : length;
    if (part > 0)
        memcpy(request->body + *body_got, data, part);
    *body_got += part;
    data += part;
    length -= part;
    part = request->open.script_len - *script_got;
    part = part < length ? part : length;
    if (part > 0 && !write_all(request->script_fd, data, part))
        return false;
    *script_got += part;
    request->rest = data + part;
    request->rest_length = length - part;
    return true;
}

/* Reads body and script. False: the call is over, and was answered where it must be. */
bool request_read(struct request *request)
{
    static struct message message;
    const struct open_request *open = &request->open;
    size_t body_got = 0, script_got = 0;
    request->more_input = open->kind == KIND_PUT || (open->flags & CALL_STDIN);
    request->body = malloc((size_t)open->body_len + 1);
    if (!request->body || ((open->flags & CALL_SCRIPT) && !make_script(request))) {
        request_fail(request, X_REFUSED, STAGE_INPUT, ENOMEM);
        return false;
    }
    while (body_got < open->body_len || script_got < open->script_len) {
        if (message_receive(request->fd, &message, true) <= 0)
            return false;
        if (message.head.type == M_CANCEL) {
            request_fail(request, X_CANCELLED, 0, 0);
            return false;
        }
        if (message.head.type != F_INPUT)
            continue;
        uint32_t grant = message.head.length;
        request->input_ended = message.head.flag & INPUT_LAST;
        if (!consume(request, &body_got, &script_got, message.payload, message.head.length)) {
            request_fail(request, X_REFUSED, STAGE_INPUT, errno ? errno : ENOSPC);
            return false;
        }
        bool complete = body_got == open->body_len && script_got == open->script_len;
        grant -= (uint32_t)request->rest_length;
        if (!request->input_ended && (!complete || request->more_input))
            message_send(request->fd, F_CREDIT, 0, request->id, &grant, sizeof grant, true);
        if (request->input_ended && !complete)
            break;
    }
    if (script_got < open->script_len || !parse_body(request)) {
        request_fail(request, X_REFUSED, STAGE_INPUT, EINVAL);
        return false;
    }
    if (request->script_fd >= 0) {
        fcntl(request->script_fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
        add_script_argument(request);
    }
    return true;
}
