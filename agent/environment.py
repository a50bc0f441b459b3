"""For command-line entry points only: importing the package reads no file."""

from __future__ import annotations


def load_env() -> None:
    """Read a ``.env`` file of this directory or one above it, where python-dotenv is installed; what is set stays."""
    try:
        from dotenv import find_dotenv, load_dotenv
    except ModuleNotFoundError:
        return
    load_dotenv(find_dotenv(usecwd=True))
