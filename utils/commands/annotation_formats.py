"""More formats of `annotate`, for tools that import neither flat YOLO folders nor polygons.

rle: ``coco_rle.json``, as ``coco.json`` with masks in uncompressed run-length encoding. ultralytics: the folder
``ultralytics`` with ``images/train``, ``labels/train``, ``train.txt`` and ``data.yaml``, as Ultralytics trains on and
CVAT imports; its images are links to those in ``images``. labelstudio: ``label_studio.json``, tasks with predictions,
in percent of the image; serve the folder as local files (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT).
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from utils import imaging

FORMATS = ("rle", "ultralytics", "labelstudio")
RLE, TASKS = "coco_rle.json", "label_studio.json"
ROOT, SUBSET = "ultralytics", "train"
FILES = (RLE, TASKS, f"{ROOT}/data.yaml", f"{ROOT}/{SUBSET}.txt")
LOCAL_FILES = "/data/local-files/?d="  # Label Studio's address of a file below its document root


def texts(kept: list[dict], coco: dict, yolo: dict[str, str], *, class_names: list[str], formats) -> dict[str, str]:
    """{path: content} of all files of these formats.

    Args:
        kept: records of `annotate`.
        coco: the content of ``coco.json``.
        yolo: of each record's name the YOLO label file.
    """
    found = {}
    if "rle" in formats:
        found[RLE] = json.dumps(_with_masks(coco)) + "\n"
    if "ultralytics" in formats:
        names = "".join(f"  {k}: {json.dumps(name, ensure_ascii=False)}\n" for k, name in enumerate(class_names))
        # Without a "path" trainers look beside this file, wherever they are started.
        found[f"{ROOT}/data.yaml"] = f"train: images/{SUBSET}\nval: images/{SUBSET}\nnames:\n{names}"
        found[f"{ROOT}/{SUBSET}.txt"] = "".join(f"images/{SUBSET}/{record['image']}\n" for record in kept)
        found |= {label_path(record["name"]): yolo[record["name"]] for record in kept}
    if "labelstudio" in formats:
        found[TASKS] = json.dumps([_task(record) for record in kept], indent=1) + "\n"
    return found


def label_path(name: str) -> str:
    """Where the Ultralytics label file of an image is."""
    return f"{ROOT}/labels/{SUBSET}/{name}.txt"


def image_path(image: str) -> str:
    """Where the Ultralytics link to an image is."""
    return f"{ROOT}/images/{SUBSET}/{image}"


def link_images(out: Path, images: list[str], folder: str) -> None:
    """The images of a folder below ``out`` once more where Ultralytics looks: hard links, or copies where none work."""
    for image in images:
        target = out / image_path(image)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            os.link(out / folder / image, target)
            continue
        with imaging.atomic_write(target) as draft:
            shutil.copyfile(out / folder / image, draft)


def _with_masks(coco):
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    annotations = []
    for item in coco["annotations"]:
        mask = fill(np.reshape(item["segmentation"][0], (-1, 2)), *sizes[item["image_id"]])
        rle = {"size": list(mask.shape), "counts": run_lengths(mask)}
        annotations.append(item | {"segmentation": rle, "area": int(mask.sum())})
    return coco | {"annotations": annotations}


def fill(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels whose centres lie in a polygon (P, 2) of x and y in pixels: bool (height, width).

    Example:
        >>> fill(np.array([[1, 0], [3, 0], [3, 1], [1, 1]]), 2, 4).astype(int).tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    mask, ends = np.zeros((height, width), bool), np.roll(polygon, -1, axis=0)
    for row in range(height):
        y = row + 0.5
        crossing = (polygon[:, 1] <= y) != (ends[:, 1] <= y)
        (x0, y0), (x1, y1) = polygon[crossing].T, ends[crossing].T
        edges = np.sort(x0 + (y - y0) / (y1 - y0) * (x1 - x0))
        columns = np.clip(np.ceil(edges - 0.5), 0, width).astype(int)
        for start, end in zip(columns[::2], columns[1::2], strict=True):
            mask[row, start:end] = True
    return mask


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run-length encoding: lengths of runs of 0 and 1 in turn, column by column, 0 first.

    Example:
        >>> run_lengths(np.array([[True, False], [True, True]]))
        [0, 2, 1, 1]
    """
    values = mask.T.ravel()
    changes = np.flatnonzero(np.diff(values)) + 1
    lengths = np.diff([0, *changes, values.size]).tolist()
    return [0, *lengths] if values[0] else lengths


def _task(record):
    """A task of Label Studio, with one prediction."""
    size = np.array([record["width"], record["height"]])
    results = []
    for n, (corners, score) in enumerate(zip(record["boxes"], record["scores"], strict=True)):
        low, high = 100 * np.reshape(corners, (2, 2)) / size
        x, y, width, height = np.round([*low, *high - low], 4).tolist()
        value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [record["label"]]}
        results.append({
            "id": f"box{n}", "type": "rectanglelabels", "from_name": "label", "to_name": "image",
            "original_width": record["width"], "original_height": record["height"], "image_rotation": 0,
            "value": value, "score": score,
        })
    prediction = {"model_version": "faster-grad-cam", "score": record["confidence"], "result": results}
    return {"data": {"image": f"{LOCAL_FILES}images/{record['image']}"}, "predictions": [prediction]}
