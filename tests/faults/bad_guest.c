/* A guest that misbehaves in the way that the test wrote into its binary. It knows just enough of the protocol to get
 * as far as it must. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../sandbox/guest/frames.h"

static volatile char mode[] = "mode=garbage................";

static int is(const char *name)
{
    char text[sizeof mode];
    for (size_t i = 0; i < sizeof mode; i++)
        text[i] = mode[i];
    char *end = strchr(text, '.');
    if (end)
        *end = '\0';
    return strcmp(text + 5, name) == 0;
}

static void put(const void *data, size_t length)
{
    const char *next = data;
    while (length > 0) {
        ssize_t written = write(1, next, length);
        if (written <= 0)
            _exit(0);
        next += written;
        length -= (size_t)written;
    }
}

static void frame(uint32_t length, uint8_t type, uint8_t flag, uint32_t id, const void *payload)
{
    struct frame_header head = {.length = length, .type = type, .flag = flag, .id = id};
    put(&head, sizeof head);
    if (payload)
        put(payload, length);
}

static void garbage(size_t length)
{
    uint32_t state = 12345;
    while (length-- > 0) {
        state = state * 1664525u + 1013904223u;
        uint8_t byte = (uint8_t)(state >> 24);
        put(&byte, 1);
    }
}

static void hello(uint16_t version, uint32_t pid, uint16_t features, const char *interfaces)
{
    struct {
        struct hello fixed;
        char names[64];
    } all = {.fixed = {.magic = FRAME_MAGIC, .version = version, .features = features, .pid = pid,
                       .window = FRAME_WINDOW, .max_frame = FRAME_MAX}};
    size_t length = 0;
    for (; interfaces[length]; length++)
        all.names[length] = interfaces[length] == ' ' ? '\0' : interfaces[length];
    frame((uint32_t)(sizeof all.fixed + length), F_HELLO, 0, 0, &all);
}

static void take(void *data, size_t length)
{
    char *next = data;
    while (length > 0) {
        ssize_t got = read(0, next, length);
        if (got <= 0)
            _exit(0);
        next += got;
        length -= (size_t)got;
    }
}

static void answer(uint32_t id, const struct open_request *request)
{
    static uint8_t block[FRAME_MAX];
    struct exit_report report = {.status = X_EXITED};
    if (request->kind != KIND_RUN) {
        frame(sizeof report, F_EXIT, 0, id, &report);
        return;
    }
    if (is("late-garbage"))
        garbage(100000);
    else if (is("late-exit"))
        _exit(3);
    else if (is("late-huge"))
        frame(0xFFFFFFFFu, F_KEPT, 1, id, NULL);
    else if (is("late-flood"))
        for (;;)
            frame(sizeof block, F_KEPT, 1, id, block);
    else if (is("late-output"))
        frame(sizeof block, F_OUTPUT, 1, id, block);
    else if (is("late-stranger"))
        frame(sizeof report, F_EXIT, 0, id + 1, &report);
    else if (is("late-status")) {
        report.status = 99;
        frame(sizeof report, F_EXIT, 0, id, &report);
    } else if (is("late-hello"))
        hello(FRAME_VERSION, 1, 1, "lo ");
    else if (is("late-lie")) {
        frame(1000, F_KEPT, 1, id, block);
        frame(sizeof report, F_EXIT, 0, id, &report);
    } else if (is("late-half")) {
        put("\x1c\0\0\0\x13", 5);
    } else if (is("late-fatal")) {
        frame(12, F_FATAL, 0, 0, "\x1b[31mI quit.");
        _exit(70);
    } else
        frame(sizeof report, F_EXIT, 0, id, &report);
}

static void serve(void)
{
    static uint8_t payload[FRAME_MAX];
    for (;;) {
        struct frame_header head;
        take(&head, sizeof head);
        take(payload, head.length);
        struct open_request request;
        memcpy(&request, payload, sizeof request);
        if (head.type == F_OPEN)
            answer(head.id, &request);
    }
}

int main(void)
{
    if (is("garbage"))
        garbage(1000000);
    else if (is("silence"))
        ;
    else if (is("exit"))
        return 3;
    else if (is("crash"))
        abort();
    else if (is("chatter"))
        while (write(2, "why not\n", 8) == 8)
            ;
    else if (is("huge"))
        frame(0xFFFFFFFFu, F_HELLO, 0, 0, NULL);
    else if (is("version"))
        hello(FRAME_VERSION + 1, 1, 1, "lo ");
    else if (is("magic"))
        frame(20, F_HELLO, 0, 0, "no magic here at all");
    else if (is("pid"))
        hello(FRAME_VERSION, 7, 1, "lo ");
    else if (is("network"))
        hello(FRAME_VERSION, 1, 1, "lo eth0 ");
    else if (is("shell"))
        hello(FRAME_VERSION, 1, 0, "lo ");
    else if (is("fatal")) {
        frame(9, F_FATAL, 0, 0, "I refuse.");
        return 71;
    } else {
        hello(FRAME_VERSION, 1, 1, "lo ");
        serve();
    }
    for (;;)
        pause();
}
