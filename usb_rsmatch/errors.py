"""What can go wrong in a way that a user can mend, and the exit code that tells it."""

from __future__ import annotations


class UserError(Exception):
    """Bad usage, configuration or data: one line that names the thing and the remedy. Exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        """Names in it may come from hostile files: what would break the line or drive the terminal is escaped."""
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class RunFailed(Exception):
    """A run started and could not be finished: the message holds its last lines. Exit code 1."""

    exit_code = 1


class Interrupted(Exception):
    """A run was asked to stop and has saved a checkpoint. Exit code 130."""

    exit_code = 130
