"""A model folder: several files that belong together, written as a whole, checked on reading."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from utils import networks, runtime
from utils.runtime import META_FILE


def write(
    folder: str | os.PathLike, writers: dict[str, Callable[[Path], object]], *, meta: dict,
    try_out: Callable[[Path], object] = lambda folder: None,
) -> dict:
    """Write files and ``meta.json`` into a folder (made if need be). Other files stay, except exported explainers.

    All files are written beside their place first and then renamed, ``meta.json`` last: a full disk or Ctrl-C while
    writing leaves the old model. ``meta.json`` holds checksums of the others, so that a mixture of two models is found
    out on loading.

    Args:
        writers: by file name, what writes the file at the path that it is given.
        meta: must be JSON.
        try_out: what raises if the folder that it is given cannot be loaded; then nothing is written.

    Returns:
        What ``meta.json`` holds.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        new = Path(temporary)
        with warnings.catch_warnings(action="ignore"):  # what cannot be read back is found out below
            for name, write_file in writers.items():
                write_file(new / name)
        meta = meta | {"sha256": {name: _sha256(new / name) for name in sorted(writers)}}
        (new / META_FILE).write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
        try_out(new)
        for name in (runtime.FLOAT_FILE, runtime.INT8_FILE):
            (folder / name).unlink(missing_ok=True)
        for name in (*meta["sha256"], META_FILE):
            os.replace(new / name, folder / name)
    return meta


def read(folder: str | os.PathLike, is_valid: Callable[[dict], bool]) -> dict:
    """The content of ``meta.json``, after a check of all files.

    Args:
        is_valid: whether this is the meta data of such a model; KeyError and TypeError mean no.

    Raises:
        FileNotFoundError: no such folder, or a file is missing.
        ValueError: a file is truncated, foreign, or belongs to another model.
    """
    folder = Path(folder)
    if not (folder / META_FILE).is_file():
        raise FileNotFoundError(f"{folder} is not a model folder: it holds no {META_FILE}.")
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        known = is_valid(meta) and meta["sha256"].items()
    except (ValueError, KeyError, TypeError, AttributeError):  # not JSON, or JSON of another kind
        known = False
    if not known:
        raise ValueError(f"{folder / META_FILE} is damaged, or of another kind or version of model.")
    for name, checksum in known:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"The model folder {folder} is incomplete: {name} is missing.")
        if _sha256(folder / name) != checksum:
            raise ValueError(f"{folder / name} is damaged or belongs to another model: its checksum differs.")
    return meta


def spec(folder: str | os.PathLike, meta: dict) -> networks.Spec:
    """The network's spec in ``meta.json``; ValueError if it is not known here."""
    try:
        return networks.Spec(**meta["network"])
    except TypeError:
        raise ValueError(f"{Path(folder) / META_FILE} describes a network that is not known here.") from None


def _sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()
