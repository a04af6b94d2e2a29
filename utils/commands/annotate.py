"""``annotate``: a detector's training data from a classifier's heat maps, as Pascal VOC, COCO and YOLO files.

The idea is that of shinmura0/Auto-Annotation (2019): binarise the map, put a box round it, keep what is convincing.

    images ─► label, heat map ─► hot regions ─► boxes ─► journal ─► VOC, COCO, YOLO, rejected images, contact sheets
                    └─ class none, low confidence, poor fit of box and mask: rejected ─┘

Each image ends as one line of a journal, kept or rejected. The files are made of nothing but the journal and the images
beside it, so an interrupted run resumes and ends in the same files. Needs no TensorFlow.
"""

import argparse
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from utils import heatmap, imaging
from utils.commands import annotation_files, common
from utils.commands.annotation_files import ALL_FORMATS, COCO, FORMATS, IMAGES, REJECTED  # noqa: F401  for callers
from utils.commands.common import option
from utils.runtime import Explainer, Explanation

JOURNAL = "journal.jsonl"
LONGEST_JPEG = 65500  # pixels, of a side
COPIED = {"BMP": ".bmp", "JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}  # by Pillow's name: what every tool reads


def _or_rule(number):
    """Reads a number of this type, or the name of a rule, which `Settings` checks."""

    def read(text):
        try:
            return number(text)
        except ValueError:
            return text

    return read


@dataclass(frozen=True)
class Settings:
    """What becomes a box (see `heatmap.boxes`), and which images are kept.

    Raises:
        ValueError: one of them cannot be.
    """

    threshold: float | str = option(
        "otsu", "a box surrounds what is hotter: a share of the maximum, otsu, or p75 for the 75th percentile",
        type=_or_rule(float), metavar="T", group="boxes",
    )
    n_boxes: int | str = option(
        "auto", "maximum number of boxes per image; auto: one for each hot region with at least "
        f"{heatmap.ALIKE} of the heat and the peak of the first", flag="--boxes", type=_or_rule(int), metavar="N",
        group="boxes",
    )
    min_area: float = option(0.01, "smallest hot region that gets a box, as a share of the image", group="boxes")
    min_iou: float = option(0.3, "lowest overlap (IoU) of hot pixels and boxes, 0..1", group="which images are kept")
    min_confidence: float = option(
        0.6, "lowest softmax of 30 x cosine of the best class, 0..1", group="which images are kept"
    )

    def __post_init__(self):
        if not (0 <= self.min_iou <= 1 and 0 <= self.min_confidence <= 1):
            raise ValueError(
                f"min_iou and min_confidence must lie in 0..1. Received: {self.min_iou} and {self.min_confidence}"
            )
        self.boxes(np.ones((1, 1)))  # raises for the others

    def boxes(self, heat: np.ndarray) -> list[heatmap.Box]:
        """The boxes of a map (H, W)."""
        return heatmap.boxes(heat, threshold=self.threshold, n_boxes=self.n_boxes, min_area=self.min_area)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(
        parser, "my_photos/cat my_photos/dog --model my_model --out dataset",
        "photos --boxes 3 --threshold p75 --format coco --out dataset",
    )
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="image files, or folders of them")
    common.add_shared(parser, ["--from", "--model", "--int8", "--threads"])
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="new folder, or that of an interrupted run, to resume"
    )
    parser.add_argument(
        "--format", nargs="+", default=FORMATS, choices=ALL_FORMATS, help="formats to write (default: voc coco yolo)"
    )
    parser.add_argument("--force", action="store_true", help="start anew and replace existing files")
    common.add_options(parser, Settings)


def main(options) -> int:
    settings = common.chosen(options, Settings)
    if common.is_from_bulk(options, options.images):
        from utils.commands import bulk_results

        return bulk_results.main(options, settings)
    model = common.model_file(options, "label")
    files = common.find_images(options.images)
    bar = iter(common.with_bar(files, "annotating"))
    done = run(
        files, model, options.out, settings=settings, formats=options.format, num_threads=options.threads,
        force=options.force, progress=lambda _: next(bar),
    )
    next(bar, None)  # it ends
    print(f"kept {done.kept} of {len(files)} images; {done.rejected} rejected, see {options.out / REJECTED}")
    if done.explained:
        rate, rate_alone = (done.explained / max(value, 1e-9) for value in (done.seconds, done.explain_seconds))
        print(f"{rate:.0f} images per second, {rate_alone:.0f} without reading and copying them")
    return 2 if done.unreadable == len(files) else 0


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    kept: int  # images, those of the run that this one resumes among them
    rejected: int  # images, too
    unreadable: int  # of the rejected ones
    explained: int  # images that this run looked at
    seconds: float  # for these, from file to journal
    explain_seconds: float  # without reading and copying


def run(
    files: Sequence[tuple[Path, str]], model_file: str | os.PathLike, out: str | os.PathLike, *,
    settings: Settings | None = None, formats: Sequence[str] = FORMATS, num_threads: int = 2, force: bool = False,
    progress: Callable[[dict], None] = lambda entry: None,
) -> Summary:
    """Annotate the images and write a data set: ``images/`` and, for each format, what describes them.

    Args:
        files: paths, each with the name it gets in ``out``, as `imaging.image_files` gives them.
        model_file: an ``explainer.tflite`` or ``explainer_int8.tflite``.
        out: a folder that is new or empty, or that of a run with the same settings, which is resumed.
        settings: None for the defaults.
        formats: some of `annotation_files.ALL_FORMATS`.
        num_threads: CPU threads of the network.
        force: start anew, and replace existing annotations.
        progress: called after each image with "done" and "total".

    Raises:
        FileExistsError: ``out`` holds something else, or annotations that were changed since; nothing is overwritten.
        FileNotFoundError, ValueError: as of `runtime.Explainer`, or an unknown format.
    """
    if unknown := set(formats) - set(ALL_FORMATS):
        raise ValueError(f"The formats are {', '.join(ALL_FORMATS)}. Received: {', '.join(sorted(unknown))}")
    explainer = Explainer(model_file, num_threads=num_threads)
    common.check_kind(model_file, "label", explainer.metadata)
    out, settings = Path(out), settings or Settings()
    header = {"model": explainer.metadata["sha256"]} | asdict(settings)
    before = begin(out, header, [name for _, name in files], force)
    records, times, start = [], [], time.perf_counter()
    with (out / JOURNAL).open("a", encoding="ascii") as journal:
        for path, name in files:
            record = before.get(name, {})
            record, seconds = _annotate(path, name, record, explainer=explainer, settings=settings, out=out)
            if seconds is not None:
                times.append(seconds)
                journal.write(json.dumps(record) + "\n")
                journal.flush()
            records.append(record)
            progress({"done": len(records), "total": len(files)})
    seconds = time.perf_counter() - start
    n_kept = annotation_files.write(out, records, explainer.class_names, formats=formats, force=force)
    return Summary(
        kept=n_kept, rejected=len(records) - n_kept, unreadable=sum("label" not in record for record in records),
        explained=len(times), seconds=seconds, explain_seconds=sum(times),
    )


def begin(out: Path, header: dict, names: list[str], force: bool) -> dict[str, dict]:
    """Make the folder and its journal, or resume the one that is there; {name: record} from before."""
    journal = out / JOURNAL
    found, records, size = _read_journal(journal)
    if found == header and not force:
        os.truncate(journal, size)
        return {record["name"]: record for record in records}
    if not force and out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise FileExistsError(
            f"{out} holds other files, or annotations made with other settings. Choose a new folder, or replace them "
            "with --force."
        )
    for path in annotation_files.paths(out, names, records):
        path.unlink(missing_ok=True)
    with imaging.atomic_write(journal) as draft:
        draft.write_bytes(json.dumps(header).encode() + b"\n")
    return {}


def _read_journal(journal):
    """Header, records and number of bytes of the whole lines: the last line may be half-written."""
    lines = journal.read_bytes().splitlines(keepends=True) if journal.is_file() else []
    lines = [line for line in lines if line.endswith(b"\n")]
    try:
        header, *records = map(json.loads, lines)
    except ValueError:  # no journal, or a foreign one
        return None, [], 0
    return header, records, sum(map(len, lines))


def _stamp(path):
    """What tells whether a file is still the same: bytes, time of the last change; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _annotate(path, name, record, *, explainer, settings, out):
    """The record of a file, and the seconds of its explanation: None if the record from before is of the same file."""
    source = {"name": name, "file": imaging.printable(path), "stamp": _stamp(path)}
    has_copy = "image" not in record or (out / IMAGES / record["image"]).exists()
    if source.items() <= record.items() and has_copy:
        return record, None
    try:
        image = imaging.read_image(path)
    except (ValueError, OSError) as error:
        return source | {"reason": imaging.printable(error)}, 0.0
    start = time.perf_counter()
    found = find(image, explainer, settings)
    seconds = time.perf_counter() - start
    if "reason" not in found:
        found["image"] = copy_or_reencode(path, image, out / IMAGES / name).name
    return source | found, seconds


def find(image: np.ndarray, explainer: Explainer, settings: Settings) -> dict:
    """Label and boxes of an image uint8 (H, W, 3), ready for JSON.

    Returns:
        "label", "confidence" and either "reason" (why it is rejected) or "height", "width", "iou" and, for each box,
        "boxes" (x0, y0, x1, y1) in pixels, half open, "scores" and "polygons" [x0, y0, x1, y1, x2, ...].
    """
    # On the network's own grid, not the photo's: the map knows no more, and the time is the same for all photos.
    result = explainer.explain(imaging.resize(image[None], *explainer.input_size))
    return judge(result, image.shape[:2], settings)


def judge(result: Explanation, size: tuple[int, int], settings: Settings) -> dict:
    """What `find` returns, of the explanation of one image of this height and width, on any grid."""
    label, heat = result.names[0], result.heatmaps[0]
    confidence = float(result.probabilities().max())
    seen = {"label": label, "confidence": round(confidence, 4)}
    if result.clusters[0] < 0:
        return seen | {"reason": f"The label is {label}."}
    if confidence < settings.min_confidence:
        return seen | {"reason": f"The confidence is {confidence:.3f}, below {settings.min_confidence}."}
    found = settings.boxes(heat)
    if not found:
        return seen | {"reason": f"No hot region covers {settings.min_area} of the image."}
    drawn = np.zeros(heat.shape, bool)
    for x0, y0, x1, y1 in (box.corners for box in found):
        drawn[y0:y1, x0:x1] = True
    mask = heatmap.hot(heat, settings.threshold)
    iou = float((mask & drawn).sum() / (mask | drawn).sum())
    if iou < settings.min_iou:
        return seen | {"reason": f"The IoU of mask and box is {iou:.3f}, below {settings.min_iou}."}
    return seen | {"iou": round(iou, 4)} | on_photo(found, heat.shape, size)


def on_photo(boxes: list[heatmap.Box], grid: tuple[int, int], size: tuple[int, int]) -> dict:
    """The part of what `find` returns that tells where boxes found on this grid (h, w) lie in a photo (H, W)."""
    (height, width), (rows, columns) = size, grid
    scale = np.array([width / columns, height / rows])
    return {
        "height": height, "width": width, "scores": [round(box.score, 4) for box in boxes],
        "boxes": [_scale(box.corners, scale, (width, height)) for box in boxes],
        "polygons": [np.round(heatmap.outline(box.region) * scale, 2).ravel().tolist() for box in boxes],
    }


def _scale(corners, scale, size):
    """A box on the photo's pixels, of one at least."""
    low, high = np.round(np.reshape(corners, (2, 2)) * scale).astype(int)
    low = np.minimum(low, np.subtract(size, 1))
    return [*low.tolist(), *np.maximum(high, low + 1).tolist()]


def copy_or_reencode(path: Path, image: np.ndarray, stem: Path) -> Path:
    """Copy an image file to ``stem`` with the suffix of its format, byte by byte, if every reader sees what we see.

    A file that has to be turned, is an animation or has a rare format is written as a new JPEG instead, or as PNG
    where it is too long for that.

    Args:
        path: the file.
        image: what `imaging.read_image` read of it.

    Returns:
        The path of the copy; it appears as a whole or not.
    """
    with warnings.catch_warnings(), Image.open(path) as opened:
        warnings.simplefilter("ignore")  # as in imaging.read_image
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1) != 1
        suffix = None if turned or getattr(opened, "n_frames", 1) > 1 else COPIED.get(opened.format)
    copy = stem.with_name(stem.name + (suffix or (".jpg" if max(image.shape) <= LONGEST_JPEG else ".png")))
    if suffix:
        with imaging.atomic_write(copy) as draft:
            shutil.copyfile(path, draft)
    else:
        imaging.write_image(copy, image)
    return copy
