/* READ and GET: a file's bytes, or a tree's entries, to the controller. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

#define DEPTH_MAX 256

/* A device may act on being opened and a FIFO may wait, so the file's kind is known first and checked again after. */
static int open_regular(int dir_fd, const char *path, int flags, struct stat *status)
{
    if (fstatat(dir_fd, path, status, flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0) != 0)
        return -errno;
    if (S_ISDIR(status->st_mode))
        return -EISDIR;
    if (!S_ISREG(status->st_mode))
        return -EINVAL;
    int fd = RETRY(openat(dir_fd, path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | flags));
    if (fd < 0)
        return -errno;
    if (fstat(fd, status) == 0 && S_ISREG(status->st_mode))
        return fd;
    close(fd);
    return -EINVAL;
}

static int count_bytes(struct transfer *transfer, size_t more)
{
    transfer->bytes += more;
    return transfer->bytes > transfer->request->open.max_bytes ? EFBIG : 0;
}

int tree_read(struct transfer *transfer, const char *path)
{
    static uint8_t buffer[FRAME_MAX];
    struct stat status;
    int fd = open_regular(AT_FDCWD, path, 0, &status), error = 0;
    ssize_t got;
    if (fd < 0)
        return -fd;
    transfer->mode = status.st_mode;
    if ((uint64_t)status.st_size > transfer->request->open.max_bytes) {
        transfer->bytes = (uint64_t)status.st_size;
        error = EFBIG;
    }
    while (!error && (got = RETRY(read(fd, buffer, sizeof buffer))) != 0) {
        error = got < 0 ? errno : count_bytes(transfer, (size_t)got);
        if (!error)
            error = transfer_send(transfer, buffer, (size_t)got);
    }
    close(fd);
    return error;
}

/* Small entries share packets. */
struct writer {
    struct transfer *transfer;
    size_t used;
    uint8_t bytes[FRAME_MAX];
};

static int flush(struct writer *writer)
{
    size_t length = writer->used;
    writer->used = 0;
    return transfer_send(writer->transfer, writer->bytes, length);
}

static int put(struct writer *writer, const void *data, size_t length)
{
    if (writer->used + length > sizeof writer->bytes) {
        int error = flush(writer);
        if (error)
            return error;
    }
    if (length > sizeof writer->bytes)
        return transfer_send(writer->transfer, data, length);
    if (length > 0)
        memcpy(writer->bytes + writer->used, data, length);
    writer->used += length;
    return 0;
}

static int put_entry(struct writer *writer, char type, const struct stat *status, const char *path)
{
    struct tree_entry entry = {.type = (uint8_t)type, .path_len = (uint32_t)strlen(path)};
    if (status) {
        entry.mode = status->st_mode & 07777;
        entry.mtime = status->st_mtime > 0 ? (uint64_t)status->st_mtime : 0;
    }
    int error = put(writer, &entry, sizeof entry);
    return error ? error : put(writer, path, entry.path_len);
}

static int put_chunk(struct writer *writer, const void *data, uint32_t length)
{
    int error = put(writer, &length, sizeof length);
    return error ? error : put(writer, data, length);
}

static int put_file(struct writer *writer, int fd, const struct stat *status, const char *path)
{
    static uint8_t buffer[FRAME_MAX];
    ssize_t got;
    int error = put_entry(writer, 'F', status, path);
    while (!error && (got = RETRY(read(fd, buffer, sizeof buffer))) != 0) {
        error = got < 0 ? errno : count_bytes(writer->transfer, (size_t)got);
        if (!error)
            error = put_chunk(writer, buffer, (uint32_t)got);
    }
    close(fd);
    return error ? error : put_chunk(writer, NULL, 0);
}

/* A tree may be at work while it is read: what went away, or became something else between the look and the opening,
 * is left out. */
static int unless_it_changed(int error)
{
    return error == ENOENT || error == ENOTDIR || error == ELOOP || error == EINVAL || error == EISDIR ? 0 : error;
}

static int put_link(struct writer *writer, int dir_fd, const char *name, const struct stat *status, const char *path)
{
    char target[PATH_LEN_MAX];
    ssize_t length = readlinkat(dir_fd, name, target, sizeof target);
    if (length < 0)
        return unless_it_changed(errno);
    int error = put_entry(writer, 'L', status, path);
    error = error ? error : put_chunk(writer, target, (uint32_t)length);
    return error || length == 0 ? error : put_chunk(writer, NULL, 0);
}

static int put_directory(struct writer *writer, int fd, char *path, size_t depth);

static int put_child(struct writer *writer, int dir_fd, const char *name, char *path, size_t depth)
{
    struct stat status;
    if (fstatat(dir_fd, name, &status, AT_SYMLINK_NOFOLLOW) != 0)
        return unless_it_changed(errno);
    if (S_ISLNK(status.st_mode))
        return put_link(writer, dir_fd, name, &status, path);
    if (S_ISREG(status.st_mode)) {
        int fd = open_regular(dir_fd, name, O_NOFOLLOW, &status);
        return fd < 0 ? unless_it_changed(-fd) : put_file(writer, fd, &status, path);
    }
    if (!S_ISDIR(status.st_mode))
        return 0;
    int fd = RETRY(openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (fd < 0)
        return unless_it_changed(errno);
    int error = put_entry(writer, 'D', &status, path);
    return error ? (close(fd), error) : put_directory(writer, fd, path, depth + 1);
}

/* Takes over `fd`. `path` holds PATH_LEN_MAX bytes and is put back as it was. */
static int put_directory(struct writer *writer, int fd, char *path, size_t depth)
{
    size_t length = strlen(path);
    struct dirent *entry;
    int error = 0;
    DIR *directory = depth < DEPTH_MAX ? fdopendir(fd) : NULL;
    if (!directory) {
        error = depth < DEPTH_MAX ? errno : ENAMETOOLONG;
        close(fd);
        return error;
    }
    while (!error && (entry = readdir(directory))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        int size = snprintf(path + length, PATH_LEN_MAX - length, "%s%s", length ? "/" : "", entry->d_name);
        error = (size_t)size >= PATH_LEN_MAX - length ? ENAMETOOLONG
                                                      : put_child(writer, dirfd(directory), entry->d_name, path, depth);
        path[length] = '\0';
    }
    closedir(directory);
    return error;
}

int tree_get(struct transfer *transfer, const char *path)
{
    static struct writer writer;
    static char relative[PATH_LEN_MAX];
    struct stat status;
    writer.transfer = transfer;
    int fd = RETRY(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    int error = fd < 0 ? errno : 0;
    if (error == ENOTDIR) {
        fd = open_regular(AT_FDCWD, path, 0, &status);
        error = fd < 0 ? -fd : put_file(&writer, fd, &status, "");
    } else if (!error && fstat(fd, &status) == 0) {
        error = put_entry(&writer, 'D', &status, "");
        error = error ? error : put_directory(&writer, fd, relative, 0);
    }
    error = error ? error : put_entry(&writer, 'E', NULL, "");
    return error ? error : flush(&writer);
}
