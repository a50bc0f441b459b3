"""What a command can't reach: the network, the guest, the kernel's doors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sandbox.sandbox import Sandbox
from sandbox.selftest.check import REPORT, Context, Failed, expect

ROOT = "0:0"
NOBODY = "65534:65534"

_INTERFACES = "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"
_ROUTES = "tail -n +2 /proc/net/route"
_ADDRESSES = "grep -v ' lo$' /proc/net/if_inet6"


async def network(context: Context) -> str:
    """Without a network there is no way out: no interface, no route, no address. Nobody else's is tried."""
    remedy = "Use network='none' (the default); if it was, report this with `python -m sandbox doctor --json`."
    async with context.sandbox() as box:
        up = (await box.run(f"for i in $({_INTERFACES}); do cat /sys/class/net/$i/operstate; done")).stdout.text.split()
        expect("interfaces that are up besides lo", [state for state in up if state == "up"], [], remedy=remedy)
        routes = (await box.run(_ROUTES)).stdout.text
        expect("routes", routes, "", remedy=remedy)
        expect("addresses besides lo's", (await box.run(_ADDRESSES)).stdout.text, "", remedy=remedy)
        named = await box.run("grep -c localhost /etc/hosts")
        expect("localhost has a name", named.exit_code, 0, remedy=REPORT)
    return "lo alone, no route, no address; localhost resolves"


@dataclass(frozen=True, slots=True)
class Probe:
    """A command that must fail, and that would do the host no harm if it didn't."""

    name: str
    command: str


PROBES = (
    Probe("mount", "mount -t tmpfs none /mnt 2>&1 || mount -t tmpfs none /tmp"),
    Probe("make a device", "mknod /tmp/device b 8 0"),
    Probe("read the guest's memory (ptrace's own rule)", "head -c 1 /proc/1/mem"),
    Probe("write the guest's memory", "printf x >/proc/1/mem"),
    Probe("read the guest's environment", "cat /proc/1/environ"),
    Probe("enter the guest's root", "ls /proc/1/root/"),
    Probe("open the guest's stream", "printf x >/proc/1/fd/1"),
    Probe("read the guest's stream", "head -c 1 /proc/1/fd/0"),
    Probe("open the supervisor's channel", "printf x >/proc/$PPID/fd/3"),
    Probe("change a kernel setting", "value=$(cat /proc/sys/kernel/panic); echo $value >/proc/sys/kernel/panic"),
    Probe("trigger sysrq", "echo h >/proc/sysrq-trigger"),
    Probe("write to /sys", "echo 1 >/sys/kernel/profiling || echo 1 >/sys/power/state"),
    Probe("read the kernel's memory", "head -c 1 /proc/kcore || head -c 1 /dev/mem || head -c 1 /dev/kmem"),
    Probe("a new mount namespace", "unshare -m true"),
    Probe("a new user namespace", "unshare -U true || unshare -r true"),
    Probe("find a block device", "find /dev -type b | grep ."),
    Probe("find the engine's socket", "ls /run/docker.sock /var/run/docker.sock 2>/dev/null | grep ."),
    Probe("change the host name", "hostname other"),
)

ROOT_PROBES = (
    Probe("give a file away", "touch /tmp/mine && chown 4242 /tmp/mine"),
    Probe("chroot", "chroot / true"),
)


async def escape(context: Context) -> str:
    """No way out, for root in the sandbox neither."""
    tried, missing = 0, set()
    async with context.sandbox() as box:
        for user, probes in ((ROOT, PROBES + ROOT_PROBES), (NOBODY, PROBES)):
            for probe in probes:
                result = await box.run(probe.command, user=user, cwd="/", timeout=20)
                tried += 1
                if result.exit_code == 127:
                    missing.add(probe.name)
                elif result.ok:
                    raise Failed(
                        f"{probe.name} as {user}",
                        seen="it worked",
                        expected="a refusal",
                        remedy="Leave capabilities at 'minimal' and the engine's seccomp profile in place.",
                    )
            await _check_status(box, user)
        await box.run("kill -9 1; kill -STOP 1; kill -TERM 1", user=ROOT)
        expect("a call after kill -9 1", (await box.run("echo alive")).stdout.text, "alive\n", remedy=REPORT)
    note = f" ({', '.join(sorted(missing))}: no tool for it in the image)" if missing else ""
    return f"{tried} probes as root and as nobody refused{note}; no capability, no new privileges, seccomp on"


async def _check_status(box: Sandbox, user: str) -> None:
    text = (await box.run("cat /proc/self/status", user=user, cwd="/")).stdout.text
    status: Mapping[str, str] = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    for field in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        expect(f"{field} as {user}", int(status[field], 16), 0, remedy="Leave capabilities at 'minimal'.")
    expect(f"no_new_privs as {user}", status["NoNewPrivs"].strip(), "1", remedy=REPORT)
    if "Seccomp" in status:
        remedy = "Start the engine with its default seccomp profile, on a kernel with CONFIG_SECCOMP_FILTER."
        expect(f"seccomp mode as {user}", status["Seccomp"].strip(), "2", remedy=remedy)
