"""A user error is one printable line, whatever characters the names in it have."""

from __future__ import annotations

import pickle

from usb_rsmatch.errors import UserError


def test_a_user_error_is_one_printable_line() -> None:
    error = UserError("naïve/目.png: a\nb \r \x1b[31m \ud800 \u2028")
    assert str(error) == r"naïve/目.png: a\nb \r \x1b[31m \ud800 \u2028"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
