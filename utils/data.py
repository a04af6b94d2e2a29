"""Every data set that comes in: a folder of classes, the real janken photos, rendered hands.

Images are uint8 RGB, masks bool. Whatever the source, the result is a ``Dataset`` of square images with a train and a
test part. Neighbouring photos are near duplicates, so folds and splits cut each class into contiguous blocks.
"""

import hashlib
import os
import re
import shutil
import tempfile
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils import imaging
from utils.render import hands
from utils.render.masks import foreground_masks, hand_mask
from utils.storage import store

NONE = hands.NONE  # the class of images without an object

JANKEN_COMMIT = "0017a6838d24935e07f9ed4176997cf79ac046ec"  # karaage0703/janken_dataset, MIT
JANKEN_URL = f"https://github.com/karaage0703/janken_dataset/archive/{JANKEN_COMMIT}.zip"
JANKEN_SHA256 = "d89d1b52741814c5be6f7da282dd05e2c38949fd42ebf7c5d7100c6cd26a38ac"  # of the 167 photos, see _digest
JANKEN_CLASSES = hands.GESTURES  # choki, gu, pa
JANKEN_MAX_BYTES = 200_000_000  # the real archive holds 5 MB
ANNOTATIONS = "annotations"  # a folder beside the classes, in small letters: where their objects are
TIMEOUT = 30  # seconds without a byte from the server


@dataclass(frozen=True, eq=False)  # == of arrays has no single answer
class Dataset:
    """N square images with labels, and which of them train and which test.

    Attributes:
        images: uint8 RGB (N, S, S, 3): an array, or of many images a `store.Stored`, indexed alike; masks, too.
        labels: int (N,), index into ``class_names``.
        class_names: tuple of K names.
        masks: bool (N, S, S), True on the object, or None where masks are unknown.
        train, test: sorted int indices, disjoint, together 0..N-1.
        names: N relative file names, or render ids.
        skipped: what was left out, as "name: reason".
        sources: int (N,), which of the joined data sets an image came from (see `join`); None if nothing was joined.
        left_out: paths in the folder that were not taken for photos (see `imaging.images_in`).
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    masks: np.ndarray | None
    train: np.ndarray
    test: np.ndarray
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    sources: np.ndarray | None = None
    left_out: tuple[Path, ...] = ()

    @property
    def known_sources(self) -> np.ndarray:
        """``sources``, or zeros if nothing was joined."""
        return np.zeros(len(self.labels), int) if self.sources is None else self.sources

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of images and labels: tells whether a model has seen exactly these data."""
        digest = hashlib.sha256()
        for part in store.parts(self.images):
            digest.update(np.ascontiguousarray(part))
        digest.update(np.ascontiguousarray(self.labels, np.int64))
        return digest.hexdigest()[:16]


def folds(labels: np.ndarray, n_folds: int = 5) -> np.ndarray:
    """Fold number of each image, int (N,): each class, in its given order, is cut into contiguous blocks.

    Neighbouring photos are near duplicates: a random fold would test on what it trained on. A class with fewer images
    than folds misses some folds.
    """
    labels = np.asarray(labels)
    if n_folds < 2:
        raise ValueError(f"Received n_folds={n_folds}, expected at least 2.")
    fold = np.zeros(len(labels), int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        fold[members] = np.arange(len(members)) * n_folds // len(members)
    return fold


def split(labels: np.ndarray, *, test_fraction: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sorted, disjoint indices (train, test): of each class one contiguous block, chosen by the seed, is for testing.

    The block is one of ``round(1 / test_fraction)`` folds. A class of one image trains.
    """
    if not 0 < test_fraction <= 0.5:
        raise ValueError(f"Received test_fraction={test_fraction}, expected more than 0 and at most 0.5.")
    labels, n_folds = np.asarray(labels), round(1 / test_fraction)
    rng, fold = np.random.default_rng(seed), folds(labels, n_folds)
    tests = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = labels == label
        chosen = rng.choice(np.unique(fold[members]))
        tests |= members & (fold == chosen) & (members.sum() > 1)
    return np.flatnonzero(~tests), np.flatnonzero(tests)


def load_folder(folder: str | Path, image_size: int = 96, *, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Load a folder that holds one sub-folder of photos per class. Classes are sorted, files in natural order.

    ``folder/masks/<class>/<stem>.png`` (grey, > 127 is the object) may hold masks: for every photo or for none.
    Hidden files and folders are ignored, unreadable images skipped with one warning that names them, and what is no
    photo of a class (see `imaging.images_in`) is listed as ``left_out``, but for files of boxes, .json and .xml.

    Example:
        >>> load_folder("data/hands", image_size=32).class_names
        ('choki', 'gu', 'none', 'pa')

    Raises:
        FileNotFoundError: no such folder, or a photo without its mask where there is a folder ``masks``.
        ValueError: fewer than two classes, a class without a readable image of its own, a mask of another size.
    """
    folder = Path(folder).expanduser()
    find_mask = _read_mask if (folder / "masks").is_dir() else lambda path, image: None
    how, left_out = {"image_size": image_size, "test_fraction": test_fraction, "seed": seed}, []
    dataset = _load(folder, _list_photos(folder, left_out), find_mask, **how)
    return replace(dataset, left_out=tuple(path for path in left_out if not _tells_boxes(path)))


def _load(folder: Path, photos: dict, find_mask: Callable, *, image_size, test_fraction=0.2, seed) -> Dataset:
    """Read the photos of each class; ``find_mask(path, image)`` gives the mask of one of them, or None."""
    paths = [path for files in photos.values() for path in files]

    def read(path: Path) -> tuple[np.ndarray, np.ndarray | None] | str:
        try:
            image = imaging.decode(path)
        except (ValueError, OSError) as error:
            return str(error).removeprefix(f"Cannot read {imaging.printable(path)}: ").rstrip(".")
        mask = find_mask(path, image)
        # Shrunk at once: memory never holds more full photos than there are threads.
        return [x if x is None else imaging.resize(x[None], image_size, image_size) for x in (image, mask)]

    names, kept, skipped = [path.relative_to(folder).as_posix() for path in paths], [], []
    images, masks = store.Rows(), store.Rows()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in read_image
        results = store.ahead(read, paths)  # decoding frees Python's lock
        for i, result in enumerate(tqdm(results, "reading", len(paths), leave=False, delay=2, disable=None)):
            if isinstance(result, str):
                skipped.append(f"{names[i]}: {result}")
                continue
            kept.append(i)
            images.add(result[0])
            if has_masks := result[1] is not None:
                masks.add(result[1])
    labels = np.repeat(np.arange(len(photos)), [len(files) for files in photos.values()])[kept]
    for label, name in enumerate(photos):
        if label not in labels:  # train/cat, test/good: or is it the folder above the classes?
            parts = [path.name for path in imaging.entries(folder / name) if path.is_dir() and imaging.images_in(path)]
            beside = f" beside its sub-folders {', '.join(parts)}" if parts else ""
            expected = "expected at least one in each class folder"
            raise ValueError(f"{folder / name} holds no readable image{beside}, {expected}.")
    if skipped:
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        warnings.warn(f"Skipped {len(skipped)} unreadable images: {'; '.join(skipped[:5])}{more}.", stacklevel=3)
    masks = masks.done() if has_masks else None
    train, test = split(labels, test_fraction=test_fraction, seed=seed)
    names = tuple(names[i] for i in kept)
    how = {"train": train, "test": test, "names": names, "skipped": tuple(skipped)}
    return Dataset(images.done(), labels, tuple(photos), masks, **how)


def _list_photos(folder: Path, left_out: list[Path] | None = None) -> dict[str, list[Path]]:
    """The image files of each class folder, in natural order (IMG_2 before IMG_10)."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}, expected one with a sub-folder of photos per class.")
    found = imaging.entries(folder)
    beside = imaging.MASK_FOLDERS | {ANNOTATIONS}
    classes = sorted(path for path in found if path.is_dir() and path.name.lower() not in beside)
    if left_out is not None:
        left_out += [path for path in found if path not in classes and path.name != "masks"]
    if len(classes) < 2:
        found = f"one class, {classes[0].name}" if classes else "no sub-folder of photos"
        raise ValueError(f"{folder} holds {found}, expected at least two classes, each a sub-folder of photos.")
    return {path.name: imaging.images_in(path, left_out) for path in classes}


def _tells_boxes(path: Path) -> bool:
    """Whether a path beside photos may say where their objects are; `commands.truth` reads it."""
    return path.suffix.lower() in (".json", ".xml") or path.name.lower() == ANNOTATIONS


def _read_mask(path: Path, image: np.ndarray) -> np.ndarray:
    """The mask that a folder holds for one of its photos: bool (H, W)."""
    file = path.parent.parent / "masks" / path.parent.name / f"{path.stem}.png"
    if not file.is_file():
        raise FileNotFoundError(f"There is no mask {file}, expected one for every photo, or no folder masks at all.")
    mask = imaging.decode(file)[..., 0] > 127
    if mask.shape != image.shape[:2]:
        raise ValueError(f"The mask {file} has shape {mask.shape}, expected that of its photo, {image.shape[:2]}.")
    return mask


def load_janken(
    source: str = "janken", image_size: int = 96, *, n_images: int = 1200, variety: float = 1.0, seed: int = 0
) -> Dataset:
    """Rock, paper, scissors: "janken", 167 real photos, or "synthetic", hands that this project renders itself.

    The photos are looked for in $JANKEN_DATASET, then in the cache, then downloaded; their masks are estimated by
    `masks.hand_mask`. Of the rendered hands there are ``n_images`` of the given variety (see
    `hands.render_hand`), sorted by class; their masks are exact.

    Source of the photos: https://github.com/karaage0703/janken_dataset (MIT).

    Example:
        >>> dataset = load_janken("synthetic", image_size=32, n_images=6)
        >>> dataset.images.shape, dataset.class_names
        ((6, 32, 32, 3), ('choki', 'gu', 'pa'))
    """
    if source == "synthetic":
        return _render_janken(image_size, n_images=n_images, variety=variety, seed=seed)
    if source != "janken":
        raise ValueError(f'Received source={source!r}, expected "janken" or "synthetic".')
    given = os.environ.get("JANKEN_DATASET")
    folder = Path(given).expanduser() if given else download_janken()
    if not folder.is_dir():
        raise FileNotFoundError(f"$JANKEN_DATASET is {given}, expected a folder that holds choki, gu and pa.")
    photos = _list_photos(folder)
    if not set(JANKEN_CLASSES) <= set(photos):
        raise ValueError(f"{folder} holds the classes {', '.join(photos)}, expected {', '.join(JANKEN_CLASSES)}.")
    photos = {name: photos[name] for name in JANKEN_CLASSES}  # a clone of the repository may hold others
    return _load(folder, photos, lambda path, image: hand_mask(image), image_size=image_size, seed=seed)


def _render_janken(image_size: int, *, n_images: int, variety: float, seed: int) -> Dataset:
    if n_images < len(JANKEN_CLASSES):
        raise ValueError(f"Received n_images={n_images}, expected at least one for each of {JANKEN_CLASSES}.")
    labels = np.sort(np.arange(n_images) % len(JANKEN_CLASSES))
    gestures = [JANKEN_CLASSES[label] for label in labels]
    images, masks = hands.render_hands(gestures, image_size, seed=seed, variety=variety)
    names = tuple(f"{gesture}_{i:04d}" for i, gesture in enumerate(gestures))
    train, test = split(labels, seed=seed)
    return Dataset(images, labels, JANKEN_CLASSES, masks, train=train, test=test, names=names)


def download_janken(url: str = JANKEN_URL, cache: str | Path | None = None) -> Path:
    """Folder of the real photos in the cache; downloads the pinned commit and verifies it if it is not there yet.

    Everything happens in a temporary folder that is renamed at the very end: the cache holds all photos or none.

    Raises:
        FileNotFoundError: they are not there and FASTER_GRAD_CAM_OFFLINE=1 forbids the download.
        ConnectionError: the server cannot be reached, or breaks off.
        ValueError: what came is not the pinned content.
    """
    if cache is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "faster-grad-cam"
    cache = Path(cache)
    target = cache / f"janken-{JANKEN_COMMIT[:12]}"
    if target.is_dir():
        if _digest(target) != JANKEN_SHA256:
            raise ValueError(f"{target} has been changed, expected the 167 photos of the pinned commit: delete it.")
        return target
    if os.environ.get("FASTER_GRAD_CAM_OFFLINE") == "1":
        raise FileNotFoundError(
            "The janken photos are not here and FASTER_GRAD_CAM_OFFLINE=1 forbids the download: set $JANKEN_DATASET to "
            'their folder, or use source="synthetic".'
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".janken-") as temporary:
        archive, photos = Path(temporary, "archive.zip"), Path(temporary, "photos")
        _fetch(url, archive)
        _extract(archive, photos)
        if (found := _digest(photos)) != JANKEN_SHA256:
            raise ValueError(f"{url} holds other photos: SHA-256 {found}, expected {JANKEN_SHA256}; nothing was kept.")
        try:
            os.replace(photos, target)
        except OSError:  # another process was faster: its folder holds the same verified photos
            if not target.is_dir():
                raise
    return target


def _fetch(url: str, path: Path) -> None:
    """Download a file, with a progress bar."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as file:
            length = int(answer.headers.get("Content-Length") or 0)
            with tqdm(desc="janken photos", total=length or None, unit="B", unit_scale=True, disable=None) as bar:
                while (block := answer.read(1 << 16)) and file.tell() <= JANKEN_MAX_BYTES:
                    bar.update(file.write(block))
    except (OSError, HTTPException) as error:
        raise ConnectionError(f"Could not download {url}: {str(error).strip('<>')}; nothing was kept.") from error
    if path.stat().st_size < length:  # urllib takes an early end for the end
        raise ConnectionError(f"{url} broke off after {path.stat().st_size} of {length} bytes; nothing was kept.")


def _extract(archive: Path, folder: Path) -> None:
    """Unpack ``*/(choki|gu|pa)/<file>.jpg`` as ``folder/<class>/<file>.jpg``; refuse members that point elsewhere."""
    photo = re.compile(rf"[^/]+/({'|'.join(JANKEN_CLASSES)})/([^/\\]+\.(?i:jpe?g))")
    try:
        with zipfile.ZipFile(archive) as opened:
            if sum(member.file_size for member in opened.infolist()) > JANKEN_MAX_BYTES:
                raise ValueError(f"The archive unpacks to more than {JANKEN_MAX_BYTES} bytes; nothing was kept.")
            for member in opened.infolist():
                parts = member.filename.replace("\\", "/").split("/")
                if parts[0] == "" or ".." in parts or ":" in parts[0]:
                    raise ValueError(f"The archive member {member.filename!r} leaves its folder; nothing was kept.")
                is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
                if is_link or not (match := photo.fullmatch(member.filename)):
                    continue
                path = folder / match[1] / match[2]
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"What was downloaded is not an intact zip archive ({error}); nothing was kept.") from error


def _digest(folder: Path) -> str:
    """SHA-256 over the lines "class/name sha256-of-the-file" of all photos, sorted by name."""
    lines = sorted(
        f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in folder.glob("*/*.[jJ]*")
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def guess_masks(dataset: Dataset) -> Dataset:
    """The dataset with masks: its own, or where it has none those of `masks.foreground_masks`."""
    return dataset if dataset.masks is not None else replace(dataset, masks=foreground_masks(dataset.images))


def add_none(dataset: Dataset, *, n_images: int | None = None, seed: int = 0) -> Dataset:
    """Append rendered backgrounds without a hand to the class *none*, by default as many as a class has on average.

    The class comes last; an image of it that was there before stays. Masks of the backgrounds are all False.
    """
    size = dataset.images.shape[1]
    n_images = round(len(dataset.images) / len(dataset.class_names)) if n_images is None else n_images
    if n_images < 1:
        raise ValueError(f"Received n_images={n_images}, expected at least 1.")
    rng, labels = np.random.default_rng(seed), np.zeros(n_images, int)
    images = np.stack([hands.render_background(rng, image_size=size) for _ in range(n_images)])
    masks = None if dataset.masks is None else np.zeros((n_images, size, size), bool)
    (train, test), names = split(labels, seed=seed), tuple(f"{NONE}_{i:04d}" for i in range(n_images))
    return join(dataset, Dataset(images, labels, (NONE,), masks, train=train, test=test, names=names))


def join(*datasets: Dataset) -> Dataset:
    """One dataset of several, in the given order, with the classes of all of them; *none* comes last.

    Masks are None as soon as one of them has none (see `guess_masks`).

    Raises:
        ValueError: their image sizes differ.
    """
    sizes = {d.images.shape[1:3] for d in datasets}
    if len(sizes) != 1:
        raise ValueError(f"Received datasets of image sizes {sorted(sizes)}, expected the same in all.")
    found = dict.fromkeys(name for d in datasets for name in d.class_names)  # in order of appearance
    names = tuple(name for name in found if name != NONE) + (NONE,) * (NONE in found)
    starts = np.cumsum([0] + [len(d.images) for d in datasets])
    first = np.cumsum([0] + [d.known_sources.max(initial=0) + 1 for d in datasets])
    return Dataset(
        images=store.join([d.images for d in datasets]),
        labels=np.concatenate([np.array([names.index(name) for name in d.class_names])[d.labels] for d in datasets]),
        class_names=names,
        masks=None if any(d.masks is None for d in datasets) else store.join([d.masks for d in datasets]),
        train=np.concatenate([d.train + start for d, start in zip(datasets, starts, strict=False)]),
        test=np.concatenate([d.test + start for d, start in zip(datasets, starts, strict=False)]),
        names=tuple(name for d in datasets for name in d.names),
        skipped=tuple(reason for d in datasets for reason in d.skipped),
        sources=np.concatenate([d.known_sources + start for d, start in zip(datasets, first, strict=False)]),
    )
