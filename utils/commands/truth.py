"""Where the objects of a folder's photos are: ``boxes.json``, a COCO file or Pascal VOC files beside its classes."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from utils import data, imaging

OURS = "boxes.json"
FORM = '{"class/photo.jpg": [[x0, y0, x1, y1], ...]}'
TOLERANCE = 0.5  # pixels that a box may reach beyond its photo: some tools round


def boxed(folder: Path, dataset: data.Dataset) -> np.ndarray | None:
    """What the boxes of each image cover, bool (N, S, S), nothing where it has none; None if no file tells any.

    The first that is there counts: ``boxes.json`` of the form `FORM`; a COCO file, .json with "images" and
    "annotations"; Pascal VOC files, .xml. They lie in the folder or in its sub-folder ``annotations``, .xml files also
    beside their photos. COCO and VOC may name a photo without its class. Of their boxes those count that are of the
    photo's class, or of a name that is no class.

    Args:
        folder: that `data.load_folder` made the dataset of; boxes are in pixels of the photos.

    Raises:
        ValueError: a file is not of its form, a box does not lie in its photo, or its photo is not there.
    """
    file, boxes = _find(folder, dataset)
    if boxes is None:
        return None
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
    inside = (boxes[:, :2] >= -TOLERANCE).all() and (boxes[:, 2:] <= np.add((width, height), TOLERANCE)).all()
    if not inside or not (boxes[:, :2] < boxes[:, 2:]).all():
        raise ValueError(f"{name} has {width} x {height} pixels. Received: a box that does not lie inside, or is empty")
    cover(mask, np.maximum(boxes, 0) * (np.tile(mask.shape[::-1], 2) / (width, height, width, height)))


def cover(mask: np.ndarray, boxes: np.ndarray) -> None:
    """Set boxes float (n, 4) in pixels of a mask bool (H, W) to True in it, each at least one pixel."""
    for x0, y0, x1, y1 in boxes.round().astype(int).tolist():
        mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True


def _find(folder, dataset):
    """The file or folder that tells boxes, and {name: boxes float (n, 4), half open}; both None if there is none."""
    if (folder / OURS).is_file():
        return folder / OURS, _read_ours(folder / OURS)
    places = [folder, *(path for path in imaging.entries(folder) if path.name.lower() == data.ANNOTATIONS)]
    for file in _files(places, ".json"):
        if (found := _read_coco(file)) is not None:
            return file, _of_photos(found, dataset, file)
    by_class = [place / name for place in places for name in dataset.class_names]
    if files := _files([*places, *by_class], ".xml"):
        return folder, _of_photos([one for file in files for one in _read_voc(file)], dataset, folder)
    return None, None


def _files(folders, suffix):
    """What is in these folders, where they are there, with this suffix; what is hidden is not."""
    found = [file for folder in folders if folder.is_dir() for file in imaging.entries(folder)]
    return [file for file in found if file.suffix.lower() == suffix]


def _read_ours(file):
    try:
        boxes = json.loads(file.read_text(encoding="utf-8"))
        return {name: np.array(own, float).reshape(len(own), 4) for name, own in boxes.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not of the form {FORM}.") from error


def _read_coco(file):
    """[(name of a photo, what its box shows, x0, y0, x1, y1)] of a COCO file; None of another one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON.") from error
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        return None
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        kinds = {category["id"]: category["name"] for category in content.get("categories", [])}
        return [
            (names[one["image_id"]], kinds.get(one.get("category_id")), x, y, x + width, y + height)
            for one in content["annotations"] for x, y, width, height in [map(float, one["bbox"])]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is no COCO file of boxes: {type(error).__name__} {error}.") from error


def _read_voc(file):
    """As `_read_coco`, of a Pascal VOC file: its pixels are counted from 1, the last one belongs to the box.

    The photo is that of the same stem: what stands in the file is often of before it was renamed.
    """
    name, found = f"{file.parent.name}/{file.stem}", []
    try:
        for item in ElementTree.parse(file).getroot().iter("object"):
            x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax"))
            found.append((name, item.findtext("name"), max(x0 - 1, 0), max(y0 - 1, 0), x1, y1))
        return found
    except (ElementTree.ParseError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no Pascal VOC file of boxes: {error}.") from error


def _of_photos(found, dataset, file):
    """{name of a photo of the dataset: its boxes (n, 4)}; photos that are not there keep the name that they have."""
    by_end = {}
    for name in dataset.names:
        path = Path(name)
        for end in {name, path.name, path.with_suffix("").as_posix(), path.stem}:
            by_end.setdefault(end, []).append(name)
    boxes = {}
    for name, kind, *corners in found:
        path = Path(name.replace("\\", "/"))
        ends = "/".join(path.parts[-2:]), path.name, path.stem
        photos = next((by_end[end] for end in ends if end in by_end), [name])
        if len(photos) > 1:
            raise ValueError(f"{file} names {name}, which {len(photos)} photos are called: {', '.join(photos[:3])}.")
        label = Path(photos[0]).parent.name
        if kind not in dataset.class_names or kind == label:
            boxes.setdefault(photos[0], []).append(corners)
    return {name: np.array(own) for name, own in boxes.items()}
