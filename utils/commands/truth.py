"""Where the objects of a folder's photos are, if ``boxes.json`` beside its classes says so."""

import json
from pathlib import Path

import numpy as np

from utils import data, imaging

FORM = '{"class/photo.jpg": [[x0, y0, x1, y1], ...]}'


def boxed(folder: Path, dataset: data.Dataset) -> np.ndarray | None:
    """What the boxes of each image cover, bool (N, S, S), nothing where it has none; None if there is no such file.

    Args:
        folder: that `data.load_folder` made the dataset of; its boxes are in pixels of the photos, half open.

    Raises:
        ValueError: the file is not of this form, a box does not lie in its photo, or its photo is not there.
    """
    file = folder / data.BOXES
    if not file.is_file():
        return None
    boxes = _read(file)
    if missing := sorted(name for name in boxes if not (folder / name).is_file()):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"{file} has boxes of photos that are not there: {', '.join(missing[:3])}{more}.")
    covered = np.zeros(dataset.images.shape[:3], bool)
    for mask, name in zip(covered, dataset.names, strict=True):
        own = boxes.get(name, ())
        if len(own):
            _check_and_cover(mask, own, imaging.read_image(folder / name).shape[:2], f"{file}: {name}")
    return covered


def _check_and_cover(mask, boxes, size, name):
    """Set the boxes of an image of this size to True in its mask (S, S)."""
    height, width = size
    inside = (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (width, height)).all()
    if not inside or not (boxes[:, :2] < boxes[:, 2:]).all():
        raise ValueError(f"{name} has {width} x {height} pixels. Received: a box that does not lie inside, or is empty")
    cover(mask, boxes * (np.tile(mask.shape[::-1], 2) / (width, height, width, height)))


def cover(mask: np.ndarray, boxes: np.ndarray) -> None:
    """Set boxes float (n, 4) in pixels of a mask bool (H, W) to True in it, each at least one pixel."""
    for x0, y0, x1, y1 in boxes.round().astype(int).tolist():
        mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True


def _read(file):
    """{name: boxes} of the file, each of four numbers."""
    try:
        boxes = json.loads(file.read_text(encoding="utf-8"))
        return {name: np.array(own, float).reshape(len(own), 4) for name, own in boxes.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not of the form {FORM}.") from error
