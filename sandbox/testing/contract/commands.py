"""What a command is given, and how its end is told."""

from __future__ import annotations

from sandbox.errors import SandboxStartError, UserUnknown
from sandbox.testing.contract.base import OpenBox, open_only, raises


async def an_exit_code_comes_back(open_box: OpenBox) -> None:
    """Whatever it is."""
    async with open_box() as box:
        for command, code in (("true", 0), ("false", 1), ("exit 42", 42), ("exit 255", 255), ("no-such-program", 127)):
            result = await box.run(command)
            assert (result.status, result.exit_code) == ("exited", code), result
            assert result.ok == (code == 0)


async def a_signal_is_told(open_box: OpenBox) -> None:
    """As a shell would: 128 and its number."""
    async with open_box() as box:
        result = await box.run("kill -9 $$")
        assert (result.status, result.exit_code, result.signal) == ("signaled", 137, 9), result


async def each_call_has_a_fresh_shell(open_box: OpenBox) -> None:
    """Nothing of a shell's state outlives it."""
    async with open_box(workdir="/tmp") as box:
        await box.run("cd /; X=1; export X")
        result = await box.run('pwd; echo "[$X]"')
        assert result.stdout.text == "/tmp\n[]\n"


async def an_argv_needs_no_shell(open_box: OpenBox) -> None:
    """Its arguments arrive as they are."""
    async with open_box() as box:
        result = await box.run(["echo", "a  b", "$HOME", "'"])
        assert result.stdout.text == "a  b $HOME '\n"
        assert (await box.run(["no-such-program"])).exit_code == 127


async def a_call_inherits_environment_and_directory(open_box: OpenBox) -> None:
    """The image's, then the spec's, then its own."""
    async with open_box(env={"A": "spec", "B": "spec"}, workdir="/tmp") as box:
        result = await box.run("echo $A $B; pwd", env={"B": "call"})
        assert result.stdout.text == "spec call\n/tmp\n"
        await box.write_file("/tmp/below/file", b"")
        assert (await box.run("pwd", cwd="below")).stdout.text == "/tmp/below\n"
        assert (await box.run("pwd", cwd="/")).stdout.text == "/\n"


async def a_call_runs_as_its_user(open_box: OpenBox) -> None:
    """The spec's, or its own."""
    async with open_box(user="1234:1234") as box:
        assert (await box.run("id -u; id -g")).stdout.text == "1234\n1234\n"
        assert (await box.run("id -u", user="0:0")).stdout.text == "0\n"


async def an_unknown_user_is_refused(open_box: OpenBox) -> None:
    """At the start, and for one call."""
    async with open_box() as box:
        await raises(UserUnknown, box.run("true", user="nobody-has-this-name"))
        assert (await box.run("true")).ok
    await raises(UserUnknown, open_only(open_box(user="nobody-has-this-name")))


async def a_missing_directory_is_refused(open_box: OpenBox) -> None:
    """At the start, and for one call."""
    async with open_box() as box:
        error = await raises(FileNotFoundError, box.run("true", cwd="/no/such/place"))
        assert error.filename == "/no/such/place"
        await raises(NotADirectoryError, box.run("true", cwd="/etc/passwd"))
    refusal = await raises(SandboxStartError, open_only(open_box(workdir="/no/such/place")))
    assert "/no/such/place" in str(refusal)


async def what_no_process_takes_is_refused_before_it_is_sent(open_box: OpenBox) -> None:
    """With Python's own errors."""
    async with open_box() as box:
        await raises(ValueError, box.run("echo \0"))
        await raises(ValueError, box.run([]))
        await raises(ValueError, box.run("true", env={"A": "\0"}))
        await raises(ValueError, box.run("true", timeout=0))
        await raises(ValueError, box.run(["echo", "x" * 200_000]))
        await raises(ValueError, box.run("true", output_limit=-1))
        await raises(TypeError, box.run(b"true"))  # type: ignore[arg-type]
        assert (await box.run("true")).ok


async def a_long_command_runs(open_box: OpenBox) -> None:
    """Beyond what the kernel takes as an argument."""
    async with open_box() as box:
        script = "#" * 5_000_000 + "\necho done; exit 7"
        result = await box.run(script)
        assert (result.exit_code, result.stdout.text) == (7, "done\n")
