"""The list of image files below a folder: made in parallel, and cached if it is long."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from usb_rsmatch.cache import cache_folder
from usb_rsmatch.data.images.decode import image_suffixes
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import atomic_write

KEEP_FROM = 10_000  # files: shorter lists need no cache
LIST_THREADS = 8  # folders on network drives have a high latency
RACY_NS = 2_000_000_000  # the coarsest clock of a common file system: FAT's resolution is two seconds
FORMAT = 2
# Folders that systems make beside the user's own: Synology's thumbnails, macOS' archives, recycle bins, file systems.
SYSTEM_FOLDERS = frozenset(
    {"@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
# Files that stand beside images and are not images themselves.
_COMPANIONS = """.txt .md .csv .tsv .json .jsonl .yaml .yml .toml .xml .html .log .ini .db .pdf .py .sh .npz .npy .mat
.pkl .pt .lnk .url .zip .tar .gz .tgz .7z .rar .sha256 .md5"""
COMPANIONS = frozenset(_COMPANIONS.split())
DIGEST_SIZE = 16


@dataclass(frozen=True)
class FileIndex:
    """N image files under `root`, in an order that does not depend on the disk.

    `folders` are the relative folders ("" is the root), `folder` int32 [N] is the number of each file's folder,
    `mtimes` int64 the folders' modification times, `sizes` and `times` int64 [N] the files' sizes in bytes and
    modification times (-1: unknown). All names are in one byte string `text`, that of file i from `starts[i]` to
    `starts[i + 1]`, so that a million of them is cheap to store and to load. `unread` counts the other files, which may
    be images of formats that are not read: "FOLDER/.SUFFIX" to their number.
    """

    root: Path
    folders: tuple[str, ...]
    mtimes: np.ndarray
    folder: np.ndarray
    text: bytes
    starts: np.ndarray
    sizes: np.ndarray
    times: np.ndarray
    unread: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.folder)

    def name(self, i: int) -> str:
        """The file's name alone."""
        return os.fsdecode(self.text[self.starts[i] : self.starts[i + 1]])

    def place(self, i: int) -> str:
        """The file's POSIX path relative to the root."""
        folder = self.folders[int(self.folder[i])]
        return f"{folder}/{self.name(i)}" if folder else self.name(i)

    def unread_note(self) -> str | None:
        """One line on the files that are not read, None if there are none."""
        counts: dict[str, int] = {}
        for place, count in self.unread.items():
            suffix = place.rpartition("/")[2]
            counts[suffix] = counts.get(suffix, 0) + count
        if not counts:
            return None
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(counts.items())[:5])
        return f"{self.root}: {sum(counts.values())} files are not read as images: {kinds}; convert or remove them"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the files' locations, names, sizes and modification times."""
        return _digest(os.fsencode(self.root.absolute()), self.listing, self.times)

    @cached_property
    def listing(self) -> str:
        """A hash of the files' names and sizes, independent of their location."""
        return _digest(_joined(self.folders), self.folder, self.text, self.sizes)


def _digest(*parts: bytes | str | np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part if isinstance(part, bytes) else part.tobytes())
    return digest.hexdigest()


class FileList(Sequence[Path]):
    """Selected files of an index as paths, which are made when they are needed."""

    def __init__(self, index: FileIndex, rows: np.ndarray) -> None:
        self.source, self.rows = index, rows  # `index` is a method of sequences
        self._root = str(index.root)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Path:  # type: ignore[override]  # slices are not needed
        return Path(f"{self._root}/{self.source.place(int(self.rows[i]))}")

    def take(self, rows: np.ndarray) -> FileList:
        """The files at `rows` int64 [n] of this list."""
        return FileList(self.source, self.rows[rows])

    @property
    def sizes(self) -> np.ndarray:
        """The files' sizes in bytes int64 [n], -1 if unknown."""
        return self.source.sizes[self.rows]

    @property
    def fingerprint(self) -> str:
        """`FileIndex.fingerprint` of these files in their order."""
        return _digest(self.source.fingerprint, self.rows)

    @property
    def listing(self) -> str:
        """`FileIndex.listing` of these files in their order."""
        return _digest(self.source.listing, self.rows)


def describe(files: Sequence[Path]) -> tuple[str, str]:
    """Fingerprint and listing, as in an index, of files without an index."""
    states = [_state(path) for path in files]
    names = _joined([path.name for path in files])
    places = _joined([str(path.absolute()) for path in files])
    sizes, times = (np.array(column, dtype=np.int64) for column in zip(*states, strict=True))
    return _digest(places, sizes, times), _digest(names, sizes)


def file_index(root: Path) -> FileIndex:
    """The image files below `root`. Hidden files and folders are ignored, links are followed.

    A list of `KEEP_FROM` files and more is cached, and valid as long as every folder and file below the root has the
    same modification time and size. Raises UserError for a link that leads back to a folder above it, and
    for a folder that cannot be listed.
    """
    kept = _cache_file(root)
    index = _read(root, kept)
    if index is not None and _holds(index):
        return index
    begin = time.time_ns()
    index = _build(root)
    if len(index) >= KEEP_FROM:
        with contextlib.suppress(OSError):  # a cache that cannot be written is not an error
            _write(index, kept, begin)
    return index


def _build(root: Path) -> FileIndex:
    """List the folders in parallel, then sort everything."""
    suffixes = image_suffixes()
    found: list[tuple[str, int, list[tuple[str, int, int]]]] = []
    unread: dict[str, int] = {}
    with ThreadPoolExecutor(LIST_THREADS) as threads, _progress(root) as bar:
        waiting: set[Future[_Listing]] = {threads.submit(_list, root, "", frozenset(), suffixes)}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for listing in (future.result() for future in done):
                    found.append((listing.prefix, listing.mtime, listing.files))
                    unread.update(listing.unread)
                    bar.update(len(listing.files))
                    for folder in listing.folders:
                        waiting.add(threads.submit(_list, root, folder, listing.inside, suffixes))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    found.sort()
    rows = [
        (f"{prefix}/{name}" if prefix else name, number, name, size, time_of_change)
        for number, (prefix, _, files) in enumerate(found)
        for name, size, time_of_change in files
    ]
    rows.sort(key=_in_order)
    names = [os.fsencode(row[2]) for row in rows]
    return FileIndex(
        root=root,
        folders=tuple(prefix for prefix, _, _ in found),
        mtimes=np.array([mtime for _, mtime, _ in found], dtype=np.int64),
        folder=np.fromiter((row[1] for row in rows), dtype=np.int32, count=len(rows)),
        text=b"".join(names),
        starts=np.concatenate([[0], np.cumsum(np.fromiter(map(len, names), np.int64, len(names)))]).astype(np.int64),
        sizes=np.fromiter((row[3] for row in rows), dtype=np.int64, count=len(rows)),
        times=np.fromiter((row[4] for row in rows), dtype=np.int64, count=len(rows)),
        unread=dict(sorted(unread.items())),
    )


def _in_order(row: tuple[str, int, str, int, int]) -> tuple[str, str]:
    """The sort key: first the composed Unicode form of the path, as some file systems store accents separately."""
    place = row[0]
    return (place if place.isascii() else unicodedata.normalize("NFC", place)), place


@dataclass(frozen=True)
class _Listing:
    prefix: str
    mtime: int
    inside: frozenset[tuple[int, int]]
    folders: list[str]
    files: list[tuple[str, int, int]]
    unread: dict[str, int]


def _list(root: Path, prefix: str, above: frozenset[tuple[int, int]], suffixes: frozenset[str]) -> _Listing:
    """One folder's images and subfolders; `above` are its parent folders, by device and inode."""
    here = f"{root}/{prefix}" if prefix else str(root)
    folders, files = [], []
    unread: dict[str, int] = {}
    try:
        state = os.stat(here)
        if (state.st_dev, state.st_ino) in above:
            raise UserError(f"{here}: the link leads back to a folder above it; remove it")
        with os.scandir(here) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name in SYSTEM_FOLDERS:
                    continue
                suffix = os.path.splitext(name)[1].lower()
                is_image = suffix in suffixes
                if _is_folder(entry, is_image):
                    folders.append(f"{prefix}/{name}" if prefix else name)
                elif is_image:
                    files.append((name, *_state(entry)))
                elif suffix not in COMPANIONS and not (suffix == "" and name.isupper()):  # LICENSE, README
                    unread[f"{prefix}/{suffix}"] = unread.get(f"{prefix}/{suffix}", 0) + 1
    except OSError as error:
        raise UserError(f"{here}: cannot be listed ({error.strerror or error}); fix or remove it") from None
    return _Listing(prefix, state.st_mtime_ns, above | {(state.st_dev, state.st_ino)}, folders, files, unread)


def _is_folder(entry: os.DirEntry[str], is_image: bool) -> bool:
    """Whether the entry is a folder; a broken link with an image suffix is reported when the image is read."""
    try:
        return entry.is_dir()
    except OSError as error:
        if is_image:
            return False
        raise UserError(f"{entry.path}: cannot be followed ({error.strerror or error}); fix or remove it") from None


def _state(file: Path | os.DirEntry[str]) -> tuple[int, int]:
    """A file's size in bytes and modification time, -1 if unknown, as for a broken link."""
    try:
        state = file.stat()
        return state.st_size, state.st_mtime_ns
    except OSError:
        return -1, -1


def _state_of(path: str) -> tuple[int, int]:
    try:
        state = os.stat(path)  # without a Path object: there may be a million
        return state.st_size, state.st_mtime_ns
    except OSError:
        return -1, -1


def size_of(file: Path) -> int:
    """A file's size in bytes, -1 if unknown."""
    return _state(file)[0]


@contextlib.contextmanager
def _progress(root: Path) -> Iterator[tqdm[None]]:
    """A progress bar on terminals, after one second."""
    with tqdm(desc=f"listing {root}", unit=" files", disable=None, delay=1, leave=False) as bar:
        yield bar


# the cache --------------------------------------------------------------------------------------------------------


def _cache_file(root: Path) -> Path:
    """The cache file of the list: one for each folder and set of image suffixes."""
    text = "\0".join([str(FORMAT), str(root.absolute()), *sorted(image_suffixes())])
    name = hashlib.blake2b(os.fsencode(text), digest_size=DIGEST_SIZE).hexdigest()
    return cache_folder() / "index" / f"{name}.npz"


def _write(index: FileIndex, path: Path, begin: int) -> None:
    # A folder that changed just before it was listed may change again within one tick of its clock: it is stored
    # without a time, so that the next call makes a new list.
    mtimes = np.where(index.mtimes > begin - RACY_NS, -1, index.mtimes)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            folders=np.frombuffer(_joined(index.folders), dtype=np.uint8),
            mtimes=mtimes,
            folder=index.folder,
            text=np.frombuffer(index.text, dtype=np.uint8),
            starts=index.starts,
            sizes=index.sizes,
            times=index.times,
            unread=np.frombuffer(json.dumps(dict(index.unread)).encode(), dtype=np.uint8),
        )


def _read(root: Path, path: Path) -> FileIndex | None:
    """The cached list, None if there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            folders = tuple(os.fsdecode(name) for name in kept["folders"].tobytes().split(b"\0"))
            columns = {name: kept[name] for name in ("mtimes", "folder", "starts", "sizes", "times")}
            unread = json.loads(kept["unread"].tobytes())
            return FileIndex(root=root, folders=folders, text=kept["text"].tobytes(), unread=unread, **columns)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _holds(index: FileIndex) -> bool:
    """Whether no folder and no file has changed since it was listed: a file rewritten in place changes no folder."""
    folders = [f"{index.root}/{folder}" if folder else str(index.root) for folder in index.folders]
    try:
        now = [os.stat(folder).st_mtime_ns for folder in folders]
    except OSError:
        return False
    if not (np.array(now, dtype=np.int64) == index.mtimes).all():
        return False
    kept = zip(index.folder.tolist(), index.sizes.tolist(), index.times.tolist(), strict=True)
    return all(_state_of(f"{folders[f]}/{index.name(i)}") == (size, t) for i, (f, size, t) in enumerate(kept))


def _joined(names: Sequence[str]) -> bytes:
    return b"\0".join(map(os.fsencode, names))
