/* Who a call runs as, by the image's passwd and group files; and becoming him. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"

#define FILE_MAX (1024 * 1024)

/* NULL where there is no such regular file: a root command may have made it anything, and only the opened file tells
 * what it is. The text stays until the next one is read. */
static char *read_database(const char *path)
{
    static char text[FILE_MAX + 1];
    struct stat status;
    int fd = RETRY(open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (fd < 0)
        return NULL;
    ssize_t got = -1;
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size <= FILE_MAX)
        got = RETRY(read(fd, text, FILE_MAX));
    close(fd);
    if (got < 0)
        return NULL;
    text[got] = '\0';
    return text;
}

static bool parse_number(const char *text, uint32_t *number)
{
    char *end;
    if (!isdigit((unsigned char)*text))
        return false;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (*end != '\0' || errno != 0 || value >= UINT32_MAX)
        return false;
    *number = (uint32_t)value;
    return true;
}

/* Splits a line at its colons into exactly `count` fields; the last keeps the rest. */
static bool split(char *line, char **fields, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        fields[i] = i + 1 < count ? strsep(&line, ":") : line;
        if (!fields[i])
            return false;
    }
    return true;
}

/* passwd(5): name:password:uid:gid:comment:home:shell. By name, or by uid where there is no name. */
static bool find_passwd(const char *name, uint32_t uid, struct user *user)
{
    char *rest = read_database("/etc/passwd"), *line, *field[7];
    while (rest && (line = strsep(&rest, "\n"))) {
        uint32_t line_uid, line_gid;
        if (!split(line, field, 7) || !parse_number(field[2], &line_uid) || !parse_number(field[3], &line_gid))
            continue;
        if (name ? strcmp(field[0], name) != 0 : line_uid != uid)
            continue;
        user->uid = line_uid;
        user->gid = line_gid;
        snprintf(user->name, sizeof user->name, "%s", field[0]);
        snprintf(user->home, sizeof user->home, "%s", field[5]);
        return true;
    }
    return false;
}

static bool lists_member(char *members, const char *name)
{
    char *member;
    while ((member = strsep(&members, ",")))
        if (strcmp(member, name) == 0)
            return true;
    return false;
}

/* group(5): name:password:gid:members */
static bool find_group(const char *name, gid_t *gid)
{
    char *rest = read_database("/etc/group"), *line, *field[4];
    while (rest && (line = strsep(&rest, "\n")))
        if (split(line, field, 4) && strcmp(field[0], name) == 0 && parse_number(field[2], gid))
            return true;
    return false;
}

static void find_memberships(struct user *user)
{
    char *rest = read_database("/etc/group"), *line, *field[4];
    while (rest && (line = strsep(&rest, "\n")) && user->group_count < GROUPS_MAX) {
        gid_t gid;
        if (split(line, field, 4) && parse_number(field[2], &gid) && gid != user->gid &&
            lists_member(field[3], user->name))
            user->groups[user->group_count++] = gid;
    }
}

/* As runc looks users up: a number needs no entry, a name does; a group that is named explicitly takes the place of the
 * memberships. Digits are always a number: no useradd makes such a name, and a line that has one is a trap. Nobody is
 * given the guest's own uid. */
bool user_find(const char *text, struct user *user)
{
    char name[512];
    uint32_t uid;
    *user = (struct user){.home = "/"};
    if (snprintf(name, sizeof name, "%s", *text ? text : "0:0") >= (int)sizeof name)
        return false;
    char *group = strchr(name, ':');
    if (group)
        *group++ = '\0';
    if (!parse_number(name, &uid)) {
        if (!*name || !find_passwd(name, 0, user))
            return false;
    } else if (!find_passwd(NULL, uid, user)) {
        user->uid = uid;
    }
    if (user->uid == guest_uid && guest_uid != 0)
        return false;
    if (group && *group)
        return parse_number(group, &user->gid) || find_group(group, &user->gid);
    if (user->name[0])
        find_memberships(user);
    return true;
}

/* With no_new_privs an exec can't gain what isn't permitted here, root's included, so no bounding set must be cut
 * (for which the guest would need CAP_SETPCAP). */
static bool keep_capabilities(uint64_t mask)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {
        {.effective = (uint32_t)mask, .permitted = (uint32_t)mask},
        {.effective = (uint32_t)(mask >> 32), .permitted = (uint32_t)(mask >> 32)},
    };
    return syscall(SYS_capset, &header, data) == 0;
}

bool user_become(const struct user *user)
{
    if (setgroups(user->group_count, user->groups) != 0 || setresgid(user->gid, user->gid, user->gid) != 0 ||
        setresuid(user->uid, user->uid, user->uid) != 0)
        return false;
    /* Changing uids may have made this process dumpable (fs.suid_dumpable), and it still is the guest's memory. */
    prctl(PR_SET_DUMPABLE, 0);
    return keep_capabilities(user->uid == 0 ? config.caps : 0);
}
