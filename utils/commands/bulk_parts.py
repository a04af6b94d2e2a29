"""The files of ``bulk``: one Parquet file a piece of its source, and what tells which job they are of.

    OUT/bulk.json            model, source, settings and number of parts
    OUT/part-00000000.parquet   a row per image of piece 0, in the order of the source

A part is written under another name and renamed when it is whole. So whatever is killed, and however often: a part is
there as a whole or not at all, and holds each of its images once. Needs pyarrow, no TensorFlow.
"""

import json
import uuid
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from utils.commands import bulk_source

FORMAT, ABOUT, DRAFT = 1, "bulk.json", ".draft-"
ROWS = 64  # of a row group: as many are in memory
TABLE = {  # column: type
    "name": pa.string(),  # below the source
    "bytes": pa.int64(), "time": pa.int64(),  # of the file, the time in ns
    "unreadable": pa.string(),  # why there is no result
    "height": pa.int32(), "width": pa.int32(),  # pixels, as an upright photo
    "label": pa.string(),
    "confidence": pa.float64(),  # of a model that names classes
    "anomaly_score": pa.float64(),  # of a detector; above 1 it is an anomaly
    "boxes": pa.list_(pa.list_(pa.int32())),  # x0, y0, x1, y1 in pixels, half open
    "box_scores": pa.list_(pa.float64()),  # share of the heat
    "polygons": pa.list_(pa.list_(pa.float64())),  # x0, y0, x1, y1, x2, ... for each box
    "iou": pa.float64(),  # of hot pixels and boxes
    "rejected": pa.string(),  # why `annotate` would not keep it
    "embedding": pa.list_(pa.float32()),  # unit length
    "heatmap": pa.binary(),  # grey PNG of the network's input size, 255 is 1
}


def schema(kind: str, *, embeddings: bool, heatmaps: bool) -> pa.Schema:
    """The columns of a job: those that the kind of model has, and what was asked for."""
    without = {"anomaly_score"} if kind == "label" else {"confidence", "iou", "rejected", "embedding"}
    without |= {name for name, asked in (("embedding", embeddings), ("heatmap", heatmaps)) if not asked}
    return pa.schema([(name, kind) for name, kind in TABLE.items() if name not in without])


def begin(out: str, about: dict) -> set[int]:
    """Make the folder of a job, or go on with it; returns the numbers of the parts that are finished.

    Raises:
        FileExistsError: it holds something else, or another job; nothing is overwritten.
    """
    system, path = bulk_source.place(out)
    before, names = _read_about(system, path), _names(system, path)
    if before is None and names:
        raise FileExistsError(f"{out} holds other files; choose a new folder.")
    if before is not None and (changed := [name for name in about if before.get(name) != about[name]]):
        what = "the images have changed since" if changed == ["fingerprint"] else f"another {changed[0]}"
        raise FileExistsError(f"{out} holds the results of another job ({what}); choose a new folder.")
    if before is None:
        system.create_dir(path, recursive=True)
        _write(system, f"{path}/{ABOUT}", lambda file: file.write(json.dumps(about, indent=1).encode() + b"\n"))
    for name in names:
        if name.startswith(DRAFT):  # of a run that was killed
            system.delete_file(f"{path}/{name}")
    return {number for number in range(about["parts"]) if _name(number) in names}


def about(out: str) -> dict:
    """What a finished job says of itself.

    Raises:
        FileNotFoundError: there is none.
        ValueError: parts are missing.
    """
    system, path = bulk_source.place(out)
    found, names = _read_about(system, path), _names(system, path)
    if not found:
        raise FileNotFoundError(f"There are no results of `bulk` in {out}.")
    missing = sum(_name(number) not in names for number in range(found["parts"]))
    if missing:
        raise ValueError(f"{missing} of {found['parts']} parts are missing in {out}; run the same `bulk` again.")
    return found


def rows(out: str, number: int, columns: list[str] | None = None) -> Iterator[dict]:
    """The rows of a part, as dicts; ValueError if it is damaged."""
    system, path = bulk_source.place(out)
    try:
        with system.open_input_file(f"{path}/{_name(number)}") as file:
            for batch in pq.ParquetFile(file).iter_batches(ROWS, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{_name(number)} in {out} is damaged ({' '.join(str(error).split()).rstrip('.')}); delete it, and run the "
            "same `bulk` again."
        ) from None


def is_there(out: str, number: int) -> bool:
    """Whether a part is finished."""
    system, path = bulk_source.place(out)
    return system.get_file_info(f"{path}/{_name(number)}").type == pafs.FileType.File


def write(out: str, number: int, *, schema: pa.Schema, rows: Iterable[dict]) -> None:
    """Write a part, some rows at a time; it appears as a whole or not at all."""
    system, path = bulk_source.place(out)

    def fill(file):
        with pq.ParquetWriter(file, schema, compression="zstd") as table:
            waiting = []
            for row in rows:
                waiting.append(row)
                if len(waiting) == ROWS:
                    table.write_table(pa.Table.from_pylist(waiting, schema))
                    waiting.clear()
            table.write_table(pa.Table.from_pylist(waiting, schema))

    _write(system, f"{path}/{_name(number)}", fill)


def _name(number):
    return f"part-{number:08d}.parquet"


def _names(system, path):
    infos = system.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return {info.base_name for info in infos}


def _read_about(system, path):
    """What the job says of itself; {} if that cannot be read; None if there is no job."""
    try:
        with system.open_input_stream(f"{path}/{ABOUT}") as file:
            found = json.loads(file.read())
        return found if found["format"] == FORMAT else {}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return {}


def _write(system, path, fill):
    """Fill a draft, whose name nobody else takes, and rename it."""
    folder, _, name = path.rpartition("/")
    draft = f"{folder}/{DRAFT}{uuid.uuid4().hex}-{name}"
    try:
        with system.open_output_stream(draft) as file:
            fill(file)
        system.move(draft, path)
    except BaseException:
        if system.get_file_info(draft).type == pafs.FileType.File:
            system.delete_file(draft)
        raise
