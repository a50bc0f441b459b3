"""``python -m sandbox.selftest``: proves on this host, check by check, what the README promises.

Each check is one function over a :class:`~sandbox.selftest.check.Context`; it returns what it saw, or raises
``Failed`` with what was seen, what was expected and what to do. Nothing is mocked: real containers of the real engine.
The last check runs a whole agent episode, which is why this package, an entry point, stands above ``sandbox`` and
``agent`` both and imports the latter inside that check only.
"""
