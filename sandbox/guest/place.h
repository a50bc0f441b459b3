/* Ways into directories, for tree_in.c: place.c. What returns an int returns 0 or an errno. */
#ifndef PLACE_H
#define PLACE_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

int place_open(const char *path, int *fd);
int place_split(const char *path, int *fd, char *name);
int place_enter(int *fd, const char *name, mode_t mode, bool *made);
int place_descend(int *fd, const char *path, char *name);

#endif
