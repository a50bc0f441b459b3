"""Every exception of the package.

Three families, so that a caller can tell who is at fault:

* ``SandboxError``: the *host's* side failed (the engine, the image, the container). The outcome of an episode is
  unknown: it must not become an observation or a reward.
* ``SandboxRequestError``: the request itself can't be carried out in this sandbox (a user that the image doesn't
  have, a file that is too large). It is a ``SandboxError`` too, for the convenience of ``except``.
* Python's own ``FileNotFoundError``, ``PermissionError``, ``IsADirectoryError``, ``NotADirectoryError``, ``OSError``
  for what the sandbox's file system says, and ``ValueError`` / ``TypeError`` for arguments that no sandbox can take.

A command's failure is none of these: it is data, an :class:`sandbox.ExecResult`.
"""

from __future__ import annotations


class SandboxError(Exception):
    """The sandbox failed, not the command in it. The message is one sentence and names what to do."""


class EngineUnavailable(SandboxError):
    """No container engine answers, or it may not be used."""


class ImageUnavailable(SandboxError):
    """The image is neither on the engine nor to be had, or it is of another architecture."""


class SandboxStartError(SandboxError):
    """The container could not be created, or its guest did not come up; nothing of it is left."""


class SandboxLost(SandboxError):
    """The sandbox died, or the link to it did, while it was in use. What ran may have run in part."""


class SandboxExhausted(SandboxLost):
    """What ran in the sandbox used up its memory, and the kernel ended it whole: the commands' doing, not the host's.

    ``Sandbox.run`` tells it as data (``out_of_memory``), so that an agent can't cancel a failing episode this way.
    """


class SandboxClosed(SandboxError):
    """The sandbox was used after its ``async with`` block had ended: a mistake in the calling program."""


class SandboxRequestError(SandboxError):
    """This request can't be carried out; the sandbox itself is well and serves the next call."""


class UserUnknown(SandboxRequestError):
    """The user or group is not in the image's passwd or group file."""


class FileTooLarge(SandboxRequestError):
    """The file, or the tree, holds more bytes than the caller's bound."""


class NotAFile(SandboxRequestError):
    """The path names a device, a FIFO or a socket."""
