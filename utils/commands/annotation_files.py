"""The files of `annotate`: its records as Pascal VOC, COCO and YOLO files, rejected images, contact sheets.

VOC: ``Annotations/<name>.xml`` and ``ImageSets/Main/trainval.txt``. COCO: ``coco.json``, boxes and polygons. YOLO:
``labels/<name>.txt`` and ``data.yaml`` with the class names, which labelImg and Label Studio read from ``classes.txt``.
`annotation_formats` has more. For all: ``rejected.csv`` with the reason for each image
that is left out, and ``contact_sheets/``.
"""

import csv
import io
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from utils import imaging
from utils.commands import annotation_formats, drawing
from utils.render.hands import NONE

FORMATS = ("voc", "coco", "yolo")  # by default; there are more in ALL_FORMATS
ALL_FORMATS = (*FORMATS, *annotation_formats.FORMATS)
CLASSES = ("classes.txt", "labels/classes.txt")  # of Label Studio; of labelImg
IMAGES, SHEETS, REJECTED = "images", "contact_sheets", "rejected.csv"
COCO, YOLO, TRAINVAL = "coco.json", "data.yaml", "ImageSets/Main/trainval.txt"
SHEET_ROWS, SHEET_COLUMNS = 6, 8
TILE, GAP = 192, 6  # pixels


def write(out: Path, records: list[dict], class_names: tuple[str, ...], *, formats, force: bool) -> int:
    """Write all that describes the images of the records; returns how many of them are kept.

    Raises:
        FileExistsError: a file is there with another content, and ``force`` is False.
    """
    kept = [record for record in records if "reason" not in record]
    _write_texts(out, _texts(records, kept, class_names, formats), force)
    if "ultralytics" in formats:
        annotation_formats.link_images(out, [record["image"] for record in kept], IMAGES)
    _draw_sheets(kept, out)
    return len(kept)


def paths(out: Path, names: list[str], records: list[dict]) -> list[Path]:
    """The files that a run with these names, or the one that left these records, can have written."""
    names = {*names, *(record["name"] for record in records)}
    files = [COCO, YOLO, TRAINVAL, REJECTED, *CLASSES, *annotation_formats.FILES]
    of_name = (_voc_path, _yolo_path, annotation_formats.label_path)
    files += [path(name) for name in names for path in of_name]
    images = [record["image"] for record in records if "image" in record]
    files += [path for image in images for path in (f"{IMAGES}/{image}", annotation_formats.image_path(image))]
    return [*(out / file for file in files), *out.glob(f"{SHEETS}/[0-9]*.jpg")]


def _voc_path(name):
    return f"Annotations/{name}.xml"


def _yolo_path(name):
    return f"labels/{name}.txt"


def _texts(records, kept, class_names, formats):
    """{path: content} of all that describes the images."""
    used = [name for name in class_names if name != NONE]
    texts = {REJECTED: _rejected(records)}
    if "coco" in formats:
        texts[COCO] = json.dumps(_coco(kept, used), indent=1) + "\n"
    if "voc" in formats:
        texts[TRAINVAL] = "".join(f"{record['name']}\n" for record in kept)
        texts |= {_voc_path(record["name"]): _voc(record) for record in kept}
    if "yolo" in formats:
        names = json.dumps(used, ensure_ascii=False)  # what JSON quotes, YAML reads
        # Without a "path" trainers look beside this file; a relative one is looked for in the working directory.
        texts[YOLO] = f"train: {IMAGES}\nval: {IMAGES}\nnc: {len(used)}\nnames: {names}\n"
        texts |= dict.fromkeys(CLASSES, "".join(f"{name}\n" for name in used))
        texts |= {_yolo_path(record["name"]): _yolo(record, used) for record in kept}  # one may be named classes
    labels = {record["name"]: _yolo(record, used) for record in kept}
    return texts | annotation_formats.texts(kept, _coco(kept, used), labels, class_names=used, formats=formats)


def _rejected(records):
    table = io.StringIO()
    rows = ([record["file"], record["reason"]] for record in records if "reason" in record)
    csv.writer(table, lineterminator="\n").writerows([["file", "reason"], *rows])
    return table.getvalue()


def _voc(record):
    """Pixels are counted from 1 and the last one belongs to the box, as in the VOC development kit."""
    root = ElementTree.Element("annotation")

    def add(parent, **values):
        for tag, value in values.items():
            ElementTree.SubElement(parent, tag).text = str(value)

    add(root, folder=IMAGES, filename=record["image"])
    add(ElementTree.SubElement(root, "size"), width=record["width"], height=record["height"], depth=3)
    add(root, segmented=0)
    for x0, y0, x1, y1 in record["boxes"]:
        cut = x0 == 0 or y0 == 0 or x1 == record["width"] or y1 == record["height"]
        item = ElementTree.SubElement(root, "object")
        add(item, name=record["label"], pose="Unspecified", truncated=int(cut), difficult=0)
        add(ElementTree.SubElement(item, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
    ElementTree.indent(root)
    return ElementTree.tostring(root, "unicode") + "\n"


def _coco(kept, class_names):
    ids = {name: k for k, name in enumerate(class_names, 1)}
    images, annotations = [], []
    for record in kept:
        image = {"id": 1 + len(images), "file_name": record["image"]}
        images.append(image | {"height": record["height"], "width": record["width"]})
        for (x0, y0, x1, y1), polygon in zip(record["boxes"], record["polygons"], strict=True):
            annotations.append({
                "id": 1 + len(annotations), "image_id": image["id"], "category_id": ids[record["label"]],
                "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": [polygon], "iscrowd": 0,
                "area": round(cv2.contourArea(np.reshape(polygon, (-1, 2)).astype(np.float32)), 2),
                "score": record["confidence"],
            })
    categories = [{"id": k, "name": name} for name, k in ids.items()]
    return {"info": {}, "licenses": [], "images": images, "categories": categories, "annotations": annotations}


def _yolo(record, class_names):
    """A line for each box: class, centre and size, as shares of the image."""
    lines = []
    size = np.array([record["width"], record["height"]])
    for corners in record["boxes"]:
        low, high = np.reshape(corners, (2, 2)) / size
        values = " ".join(f"{value:.8f}" for value in (*(low + high) / 2, *high - low))
        lines.append(f"{class_names.index(record['label'])} {values}\n")
    return "".join(lines)


def _write_texts(out, texts, force):
    """Write what is not there yet; nothing, if something else is there."""
    contents = {out / path: text.encode() for path, text in texts.items()}
    there = {path for path in contents if path.exists()}
    same = {path for path in there if path.read_bytes() == contents[path]}
    changed = sorted(path.relative_to(out).as_posix() for path in there - same)
    if changed and not force:
        raise FileExistsError(
            f"{len(changed)} annotation files in {out} were changed, {changed[0]} among them, or images have come or "
            "gone. They stay as they are; --force replaces them."
        )
    for path in contents.keys() - same:
        with imaging.atomic_write(path) as draft:
            draft.write_bytes(contents[path])


def _draw_sheets(kept, out):
    """All images with their boxes, small, to look through."""
    per_sheet = SHEET_ROWS * SHEET_COLUMNS
    for n, start in enumerate(range(0, len(kept), per_sheet), 1):
        tiles = [_tile(record, out) for record in kept[start : start + per_sheet]]
        n_rows = math.ceil(len(tiles) / SHEET_COLUMNS)
        tiles += [np.full((TILE, TILE, 3), 255, np.uint8)] * (n_rows * SHEET_COLUMNS - len(tiles))
        rows = [np.hstack(tiles[i : i + SHEET_COLUMNS]) for i in range(0, len(tiles), SHEET_COLUMNS)]
        imaging.write_image(out / SHEETS / f"{n:04d}.jpg", np.vstack(rows))


def _tile(record, out):
    image = imaging.read_image(out / IMAGES / record["image"])
    scale = (TILE - GAP) / max(image.shape)
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    small = imaging.resize(image[None], height, width)[0]
    for corners in record["boxes"]:
        drawing.draw_box(small, tuple(round(scale * value) for value in corners))
    tile = np.full((TILE, TILE, 3), 255, np.uint8)
    tile[:height, :width] = small
    text = f"{record['name']}: {record['label']} {record['confidence']:.2f}"
    drawing.draw_text(tile, text, corner=(0, TILE), lowest=TILE - GAP)
    return tile
