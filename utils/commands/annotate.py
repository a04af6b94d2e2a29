"""A detector's training data from a classifier's heat maps: boxes and polygons as Pascal VOC, COCO and YOLO files.

The idea is that of shinmura0/Auto-Annotation (2019): binarise the map, put a box round it, keep what is convincing.

    images ─► label, heat map ─► hot regions ─► boxes ─► journal ─► VOC, COCO, YOLO, rejected images, contact sheets
                    └─ class none, low confidence, poor fit of box and mask: rejected ─┘

Each image ends as one line of a journal, kept or rejected. The files are made of nothing but the journal and the images
beside it, so a run that was interrupted goes on where it stopped and ends in the same files. Needs no TensorFlow.
"""

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from utils import heatmap, imaging
from utils.commands import demo
from utils.render.hands import NONE
from utils.runtime import Explainer

FORMATS = ("voc", "coco", "yolo")
JOURNAL, IMAGES, SHEETS, REJECTED = "journal.jsonl", "images", "contact_sheets", "rejected.csv"
COCO, YOLO, TRAINVAL = "coco.json", "data.yaml", "ImageSets/Main/trainval.txt"
SHEET_ROWS, SHEET_COLUMNS = 6, 8
TILE, GAP = 192, 6  # pixels


@dataclass(frozen=True)
class Settings:
    """What becomes a box, and which images are kept.

    Attributes:
        threshold, n_boxes, min_area, tight: see `heatmap.boxes`.
        min_iou: of the hot pixels and the boxes together, 0..1.
        min_confidence: softmax of 30 · cosine for the best class (`runtime.Explanation.probabilities`), 0..1.

    Raises:
        ValueError: one of them cannot be.
    """

    threshold: float | str = "otsu"
    n_boxes: int = 1
    min_area: float = 0.01
    tight: bool = False
    min_iou: float = 0.3
    min_confidence: float = 0.6

    def __post_init__(self):
        if not (0 <= self.min_iou <= 1 and 0 <= self.min_confidence <= 1):
            raise ValueError(
                f"min_iou and min_confidence must lie in 0..1. Received: {self.min_iou} and {self.min_confidence}"
            )
        self.boxes(np.ones((1, 1)))  # a trial of the others

    def boxes(self, heat: np.ndarray) -> list[heatmap.Box]:
        """The boxes of a map (H, W)."""
        return heatmap.boxes(heat, self.threshold, n_boxes=self.n_boxes, min_area=self.min_area, self.tight)


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        kept, rejected: numbers of images, those of the run that this one continues among them.
        unreadable: number of the rejected images that could not be read.
        explained: number of images that this run looked at.
        seconds, explain_seconds: time for these, from file to journal; and without reading and copying.
    """

    kept: int
    rejected: int
    unreadable: int
    explained: int
    seconds: float
    explain_seconds: float


def run(
    files: Sequence[tuple[Path, str]],
    model_file: str | os.PathLike,
    out: str | os.PathLike,
    settings: Settings | None = None,
    formats: Sequence[str] = FORMATS,
    num_threads: int = 2,
    force: bool = False,
    progress: Callable[[Sequence], Iterable] = iter,
) -> Summary:
    """Annotate the images and write a data set: ``images/`` and, for each format, what describes them.

    VOC: ``Annotations/<name>.xml`` and ``ImageSets/Main/trainval.txt``. COCO: ``coco.json``, boxes and polygons. YOLO:
    ``labels/<name>.txt`` and ``data.yaml`` with the class names. For all: ``rejected.csv`` with the reason for each
    image that is left out, and ``contact_sheets/``.

    Args:
        files: paths, each with the name it gets in ``out``, as `imaging.image_files` gives them.
        model_file: an ``explainer.tflite`` or ``explainer_int8.tflite``.
        out: a folder that is new or empty, or that of a run with the same settings, which is continued.
        settings: None for the defaults.
        formats: some of `FORMATS`.
        num_threads: CPU threads of the network.
        force: begin anew, and replace the annotations that are there.
        progress: wraps ``files`` while they are gone through.

    Raises:
        FileExistsError: ``out`` holds something else, or annotations that were changed since; nothing is overwritten.
        FileNotFoundError, ValueError: as of `runtime.Explainer`, or an unknown format.
    """
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"The formats are {', '.join(FORMATS)}. Received: {', '.join(sorted(unknown))}")
    explainer, out, settings = Explainer(model_file, num_threads), Path(out), settings or Settings()
    begun = _begin(out, {"model": explainer.metadata["sha256"]} | asdict(settings), [name for _, name in files], force)
    records, n_explained, explain_seconds, start = [], 0, 0.0, time.perf_counter()
    with (out / JOURNAL).open("a", encoding="ascii") as journal:
        for path, name in progress(files):
            source = {"name": name, "file": str(path), "stamp": _stamp(path)}
            record = begun.get(name, {})
            is_done = source.items() <= record.items()
            if not is_done or "image" in record and not (out / IMAGES / record["image"]).exists():
                found, seconds = _explain(path, explainer, settings, out / IMAGES / name)
                record, explain_seconds, n_explained = source | found, explain_seconds + seconds, n_explained + 1
                journal.write(json.dumps(record) + "\n")
                journal.flush()
            records.append(record)
    seconds = time.perf_counter() - start
    kept = [record for record in records if "reason" not in record]
    _write_texts(out, _texts(records, kept, explainer.class_names, formats), force)
    _draw_sheets(kept, out)
    n_unreadable = sum("label" not in record for record in records)
    return Summary(len(kept), len(records) - len(kept), n_unreadable, n_explained, seconds, explain_seconds)


# --- the journal -------------------------------------------------------------------------------------------------


def _begin(out, header, names, force):
    """Make the folder and its journal, or cut what broke off from the one that is there; {name: record} from before."""
    journal = out / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True) if journal.is_file() else []
    lines = [line for line in lines if line.endswith(b"\n")]  # the last one may be half-written
    try:
        found, *records = map(json.loads, lines)
    except ValueError:  # no journal, or a foreign one
        found, records = None, []
    if found == header and not force:
        os.truncate(journal, sum(map(len, lines)))
        return {record["name"]: record for record in records}
    if not force and out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise FileExistsError(
            f"{out} holds other files, or annotations made with other settings. Choose a new folder, or replace them "
            "with --force."
        )
    names = {*names, *(record["name"] for record in records)}
    old = [path for name in names for path in _paths(name).values()]
    old += [f"{IMAGES}/{record['image']}" for record in records if "image" in record]
    for path in (*old, COCO, YOLO, TRAINVAL, REJECTED, *out.glob(f"{SHEETS}/[0-9]*.jpg")):
        (out / path).unlink(missing_ok=True)
    with imaging.atomic_write(journal) as draft:
        draft.write_bytes(json.dumps(header).encode() + b"\n")
    return {}


def _stamp(path):
    """What tells whether a file is still the same: bytes, time of the last change; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _explain(path, explainer, settings, copy):
    """Copy an image and say what is in it, or why it is rejected; and the seconds without reading and copying."""
    try:
        image = imaging.read_image(path)
    except (ValueError, FileNotFoundError) as error:
        return {"reason": str(error)}, 0.0
    start = time.perf_counter()
    found = find(image, explainer, settings)
    seconds = time.perf_counter() - start
    if "reason" not in found:
        found["image"] = imaging.copy_or_reencode(path, image, copy).name
    return found, seconds


def find(image: np.ndarray, explainer: Explainer, settings: Settings) -> dict:
    """Label and boxes of an image uint8 (H, W, 3), ready for JSON.

    Returns:
        "label", "confidence" and either "reason" (why it is rejected) or "height", "width", "iou" and, for each box,
        "boxes" (x0, y0, x1, y1) in pixels, half open, "scores" and "polygons" [x0, y0, x1, y1, x2, ...].
    """
    # On the network's own grid, not the photo's: the map knows no more, and the time is the same for all photos.
    result = explainer.explain(imaging.resize(image[None], *explainer.image_size))
    label, confidence, heat = result.names[0], float(result.probabilities().max()), result.heatmaps[0]
    seen = {"label": label, "confidence": round(confidence, 4)}
    if result.clusters[0] < 0:
        return seen | {"reason": f"The label is {label}."}
    if confidence < settings.min_confidence:
        return seen | {"reason": f"The confidence is {confidence:.3f}, below {settings.min_confidence}."}
    found, drawn = settings.boxes(heat), np.zeros(heat.shape, bool)
    if not found:
        return seen | {"reason": f"No hot region covers {settings.min_area} of the image."}
    for x0, y0, x1, y1 in (box.corners for box in found):
        drawn[y0:y1, x0:x1] = True
    mask = heatmap.hot(heat, settings.threshold)
    iou = float((mask & drawn).sum() / (mask | drawn).sum())
    if iou < settings.min_iou:
        return seen | {"reason": f"The IoU of mask and box is {iou:.3f}, below {settings.min_iou}."}
    (height, width), (rows, columns) = image.shape[:2], heat.shape
    scale = np.array([width / columns, height / rows])
    return seen | {
        "height": height, "width": width, "iou": round(iou, 4), "scores": [round(box.score, 4) for box in found],
        "boxes": [_scale(box.corners, scale, (width, height)) for box in found],
        "polygons": [np.round(heatmap.outline(box.region) * scale, 2).ravel().tolist() for box in found],
    }  # fmt: skip


def _scale(corners, scale, size):
    """A box on the photo's pixels, of one at least."""
    low, high = np.round(np.reshape(corners, (2, 2)) * scale).astype(int)
    low = np.minimum(low, np.subtract(size, 1))
    return [*low.tolist(), *np.maximum(high, low + 1).tolist()]


# --- the files ---------------------------------------------------------------------------------------------------


def _paths(name):
    """The files of one image."""
    return {"voc": f"Annotations/{name}.xml", "yolo": f"labels/{name}.txt"}


def _texts(records, kept, class_names, formats):
    """{path: content} of all that describes the images."""
    used = [name for name in class_names if name != NONE]
    texts = {REJECTED: _rejected(records)}
    if "coco" in formats:
        texts[COCO] = json.dumps(_coco(kept, used), indent=1) + "\n"
    if "voc" in formats:
        texts[TRAINVAL] = "".join(f"{record['name']}\n" for record in kept)
        texts |= {_paths(record["name"])["voc"]: _voc(record) for record in kept}
    if "yolo" in formats:  # what JSON quotes, YAML reads
        names = json.dumps(used, ensure_ascii=False)
        texts[YOLO] = f"path: .\ntrain: {IMAGES}\nval: {IMAGES}\nnc: {len(used)}\nnames: {names}\n"
        texts |= {_paths(record["name"])["yolo"]: _yolo(record, used) for record in kept}
    return texts


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
    ids, images, annotations = {name: 1 + k for k, name in enumerate(class_names)}, [], []
    for record in kept:
        image = {"id": 1 + len(images), "file_name": record["image"]}
        images.append(image | {"height": record["height"], "width": record["width"]})
        for (x0, y0, x1, y1), polygon in zip(record["boxes"], record["polygons"], strict=True):
            annotations.append({
                "id": 1 + len(annotations), "image_id": image["id"], "category_id": ids[record["label"]],
                "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": [polygon], "iscrowd": 0,
                "area": round(cv2.contourArea(np.reshape(polygon, (-1, 2)).astype(np.float32)), 2),
                "score": record["confidence"],
            })  # fmt: skip
    categories = [{"id": k, "name": name} for name, k in ids.items()]
    parts = {"images": images, "categories": categories, "annotations": annotations}
    return {"info": {}, "licenses": []} | parts


def _yolo(record, class_names):
    """A line for each box: class, centre and size, as shares of the image."""
    lines, size = [], np.array([record["width"], record["height"]])
    for corners in record["boxes"]:
        low, high = np.reshape(corners, (2, 2)) / size
        values = " ".join(f"{value:.8f}" for value in (*(low + high) / 2, *high - low))
        lines.append(f"{class_names.index(record['label'])} {values}\n")
    return "".join(lines)


def _write_texts(out, texts, force):
    """Write what is not there yet; nothing, if something else is there."""
    contents = {out / path: text.encode(errors="replace") for path, text in texts.items()}  # names may hold any byte
    there = {path for path in contents if path.exists()}
    same = {path for path in there if path.read_bytes() == contents[path]}
    if there > same and not force:
        changed = sorted(path.relative_to(out).as_posix() for path in there - same)
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
        n_rows = -(-len(tiles) // SHEET_COLUMNS)
        tiles += [np.full((TILE, TILE, 3), 255, np.uint8)] * (n_rows * SHEET_COLUMNS - len(tiles))
        rows = [np.hstack(tiles[i : i + SHEET_COLUMNS]) for i in range(0, len(tiles), SHEET_COLUMNS)]
        imaging.write_image(out / SHEETS / f"{n:04d}.jpg", np.vstack(rows))


def _tile(record, out):
    image = imaging.read_image(out / IMAGES / record["image"])
    scale = (TILE - GAP) / max(image.shape)
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    small = imaging.resize(image[None], height, width)[0]
    for corners in record["boxes"]:
        demo.draw_box(small, tuple(round(scale * value) for value in corners))
    tile = np.full((TILE, TILE, 3), 255, np.uint8)
    tile[:height, :width] = small
    demo.write(tile, f"{record['name']}: {record['label']} {record['confidence']:.2f}", (0, TILE), TILE - GAP)
    return tile
