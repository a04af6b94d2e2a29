"""From the table that ``bulk`` wrote to other files: annotations (``annotate --from``) and an index (``index --from``).

No image goes through a network again.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from utils import imaging
from utils.commands import annotate, annotation_files, bulk_parts, bulk_source, common, image_index

SEEN = ("label", "confidence", "height", "width", "iou", "boxes", "polygons")  # columns that are records' entries, too


def main(options, settings: annotate.Settings) -> int:
    """The body of ``annotate --from``."""
    if settings != annotate.Settings():
        raise ValueError("With --from the boxes are those of `bulk`: give it the options of boxes and confidence.")
    kept, n_images = annotations(
        options.bulk, options.out, formats=options.format, force=options.force,
        progress=lambda parts: common.with_bar(parts, "annotating"),
    )
    rejected = options.out / annotation_files.REJECTED
    print(f"kept {kept} of {n_images} images; {n_images - kept} rejected, see {rejected}")
    return 0


def annotations(
    results: str, out: Path, *, formats: Sequence[str], force: bool = False,
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[int, int]:
    """Write a data set as `annotate.run` does, of what `bulk` found; the images are copied from where it read them.

    Args:
        results: folder or address of a finished `bulk` with a model that names classes.
        out, formats, force: as of `annotate.run`.
        progress: goes through the numbers of the parts, as `common.with_bar` does.

    Returns:
        How many images are kept, and how many there are.

    Raises:
        FileExistsError: ``out`` holds something else.
        FileNotFoundError, ValueError: no such results, or the images have changed since.
    """
    about = bulk_parts.about(results)
    common.check_kind(Path(results), "label", about)
    source = bulk_source.find(about["files"], about["column"])
    if source.fingerprint != about["fingerprint"]:
        raise ValueError(f"The images of {about['files']} have changed since `bulk` saw them; run it anew.")
    stems = (PurePosixPath(name).stem for name in _column(results, about, "name"))
    names = list(imaging.unique_names(stems))
    header = {name: about[name] for name in ("model", "fingerprint", "settings")}
    annotate.begin(out, header, names, force)
    coming, records = iter(names), []
    for number in progress(range(about["parts"])):
        pairs = zip(
            bulk_source.items(source, source.pieces[number]), bulk_parts.rows(results, number), strict=True
        )
        records += [_record(row, item, next(coming), out=out) for item, row in pairs]
    n_kept = annotation_files.write(out, records, tuple(about["class_names"]), formats=formats, force=force)
    return n_kept, len(records)


def _column(results, about, name):
    """One column of all parts, in order."""
    for number in range(about["parts"]):
        yield from (row[name] for row in bulk_parts.rows(results, number, [name]))


def _record(row, item, name, *, out):
    """A row as `annotation_files` takes it; of a kept image a copy is written."""
    record = {"name": name, "file": row["name"]}
    reason = row["unreadable"] or row["rejected"]
    if reason:
        return record | {"reason": reason}
    with tempfile.NamedTemporaryFile() as file, warnings.catch_warnings(action="ignore"):
        file.write(item.content)
        file.flush()
        image = bulk_source.read(item)
        copy = annotate.copy_or_reencode(Path(file.name), image, out / annotation_files.IMAGES / name)
    return record | {"image": copy.name, "scores": row["box_scores"]} | {key: row[key] for key in SEEN}


def index(results: str, place: Path) -> int:
    """Make an index of the embeddings that `bulk` wrote; it appears as a whole. Returns its number of images.

    Raises:
        FileExistsError: ``place`` holds something.
        FileNotFoundError, ValueError: no such results, or they hold no embedding.
    """
    about = bulk_parts.about(results)
    if not about["embeddings"]:
        raise ValueError(f"There are no embeddings in {results}; run `bulk` with --embeddings into a new folder.")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise FileExistsError(f"{place} holds other files; choose a new folder for the index.")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".index-") as made:
        draft = Path(made, "index")
        n_images = image_index.write(draft, about["source"], about["model"], images=_embedded(results, about))
        os.replace(draft, place)
    return n_images


def _embedded(results, about):
    """Record and embedding of each image that could be read."""
    for number in range(about["parts"]):
        for row in bulk_parts.rows(results, number, ["name", "bytes", "time", "embedding"]):
            if row["embedding"] is not None:
                yield {"name": row["name"], "size": row["bytes"], "time": row["time"]}, row["embedding"]
