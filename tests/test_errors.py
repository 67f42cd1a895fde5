"""What a user is told is one line, whatever the names in it."""

from __future__ import annotations

import pickle

from usb_rsmatch.errors import UserError


def test_a_mistake_is_told_in_one_printable_line() -> None:
    error = UserError("naïve/目.png: a\nb \r \x1b[31m \ud800 \u2028")
    assert str(error) == r"naïve/目.png: a\nb \r \x1b[31m \ud800 \u2028"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
