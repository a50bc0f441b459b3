/* Whom the guest itself runs as: nobody that a command can be.
 *
 * To a root command without any capability everything else of root's lies open: it may signal it, renice it, cut its
 * rlimits (RLIMIT_CPU kills even PID 1) and make it the OOM killer's first choice. So PID 1 and the supervisors take a
 * uid that no call is given, and keep the capabilities that they need. It also lets all of root's commands be killed at
 * once, as any other user's. */
#include <errno.h>
#include <linux/capability.h>
#include <signal.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"

/* In the range that Debian reserves, and within the 65536 ids that a user namespace usually maps. */
#define GUEST_ID 65410

uid_t guest_uid;

static struct __user_cap_data_struct owned[2];

static bool set_effective(bool all)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    memcpy(data, owned, sizeof data);
    for (int i = 0; i < 2; i++)
        data[i].effective = all ? data[i].permitted : 0;
    return syscall(SYS_capset, &header, data) == 0;
}

static bool find_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    const uint32_t needed = 1u << CAP_SETUID | 1u << CAP_SETGID | 1u << CAP_KILL;
    if (syscall(SYS_capget, &header, owned) != 0)
        return false;
    owned[0].permitted &= needed | (uint32_t)config.caps;
    owned[1].permitted &= (uint32_t)(config.caps >> 32);
    owned[0].inheritable = owned[1].inheritable = 0;
    errno = EPERM;
    return (owned[0].permitted & needed) == needed;
}

/* Whose files a process has in /proc, oom_score_adj among them: the guest's own, or where it is root nobody's that can
 * be had (a memory that isn't dumpable). Any change of uids sets this anew. */
void identity_protect(void)
{
    setfsuid(guest_uid);
    prctl(PR_SET_DUMPABLE, guest_uid != 0);
}

/* The saved gid differs, and so ptrace(2) and prlimit(2), which ask for one that equals all three, are refused even to
 * a command that could take this uid (CAP_SETUID). In a user namespace that doesn't map the ids the guest stays root. */
bool identity_take(void)
{
    if (!find_capabilities() || prctl(PR_SET_KEEPCAPS, 1) != 0)
        return false;
    if (setresgid(GUEST_ID, GUEST_ID, GUEST_ID + 1) == 0 && setresuid(GUEST_ID, GUEST_ID, GUEST_ID) == 0)
        guest_uid = GUEST_ID;
    else if (setresgid(0, 0, 1) != 0)
        return false;
    identity_protect();
    return set_effective(true);
}

/* With that uid as real and effective one, and no capability in effect, kill(-1) reaches just that uid's processes.
 * The saved uid is the way back, and keeps even that uid from cutting PID 1's rlimits meanwhile. */
void identity_kill(uint32_t uid)
{
    if (setresuid(uid, uid, guest_uid) != 0)
        return;
    if (set_effective(false))
        kill(-1, SIGKILL);
    if (!set_effective(true) || setresuid(guest_uid, guest_uid, guest_uid) != 0 || !set_effective(true))
        link_die(GUEST_NO_START, "the guest could not take its own uid back: %s", strerror(errno));
    identity_protect();
}
