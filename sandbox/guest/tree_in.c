/* PUT: entries from the controller become files, directories and links. Each appears whole or not at all. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

#define TEMPORARY ".sandbox-put-"

/* A directory's final mode is set last, since a read-only one could not be filled. */
struct pending_mode {
    struct pending_mode *next;
    mode_t mode;
    char path[];
};

struct place {
    char directory[2 * PATH_LEN_MAX];
    const char *name; /* within path */
    char path[2 * PATH_LEN_MAX];
    char temporary[2 * PATH_LEN_MAX + 64];
};

static int make_directories(const char *path, mode_t mode)
{
    char prefix[2 * PATH_LEN_MAX];
    snprintf(prefix, sizeof prefix, "%s", path);
    for (char *slash = prefix + 1; *prefix && (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        if (mkdir(prefix, 0755) != 0 && errno != EEXIST && errno != EISDIR) {
            struct stat status;
            int error = errno;
            if (stat(prefix, &status) != 0 || !S_ISDIR(status.st_mode))
                return error;
        }
        *slash = '/';
    }
    if (mkdir(path, mode) == 0)
        return 0;
    struct stat status;
    int error = errno;
    if (stat(path, &status) == 0)
        return S_ISDIR(status.st_mode) ? -1 : ENOTDIR;
    return error;
}

/* 0, or -1 where it existed: only an errno is a failure. */
static int failure(int result)
{
    return result > 0 ? result : 0;
}

static bool is_safe(const char *path)
{
    if (*path == '\0')
        return true;
    for (const char *part = path;; part++) {
        size_t length = strcspn(part, "/");
        if (length == 0 || (length == 1 && part[0] == '.') || (length == 2 && part[0] == '.' && part[1] == '.'))
            return false;
        part += length;
        if (*part == '\0')
            return true;
    }
}

static int find_place(struct place *place, const char *base, const char *relative)
{
    static unsigned serial;
    int size = snprintf(place->path, sizeof place->path, "%s%s%s", base, *relative ? "/" : "", relative);
    if ((size_t)size >= sizeof place->path)
        return ENAMETOOLONG;
    while (size > 1 && place->path[size - 1] == '/')
        place->path[--size] = '\0';
    char *slash = strrchr(place->path, '/');
    place->name = slash ? slash + 1 : place->path;
    if (!*place->name)
        return EISDIR;
    size_t length = slash ? (size_t)(slash - place->path) : 0;
    if (!slash)
        strcpy(place->directory, ".");
    else if (length == 0)
        strcpy(place->directory, "/");
    else
        memcpy(place->directory, place->path, length), place->directory[length] = '\0';
    snprintf(place->temporary, sizeof place->temporary, "%s/%s%d-%u", place->directory, TEMPORARY, (int)getpid(),
             serial++);
    return failure(make_directories(place->directory, 0755));
}

/* What stands there already must be a file or a link, which the new one takes the place of. */
static int check_existing(const struct place *place, mode_t *mode)
{
    struct stat status;
    if (lstat(place->path, &status) != 0)
        return errno == ENOENT ? 0 : errno;
    if (S_ISDIR(status.st_mode))
        return EISDIR;
    if (S_ISREG(status.st_mode) && mode)
        *mode = status.st_mode & 07777;
    return S_ISREG(status.st_mode) || S_ISLNK(status.st_mode) ? 0 : EINVAL;
}

static int receive_chunk(struct transfer *transfer, uint8_t *buffer, uint32_t *length)
{
    int error = transfer_receive(transfer, length, sizeof *length);
    if (!error && *length > FRAME_MAX)
        error = EPROTO;
    if (!error && *length > 0)
        error = transfer_receive(transfer, buffer, *length);
    transfer->bytes += *length;
    return !error && transfer->bytes > transfer->request->open.max_bytes ? EFBIG : error;
}

static int receive_data(struct transfer *transfer, int fd)
{
    static uint8_t buffer[FRAME_MAX];
    uint32_t length = 1;
    while (length > 0) {
        int error = receive_chunk(transfer, buffer, &length);
        errno = 0;
        if (!error && !write_all(fd, buffer, length))
            error = errno ? errno : ENOSPC;
        if (error)
            return error;
    }
    return 0;
}

static int put_file(struct transfer *transfer, const struct place *place, const struct tree_entry *entry)
{
    mode_t mode = 0644;
    int error = check_existing(place, &mode);
    if (error)
        return error;
    if (entry->mode != MODE_KEEP)
        mode = entry->mode & 07777;
    int fd = RETRY(open(place->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (fd < 0)
        return errno;
    error = receive_data(transfer, fd);
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = (time_t)entry->mtime}};
    if (!error && (fchmod(fd, mode) != 0 || (entry->mtime > 0 && futimens(fd, times) != 0)))
        error = errno;
    if (close(fd) != 0 && !error)
        error = errno;
    if (!error && rename(place->temporary, place->path) != 0)
        error = errno;
    if (error)
        unlink(place->temporary);
    return error;
}

static int put_link(struct transfer *transfer, const struct place *place)
{
    static uint8_t target[FRAME_MAX + 1];
    uint32_t length, end = 0;
    int error = receive_chunk(transfer, target, &length);
    if (!error && length > 0)
        error = receive_chunk(transfer, target + length, &end);
    if (error || length == 0 || length >= PATH_LEN_MAX || end != 0 || memchr(target, '\0', length))
        return error ? error : EPROTO;
    target[length] = '\0';
    error = check_existing(place, NULL);
    if (!error && symlink((const char *)target, place->temporary) != 0)
        error = errno;
    if (!error && rename(place->temporary, place->path) != 0) {
        error = errno;
        unlink(place->temporary);
    }
    return error;
}

/* A directory that was there keeps its mode: the tree is put into it, it isn't replaced. */
static int put_directory(const char *base, const char *relative, mode_t mode, struct pending_mode **pending)
{
    static char path[2 * PATH_LEN_MAX];
    snprintf(path, sizeof path, "%s%s%s", base, *relative ? "/" : "", relative);
    int result = make_directories(path, 0700);
    if (result != 0)
        return failure(result);
    struct pending_mode *later = malloc(sizeof *later + strlen(path) + 1);
    if (!later)
        return ENOMEM;
    later->next = *pending;
    later->mode = mode & 07777;
    strcpy(later->path, path);
    *pending = later;
    return 0;
}

static int receive_entry(struct transfer *transfer, struct tree_entry *entry, char *path)
{
    int error = transfer_receive(transfer, entry, sizeof *entry);
    if (!error && entry->path_len >= PATH_LEN_MAX)
        error = EPROTO;
    if (!error && entry->path_len > 0)
        error = transfer_receive(transfer, path, entry->path_len);
    if (error)
        return error;
    path[entry->path_len] = '\0';
    return strlen(path) == entry->path_len && is_safe(path) ? 0 : EPROTO;
}

static int put_entry(struct transfer *transfer, const char *base, const struct tree_entry *entry, const char *path,
                     struct pending_mode **pending)
{
    static struct place place;
    if (entry->type == 'D')
        return put_directory(base, path, entry->mode, pending);
    if (entry->type != 'F' && entry->type != 'L')
        return EPROTO;
    int error = find_place(&place, base, path);
    if (error)
        return error;
    return entry->type == 'F' ? put_file(transfer, &place, entry) : put_link(transfer, &place);
}

int tree_put(struct transfer *transfer, const char *base)
{
    static char path[PATH_LEN_MAX];
    struct pending_mode *pending = NULL;
    struct tree_entry entry;
    int error;
    if (*base == '\0' || strlen(base) >= PATH_LEN_MAX)
        return *base ? ENAMETOOLONG : ENOENT;
    while (!(error = receive_entry(transfer, &entry, path)) && entry.type != 'E')
        if ((error = put_entry(transfer, base, &entry, path, &pending)))
            break;
    for (; !error && pending; pending = pending->next)
        if (chmod(pending->path, pending->mode) != 0)
            error = errno;
    return error;
}
