"""The errors that commands report in one line, with their exit codes."""

from __future__ import annotations


class UserError(Exception):
    """Bad usage, configuration or data: one line that names the thing and the remedy. Exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        """Escape line breaks and terminal control characters: names in the message may come from untrusted files."""
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class RunFailed(Exception):
    """A run started and failed: the message contains its last lines. Exit code 1."""

    exit_code = 1


class Interrupted(Exception):
    """A run received a stop request and has saved a checkpoint. Exit code 130."""

    exit_code = 130
