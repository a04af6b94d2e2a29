"""What ``bulk`` reads: image files, tar shards or Parquet files, in a folder or in a bucket, cut into pieces of work.

A piece is some image files, one tar shard, or one row group of a Parquet file. The same source is always cut into the
same pieces, and a piece always gives the same images in the same order. Needs pyarrow, no TensorFlow.
"""

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from utils import imaging
from utils.storage import store

TAR = (".tar", ".tar.gz", ".tgz")
PARQUET = (".parquet", ".pq")
FEWEST, MOST, PIECES = 16, 1000, 64  # files of a piece, and how many pieces there should be between these
READERS, TOGETHER = 2, 8  # threads that read ahead, and files that one reads at a time: each change of threads costs
AHEAD = 16  # rows of Parquet
EXPECTED = "a folder, a pattern as photos/*.jpg, or an address as s3://bucket/photos"


class File(NamedTuple):
    """A file of a source: its name below the source, bytes, and time of its last change in ns (None: not known)."""

    name: str
    size: int
    time: int | None


class Piece(NamedTuple):
    """Image files, or one tar shard, or one Parquet file and the number of its row group; how many images these are.

    Of a tar shard nobody knows that before reading it: None.
    """

    files: tuple[File, ...]
    n_images: int | None = None
    group: int | None = None

    def pack(self) -> str:
        """As text, to be sent to a worker; `unpack` reads it."""
        return json.dumps(self)

    @classmethod
    def unpack(cls, text: str) -> "Piece":
        files, *more = json.loads(text)
        return cls(tuple(File(*file) for file in files), *more)


class Item(NamedTuple):
    """An image, unread: its name in the source, the file that it comes from, its content; or why there is none."""

    name: str
    file: File
    content: bytes
    problem: str | None = None


@dataclass(frozen=True)
class Source:
    """Images, wherever they are.

    Attributes:
        address: of the folder, as pyarrow's file systems know it: absolute, or with a scheme.
        kind: "images", "tar" or "parquet".
        pieces: in order.
        column: of Parquet, the one that holds the images.
        fingerprint: SHA-256 of the files' names, sizes and times.
    """

    address: str
    kind: str
    pieces: tuple[Piece, ...]
    column: str | None
    fingerprint: str


def place(address: str) -> tuple[pafs.FileSystem, str]:
    """The file system of an address and the path on it; without a scheme it is a path of this machine.

    Raises:
        ValueError: no such file system, or it cannot be reached.
    """
    if "://" not in address:
        return pafs.LocalFileSystem(), Path(address).expanduser().absolute().as_posix()
    try:
        system, path = pafs.FileSystem.from_uri(address)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"Cannot use the address {address}: {str(error).rstrip('.')}.") from None
    return system, path.rstrip("/")


def find(source: str, column: str | None = None) -> Source:
    """List a source and cut it into pieces.

    Args:
        source: a folder, with all below it; a pattern with ``*``, ``?`` or ``**``; a file; each with or without the
            scheme of one of pyarrow's file systems (s3, gs, hdfs, file, ...).
        column: of Parquet, the one that holds the images; None: the first that can.

    Raises:
        FileNotFoundError: there is nothing, or no image in it.
        ValueError: no such file system or column.
    """
    folder, pattern = _split(source)
    system, path = place(folder)
    files = _files(system, path, pattern)
    kind, files = next(((kind, chosen) for kind in _CHOOSE if (chosen := _CHOOSE[kind](files))), (None, []))
    if not files:
        raise FileNotFoundError(f"There is no image, tar shard or Parquet file in {source}, expected {EXPECTED}.")
    if not pattern and _is_file(system, path):
        folder = folder.rpartition("/")[0] or ("/" if folder[0] == "/" else ".")
    if "://" not in folder:
        folder = Path(folder).expanduser().resolve().as_posix()
    pieces = [Piece((file,)) for file in files]
    if kind == "images":
        size = int(np.clip(len(files) // PIECES, FEWEST, MOST))
        groups = [tuple(files[i : i + size]) for i in range(0, len(files), size)]
        pieces = [Piece(group, len(group)) for group in groups]
    elif kind == "parquet":
        pieces, column = _row_groups(folder, files, column)
    lines = "".join(f"{file.name}\t{file.size}\t{file.time}\n" for file in files)
    fingerprint = hashlib.sha256(lines.encode(errors="replace")).hexdigest()
    return Source(folder, kind, tuple(pieces), column=column, fingerprint=fingerprint)


def _split(source):
    """The folder before the first wildcard, and the pattern below it; no pattern: None."""
    parts = source.split("/")
    wild = next((i for i, part in enumerate(parts) if set(part) & set("*?")), None)
    if wild is None:
        return source.rstrip("/") or "/", None
    return "/".join(parts[:wild]) or ("/" if source[0] == "/" else "."), "/".join(parts[wild:])


def _is_file(system, path):
    return system.get_file_info(path).type == pafs.FileType.File


def _files(system, path, pattern):
    """All files below a folder that the pattern fits, sorted; of a file itself that one; of nothing none."""
    try:
        if _is_file(system, path):
            infos, path = [system.get_file_info(path)], path.rpartition("/")[0]
        else:
            infos = system.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"Cannot list {path}: {str(error).rstrip('.')}.") from None
    found = [(info, info.path.removeprefix(path).lstrip("/")) for info in infos if info.type == pafs.FileType.File]
    fits = re.compile(_expression(pattern or "**")).fullmatch
    return sorted(File(name, info.size, info.mtime_ns) for info, name in found if fits(name) and not _is_left_out(name))


def _expression(pattern):
    """A pattern as a regular expression: * and ? stay within a folder, ** does not."""
    kinds = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(kinds.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))


def _is_left_out(name):
    """Whether a file is hidden or a system's own, or lies in such a folder, or in one of masks."""
    *folders, file = name.lower().split("/")
    system = any(part.startswith(".") or part in imaging.SYSTEM for part in (*folders, file))
    return system or bool(imaging.MASK_FOLDERS & set(folders))


def _suffix(name):
    """The suffix that tells what a file is; "" if it is nothing that `bulk` reads."""
    name = name.lower()
    known = [suffix for suffix in (*TAR, *PARQUET, *imaging.IMAGE_SUFFIXES) if name.endswith(suffix)]
    return max(known, key=len, default="")


def _without_masks(files):
    """The images among the files, without x_mask.png beside x.jpg."""
    images = [file for file in files if _suffix(file.name) in imaging.IMAGE_SUFFIXES]
    paths = [PurePosixPath(file.name.lower()) for file in images]
    stems = defaultdict(set)
    for path in paths:
        stems[path.parent].add(path.stem)
    pairs = zip(images, paths, strict=True)
    return [file for file, path in pairs if not imaging.is_mask(path.stem, stems[path.parent])]


_CHOOSE = {  # of the files of a source those of a kind; the first kind that is there
    "images": _without_masks,
    "tar": lambda files: [file for file in files if _suffix(file.name) in TAR],
    "parquet": lambda files: [file for file in files if _suffix(file.name) in PARQUET],
}


def _row_groups(folder, files, column):
    """A piece for each row group, and the column of the images."""
    system, path = place(folder)
    pieces = []
    for file in files:
        try:
            with system.open_input_file(f"{path}/{file.name}") as opened:
                about = pq.ParquetFile(opened)
                column = column or _image_column(about.schema_arrow)
                sizes = [about.metadata.row_group(group).num_rows for group in range(about.num_row_groups)]
                names = about.schema_arrow.names
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"Cannot read {file.name}: {str(error).rstrip('.')}.") from None
        if column not in names:
            expected = f"a column of images in {file.name}, one of {', '.join(names)}"
            raise ValueError(f"Expected {expected}; name it with --column. Received: {column}")
        pieces += [Piece((file,), size, group) for group, size in enumerate(sizes)]
    return pieces, column


def _image_column(schema):
    """The first column of bytes, or of pictures as Hugging Face's data sets hold them; None: there is none."""

    def is_bytes(kind):
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    for part in schema:
        kind = part.type
        if is_bytes(kind) or pa.types.is_struct(kind) and any(f.name == "bytes" and is_bytes(f.type) for f in kind):
            return part.name
    return None


def items(source: Source, piece: Piece) -> Iterator[Item]:
    """The images of a piece, in order. What cannot be read comes with the reason."""
    system, path = place(source.address)
    return {"images": _of_files, "tar": _of_tar, "parquet": _of_parquet}[source.kind](source, piece, system, path)


def _of_files(source, piece, system, path):
    """Threads read ahead: a bucket takes its time to answer."""

    def read(file):
        try:
            with system.open_input_stream(f"{path}/{file.name}", compression=None) as opened:
                return Item(file.name, file, opened.read())
        except (pa.ArrowException, OSError) as error:
            return Item(file.name, file, b"", imaging.printable(f"Cannot read {file.name}: {error}"))

    groups = [piece.files[i : i + TOGETHER] for i in range(0, len(piece.files), TOGETHER)]
    for items in store.ahead(lambda files: list(map(read, files)), groups, READERS):
        yield from items


def _of_tar(source, piece, system, path):
    """Members that are images, as they come; of a shard that ends too early, one more item says so."""
    (file,) = piece.files
    try:
        opened = system.open_input_stream(f"{path}/{file.name}", compression=None)
        with opened, tarfile.open(fileobj=opened, mode="r|*") as shard:
            for member in shard:
                if member.isfile() and _suffix(member.name) in imaging.IMAGE_SUFFIXES:
                    yield Item(f"{file.name}/{member.name}", file, shard.extractfile(member).read())
    except (tarfile.TarError, EOFError, pa.ArrowException, OSError, zlib.error) as error:
        yield Item(file.name, file, b"", imaging.printable(f"Cannot read all of {file.name}: {error}"))


def _of_parquet(source, piece, system, path):
    """The rows of a row group, each named after its file and its number in there."""
    (file,), _, group = piece
    with system.open_input_file(f"{path}/{file.name}") as opened:
        about = pq.ParquetFile(opened)
        row = sum(about.metadata.row_group(i).num_rows for i in range(group))
        for batch in about.iter_batches(AHEAD, row_groups=[group], columns=[source.column]):
            for value in batch.column(0).to_pylist():
                content = value.get("bytes") if isinstance(value, dict) else value
                problem = None if isinstance(content, bytes) else f"Row {row} of {file.name} holds no image."
                yield Item(f"{file.name}/{row:08d}", file, content or b"", problem)
                row += 1


def read(item: Item) -> np.ndarray:
    """The image uint8 (H, W, 3); call it where Pillow's warnings are silent.

    Raises:
        ValueError: it is none; the sentence says why.
    """
    if item.problem:
        raise ValueError(item.problem)
    return imaging.decode(Path(item.name), io.BytesIO(item.content))
