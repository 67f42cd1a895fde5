"""The provenance of an image: real, synthetic, or unknown to the user."""

from __future__ import annotations

from enum import IntEnum


class Provenance(IntEnum):
    """Numbers as stored in `ImageSet.provenance`; `word` is the name in files and messages."""

    REAL = 0
    SYNTHETIC = 1
    UNKNOWN = 2

    @property
    def word(self) -> str:
        return self.name.lower()


# Names that no generator may have: an image of such a provenance carries the word in place of a generator's name.
RESERVED = (Provenance.REAL.word, Provenance.UNKNOWN.word)
