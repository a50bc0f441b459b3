/* Ways into directories that are made where they are missing.
 *
 * The path that the caller names may lead through links, as any path. Below it none is followed: every part is opened
 * as the directory that it is, so that a link which somebody puts there meanwhile leads a root call nowhere. O_PATH,
 * since going through a directory needs no right to list it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"
#include "place.h"

#define WALK (O_PATH | O_DIRECTORY | O_CLOEXEC)

static int make_all(const char *path)
{
    char prefix[PATH_LEN_MAX];
    snprintf(prefix, sizeof prefix, "%s", path);
    for (char *end = prefix; end;) {
        end = strchr(end + 1, '/');
        if (end)
            *end = '\0';
        if (mkdir(prefix, 0755) != 0 && errno != EEXIST) {
            int error = errno;
            if (access(prefix, F_OK) != 0)
                return error;
        }
        if (end)
            *end = '/';
    }
    return 0;
}

/* The caller's own path: links are followed. */
int place_open(const char *path, int *fd)
{
    *fd = open(path, WALK);
    if (*fd >= 0 || errno != ENOENT)
        return *fd >= 0 ? 0 : errno;
    int error = make_all(path);
    if (!error && (*fd = open(path, WALK)) < 0)
        error = errno;
    return error;
}

/* The directory that a path's last part is in, and that part. */
int place_split(const char *path, int *fd, char *name)
{
    char parent[PATH_LEN_MAX] = ".";
    const char *slash = strrchr(path, '/'), *last = slash ? slash + 1 : path;
    if (*last == '\0' || strcmp(last, ".") == 0 || strcmp(last, "..") == 0)
        return EISDIR;
    if (strlen(last) > NAME_MAX)
        return ENAMETOOLONG;
    strcpy(name, last);
    if (slash)
        snprintf(parent, sizeof parent, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    return place_open(parent, fd);
}

/* Puts the descriptor of a member in the place of its directory's, which is closed. */
int place_enter(int *fd, const char *name, mode_t mode, bool *made)
{
    int parent = *fd, error = 0;
    *fd = openat(parent, name, WALK | O_NOFOLLOW);
    if (*fd < 0 && errno == ENOENT) {
        *made = mkdirat(parent, name, mode) == 0;
        if (*made || errno == EEXIST)
            *fd = openat(parent, name, WALK | O_NOFOLLOW);
    }
    if (*fd < 0)
        error = errno;
    close(parent);
    return error;
}

/* Goes down all of a relative path but its last part, which is left in `name`. */
int place_descend(int *fd, const char *path, char *name)
{
    for (;;) {
        bool made;
        size_t length = strcspn(path, "/");
        int error = length > NAME_MAX ? ENAMETOOLONG : 0;
        if (error) {
            close(*fd);
            return error;
        }
        memcpy(name, path, length);
        name[length] = '\0';
        if (path[length] == '\0')
            return 0;
        if ((error = place_enter(fd, name, 0755, &made)))
            return error;
        path += length + 1;
    }
}
