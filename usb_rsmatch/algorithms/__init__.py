"""Algorithms and networks, registered with USB: RSMatch, open-set methods, and some that USB's wheel lacks."""

import semilearn  # noqa: F401  registers the modules of this package before any of them is used
