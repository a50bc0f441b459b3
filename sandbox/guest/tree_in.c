/* PUT: entries from the controller become files, directories and links. Each appears whole or not at all. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"
#include "place.h"

/* A directory's final mode is set last, since a read-only one could not be filled. */
struct pending_mode {
    struct pending_mode *next;
    mode_t mode;
    char path[];
};

struct put {
    struct transfer *transfer;
    const char *base;
    int base_fd; /* -1: not opened yet */
    struct pending_mode *pending;
};

/* Where an entry goes, and under what name until it is complete. */
struct place {
    int dir_fd;
    char name[NAME_MAX + 1];
    char temporary[48];
};

static int open_base(struct put *put)
{
    return put->base_fd >= 0 ? 0 : place_open(put->base, &put->base_fd);
}

static int descend(struct put *put, const char *path, int *fd, char *name)
{
    int error = open_base(put);
    if (error)
        return error;
    *fd = fcntl(put->base_fd, F_DUPFD_CLOEXEC, 0);
    return *fd < 0 ? errno : place_descend(fd, path, name);
}

static int find_place(struct put *put, const char *path, struct place *place)
{
    uint64_t random = 0;
    int error = *path == '\0' ? place_split(put->base, &place->dir_fd, place->name)
                              : descend(put, path, &place->dir_fd, place->name);
    /* A name that could be foreseen could be taken, and the file never be written. */
    if (!error && getrandom(&random, sizeof random, 0) < 0)
        random = now_us();
    snprintf(place->temporary, sizeof place->temporary, ".sandbox-put-%016llx", (unsigned long long)random);
    return error;
}

/* What stands there already must be a file or a link, which the new one takes the place of. */
static int check_existing(const struct place *place, mode_t *mode)
{
    struct stat status;
    if (fstatat(place->dir_fd, place->name, &status, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? 0 : errno;
    if (S_ISDIR(status.st_mode))
        return EISDIR;
    if (S_ISREG(status.st_mode))
        *mode = status.st_mode & 07777;
    return S_ISREG(status.st_mode) || S_ISLNK(status.st_mode) ? 0 : EINVAL;
}

static int move_into_place(const struct place *place, int error)
{
    if (!error && renameat(place->dir_fd, place->temporary, place->dir_fd, place->name) != 0)
        error = errno;
    if (error)
        unlinkat(place->dir_fd, place->temporary, 0);
    return error;
}

static int receive_chunk(struct transfer *transfer, uint8_t *buffer, size_t room, uint32_t *length)
{
    int error = transfer_receive(transfer, length, sizeof *length);
    if (!error && *length > room)
        error = EPROTO;
    if (!error && *length > 0)
        error = transfer_receive(transfer, buffer, *length);
    if (error)
        return error;
    transfer->bytes += *length;
    return transfer->bytes > transfer->request->open.max_bytes ? EFBIG : 0;
}

static int receive_data(struct transfer *transfer, int fd)
{
    static uint8_t buffer[FRAME_MAX];
    uint32_t length = 1;
    while (length > 0) {
        int error = receive_chunk(transfer, buffer, sizeof buffer, &length);
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
    int fd = RETRY(openat(place->dir_fd, place->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (fd < 0)
        return errno;
    error = receive_data(transfer, fd);
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = (time_t)entry->mtime}};
    if (!error && (fchmod(fd, mode) != 0 || (entry->mtime > 0 && futimens(fd, times) != 0)))
        error = errno;
    if (close(fd) != 0 && !error)
        error = errno;
    return move_into_place(place, error);
}

static int put_link(struct transfer *transfer, const struct place *place)
{
    static uint8_t target[PATH_LEN_MAX + 1];
    size_t size = 0;
    uint32_t length = 1;
    mode_t ignored;
    while (length > 0) {
        int error = receive_chunk(transfer, target + size, PATH_LEN_MAX - size, &length);
        if (error)
            return error;
        size += length;
    }
    target[size] = '\0';
    if (size == 0 || strlen((const char *)target) != size)
        return EPROTO;
    int error = check_existing(place, &ignored);
    if (!error && symlinkat((const char *)target, place->dir_fd, place->temporary) != 0)
        return errno;
    return error ? error : move_into_place(place, 0);
}

static int remember_mode(struct put *put, const char *path, mode_t mode)
{
    struct pending_mode *later = malloc(sizeof *later + strlen(path) + 1);
    if (!later)
        return ENOMEM;
    later->next = put->pending;
    later->mode = mode & 07777;
    strcpy(later->path, path);
    put->pending = later;
    return 0;
}

/* A directory that was there keeps its mode: the tree is put into it, it isn't replaced. */
static int put_directory(struct put *put, const char *path, mode_t mode)
{
    char name[NAME_MAX + 1];
    bool made = false;
    int fd, error;
    if (*path == '\0') {
        made = put->base_fd < 0 && access(put->base, F_OK) != 0;
        error = open_base(put);
    } else {
        error = descend(put, path, &fd, name);
        error = error ? error : place_enter(&fd, name, 0700, &made);
        if (!error)
            close(fd);
    }
    return error || !made ? error : remember_mode(put, path, mode);
}

/* To the directory that was made, and not to what may stand in its place by now. */
static int set_mode(struct put *put, const struct pending_mode *pending)
{
    char name[NAME_MAX + 1] = ".";
    int parent = put->base_fd, error = 0;
    if (*pending->path != '\0')
        error = descend(put, pending->path, &parent, name);
    if (error)
        return error;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fchmod(fd, pending->mode) != 0)
        error = errno;
    close(fd);
    if (parent != put->base_fd)
        close(parent);
    return error;
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

static int receive_entry(struct transfer *transfer, struct tree_entry *entry, char *path)
{
    int error = transfer_receive(transfer, entry, sizeof *entry);
    if (!error && (entry->path_len > PATH_LEN_MAX || entry->zero != 0))
        error = EPROTO;
    if (!error && entry->path_len > 0)
        error = transfer_receive(transfer, path, entry->path_len);
    if (error)
        return error;
    path[entry->path_len] = '\0';
    return strlen(path) == entry->path_len && is_safe(path) ? 0 : EPROTO;
}

static int put_entry(struct put *put, const struct tree_entry *entry, const char *path)
{
    struct place place;
    if (entry->type == 'D')
        return put_directory(put, path, entry->mode);
    if (entry->type != 'F' && entry->type != 'L')
        return EPROTO;
    int error = find_place(put, path, &place);
    if (error)
        return error;
    error = entry->type == 'F' ? put_file(put->transfer, &place, entry) : put_link(put->transfer, &place);
    close(place.dir_fd);
    return error;
}

int tree_put(struct transfer *transfer, const char *base)
{
    static char path[PATH_LEN_MAX + 1];
    struct put put = {.transfer = transfer, .base = base, .base_fd = -1};
    struct tree_entry entry;
    int error;
    if (*base == '\0' || strlen(base) >= PATH_LEN_MAX)
        return *base ? ENAMETOOLONG : ENOENT;
    while (!(error = receive_entry(transfer, &entry, path)) && entry.type != 'E')
        if ((error = put_entry(&put, &entry, path)))
            break;
    for (; put.pending; put.pending = put.pending->next) {
        int failure = set_mode(&put, put.pending);
        error = error ? error : failure;
    }
    return error;
}
