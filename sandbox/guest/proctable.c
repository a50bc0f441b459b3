/* Who descends from whom, read from /proc in one pass. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"

#define TABLE_MAX 8192

struct directory_entry {
    uint64_t inode;
    int64_t offset;
    uint16_t length;
    uint8_t type;
    char name[];
};

static struct process entries[TABLE_MAX];

/* With the mount option hidepid /proc shows only one's own processes: what it shows proves nothing then. */
bool process_scan_is_blind;

void process_look_at_mount(void)
{
    static char text[65536];
    if (read_whole(FD_PROC, "self/mounts", text, sizeof text) <= 0)
        return;
    for (char *line = text; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        const char *option = strstr(line, "hidepid="), *end = strchr(line, '\n'), *place = strchr(line, ' ');
        if (place && strncmp(place, " /proc proc ", 12) == 0)
            process_scan_is_blind = option && end && option < end && option[8] != '0' && strncmp(option + 8, "off", 3);
    }
}

/* "pid (comm) state ppid pgrp ...": comm may hold spaces and parentheses, so the last ')' ends it. */
static bool parse_stat(const char *text, struct process *process)
{
    const char *end = strrchr(text, ')');
    char *next;
    if (!end || end[1] != ' ' || end[2] == '\0' || end[3] != ' ')
        return false;
    process->pid = (pid_t)strtol(text, NULL, 10);
    process->zombie = end[2] == 'Z' || end[2] == 'X';
    process->parent = (pid_t)strtol(end + 4, &next, 10);
    process->group = (pid_t)strtol(next, NULL, 10);
    process->marked = false;
    return process->pid > 0;
}

static void add_process(struct process_table *table, const char *name)
{
    char path[32], text[512];
    if (table->count == TABLE_MAX)
        return;
    snprintf(path, sizeof path, "%.20s/stat", name);
    if (read_whole(FD_PROC, path, text, sizeof text) > 0 && parse_stat(text, &table->entries[table->count]))
        table->count++;
}

/* The table is overwritten by the next scan. getdents64 rather than readdir, which allocates. */
struct process_table process_scan(void)
{
    struct process_table table = {.entries = entries};
    _Alignas(struct directory_entry) char buffer[8192];
    /* A description of its own: the inherited one shares its offset with every other call's process. */
    int fd = RETRY(openat(FD_PROC, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd < 0)
        return table;
    long got;
    while ((got = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0) {
        for (long at = 0; at < got;) {
            const struct directory_entry *entry = (const void *)(buffer + at);
            if (entry->name[0] >= '1' && entry->name[0] <= '9')
                add_process(&table, entry->name);
            at += entry->length;
        }
    }
    close(fd);
    return table;
}

/* The kernel lists /proc in the order of the pids, so a parent can be found by halving. */
static bool parent_is_marked(const struct process_table *table, pid_t root, pid_t parent)
{
    if (parent == root)
        return true;
    size_t low = 0, high = table->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (table->entries[middle].pid == parent)
            return table->entries[middle].marked;
        if (table->entries[middle].pid < parent)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

/* Marks the descendants of `root`, not itself. Children mostly follow their parents, so two rounds are usual. */
void process_mark_tree(struct process_table *table, pid_t root)
{
    bool changed = true;
    while (changed) {
        changed = false;
        for (size_t i = 0; i < table->count; i++) {
            struct process *process = &table->entries[i];
            if (!process->marked && parent_is_marked(table, root, process->parent))
                changed = process->marked = true;
        }
    }
}

/* Signals every living descendant of `root`; returns how many there were. */
size_t process_signal_tree(pid_t root, int first, int second)
{
    struct process_table table = process_scan();
    size_t living = 0;
    process_mark_tree(&table, root);
    for (size_t i = 0; i < table.count; i++) {
        if (!table.entries[i].marked || table.entries[i].zombie)
            continue;
        living++;
        kill(table.entries[i].pid, first);
        if (second)
            kill(table.entries[i].pid, second);
    }
    return living;
}

bool process_tree_has_group(pid_t root, pid_t group)
{
    struct process_table table = process_scan();
    process_mark_tree(&table, root);
    for (size_t i = 0; i < table.count; i++)
        if (table.entries[i].marked && table.entries[i].group == group)
            return true;
    return false;
}

/* Living processes of the whole namespace but PID 1. */
size_t process_count_living(void)
{
    struct process_table table = process_scan();
    size_t living = 0;
    for (size_t i = 0; i < table.count; i++)
        living += table.entries[i].pid != 1 && !table.entries[i].zombie;
    return living;
}
