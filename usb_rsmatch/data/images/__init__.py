"""From the bytes of a file to pixels: decoding, resizing, re-encoding, lists of files, arrays on disk."""
