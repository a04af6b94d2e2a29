"""The index of a folder of images, of ``index`` and ``search``: their embeddings, and which file each one is of.

    INDEX/index.json         folder, model (its hash) and format
    INDEX/parts/000000.npz   embeddings float32 (m, D), and what tells whether a file is the same, m lines of JSON

A part appears as a whole or not at all, and is never written anew but to drop what is gone: a run that is killed loses
no more than the images of one part. Nothing is pickled. Needs no TensorFlow.
"""

import json
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from utils import imaging
from utils.runtime import Explainer

FORMAT, ABOUT, PARTS = 1, "index.json", "parts"
PART_SIZE = 500  # images of a part
READERS, AHEAD = 2, 8  # threads that read, and images that wait for the network
BLOCK = 1024  # rows of the table of all similarities at a time


@dataclass(frozen=True, eq=False)  # == of arrays has no single answer
class Index:
    """The images of a folder.

    Attributes:
        folder: where they lie.
        model: SHA-256 of the exported file that saw them.
        records: a dict per image: "name", below the folder, "size" in bytes and "time" of its last change in ns.
        embeddings: float32 (N, D), unit length.
    """

    folder: Path
    model: str
    records: list[dict]
    embeddings: np.ndarray

    def nearest(self, unit: np.ndarray, top: int) -> list[tuple[float, str]]:
        """Cosine and name of the images most similar to a unit embedding float32 (D,), the best first."""
        scores = self.embeddings @ unit
        top = min(top, len(scores))
        best = np.argpartition(-scores, top - 1)[:top]
        best = best[np.argsort(-scores[best], kind="stable")]
        return [(float(scores[i]), self.records[i]["name"]) for i in best]

    def duplicates(self, above: float) -> Iterator[tuple[float, str, str]]:
        """Cosine and names of all pairs of images with at least this cosine."""
        for start in range(0, len(self.records), BLOCK):
            table = self.embeddings[start : start + BLOCK] @ self.embeddings[start:].T
            for i, j in zip(*np.nonzero(np.triu(table, 1) >= above), strict=True):
                yield float(table[i, j]), self.records[start + i]["name"], self.records[start + j]["name"]


def read(place: Path) -> Index:
    """Read an index.

    Raises:
        FileNotFoundError: there is none, or it is empty.
        ValueError: it is damaged; the sentence says what to do.
    """
    about = _about(place)
    parts = [_read_part(path) for path in _parts(place)]
    if not parts:
        raise FileNotFoundError(f"The index {place} holds no image yet; `python -m utils index` fills it.")
    records = [record for own, _ in parts for record in own]
    embeddings = np.concatenate([embeddings for _, embeddings in parts])
    return Index(Path(about["folder"]), about["model"], records, embeddings)


def _about(place):
    file = place / ABOUT
    if not file.is_file():
        raise FileNotFoundError(f"There is no index in {place}; `python -m utils index` makes one.")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        if about["format"] == FORMAT and {"folder", "model"} <= set(about):
            return about
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"The index {place} is damaged, or of another version: {ABOUT} cannot be read; make it anew.")


def _parts(place):
    return sorted((place / PARTS).glob("[0-9]*.npz"))


def _read_part(path):
    try:
        with np.load(path, allow_pickle=False) as arrays:
            embeddings, lines = arrays["embeddings"], arrays["records"].tobytes().splitlines()
        records = [json.loads(line) for line in lines]
        if embeddings.ndim == 2 and embeddings.dtype == np.float32 and len(records) == len(embeddings):
            return records, embeddings
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        pass
    raise ValueError(f"The index is damaged: {path} cannot be read; delete that file, and run `index` again.")


def _write_part(path, records, embeddings):
    lines = "".join(json.dumps(record) + "\n" for record in records).encode("ascii")
    with imaging.atomic_write(path) as draft, draft.open("wb") as file:
        np.savez(file, embeddings=np.float32(embeddings), records=np.frombuffer(lines, np.uint8))


def files_below(folder: Path, left_out: list[Path]) -> list[Path]:
    """The image files of a folder and its sub-folders, but of those that are links or hold masks.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}, expected one of images.")
    folders, files = [folder], []
    while folders:
        others = []
        files += imaging.images_in(folders.pop(0), others)
        below = [path for path in others if path.is_dir() and not path.is_symlink()]
        below = [path for path in below if path.name.lower() not in imaging.MASK_FOLDERS]
        folders = below + folders
        left_out += [path for path in others if path not in below]
    if not files:
        raise FileNotFoundError(f"There is no image file in {folder}, nor in its sub-folders.")
    return files


def update(
    place: Path, folder: Path, files: list[Path], explainer: Explainer, *,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict:
    """Bring an index up to date: append what is new, drop what is gone or has changed.

    Args:
        place: of the index; made if need be.
        folder, files: of `files_below`.
        explainer: what sees the images.
        progress: goes through the files that are new, as `common.with_bar` does.

    Returns:
        "new", "kept" and "dropped" numbers of images, and "skipped", a sentence for each that cannot be read.

    Raises:
        ValueError: the index is damaged, or of another model or folder.
    """
    _begin(place, folder, explainer.metadata["sha256"])
    there = {path.relative_to(folder).as_posix(): path for path in files}
    stamps = {name: stamp for name, path in there.items() if (stamp := _stamp(name, path))}
    known, dropped = set(), 0
    for path in _parts(place):
        records, embeddings = _read_part(path)
        kept = [i for i, r in enumerate(records) if stamps.get(r["name"]) == r and r["name"] not in known]
        known.update(records[i]["name"] for i in kept)
        dropped += len(records) - len(kept)
        if not kept:
            path.unlink()
        elif len(kept) < len(records):
            _write_part(path, [records[i] for i in kept], embeddings[kept])
    new = [name for name in stamps if name not in known]
    number = max((int(path.stem) for path in _parts(place)), default=-1)
    skipped, records, embeddings, n_new = [], [], [], 0
    for name, embedding in _embed(progress(new), there, explainer, skipped):
        records.append(stamps[name])
        embeddings.append(embedding)
        n_new += 1
        if len(records) == PART_SIZE:
            number += 1
            _write_part(place / PARTS / f"{number:06d}.npz", records, embeddings)
            records, embeddings = [], []
    if records:
        _write_part(place / PARTS / f"{number + 1:06d}.npz", records, embeddings)
    return {"new": n_new, "kept": len(known), "dropped": dropped, "skipped": skipped}


def write(place: Path, folder: str, model: str, *, images: Iterable[tuple[dict, np.ndarray]]) -> int:
    """Write a new index of a folder from each image's record and unit embedding; returns their number."""
    with imaging.atomic_write(place / ABOUT) as draft:
        _write_about(draft, folder, model)
    images, n_images, number = iter(images), 0, 0
    while part := list(islice(images, PART_SIZE)):
        _write_part(place / PARTS / f"{number:06d}.npz", [record for record, _ in part], [row for _, row in part])
        n_images, number = n_images + len(part), number + 1
    return n_images


def _write_about(draft, folder, model):
    about = {"format": FORMAT, "folder": folder, "model": model}
    draft.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _begin(place, folder, model):
    """Make the index, or check that it is of this model and folder."""
    if (place / ABOUT).exists():
        about = _about(place)
        if about["model"] != model:
            raise ValueError(f"The index {place} was made with another model; choose another --out, or delete it.")
        if Path(about["folder"]).resolve() != folder.resolve():
            raise ValueError(f"The index {place} is of another folder, {about['folder']}; choose another --out.")
        return
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise FileExistsError(f"{place} holds other files; choose a new folder for the index.")
    with imaging.atomic_write(place / ABOUT) as draft:
        _write_about(draft, str(folder.resolve()), model)


def _stamp(name, path):
    """The record of a file; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return {"name": name, "size": status.st_size, "time": status.st_mtime_ns}


def _embed(names, paths, explainer, skipped):
    """Name and unit embedding of each image that can be read; threads read ahead, one at a time meets the network."""

    def read(name):
        return name, imaging.resize(imaging.decode(paths[name])[None], *explainer.input_size)

    names, waiting = iter(names), deque()
    with ThreadPoolExecutor(READERS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `imaging.read_image`
        while True:
            while len(waiting) < AHEAD and (name := next(names, None)) is not None:
                waiting.append(pool.submit(read, name))
            if not waiting:
                return
            try:
                name, image = waiting.popleft().result()
            except (ValueError, OSError) as error:
                skipped.append(str(error))
            else:
                yield name, explainer.explain(image).embeddings[0]
