"""The Docker engine: the only place of the package that speaks to a daemon.

One idea a file: ``address`` finds the daemon, ``api`` is the border to the SDK (over ``transport``; ``sentences``
words its errors), ``config`` translates a plan, ``facts`` and ``death`` translate answers, ``stream`` carries the
guest's bytes, ``guest`` and ``network`` keep what sandboxes share, ``launch`` starts one, ``queries`` are the rest,
``threads`` is where all of it blocks, and ``engine`` puts it together.
"""

from __future__ import annotations

from sandbox.docker.engine import DockerEngine

__all__ = ["DockerEngine"]
