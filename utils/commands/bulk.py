"""``bulk``: very many images, on all cores of this machine or on a cluster, as Parquet files. Ray Data runs it.

    folder, bucket, tar shards, Parquet ─► pieces ─► Ray Data ─► a worker per core: one explainer, one thread
                                                        └─ a part of the table for each piece, whole or not at all

Ray hands out the pieces, starts workers anew that have died, and joins the machines. What is finished is known by its
file alone, so the same command after a crash goes on where it was.
"""

import argparse
import logging
import os
import socket
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from utils import runtime
from utils.commands import annotate, common

NEEDS = 'bulk needs Ray Data: pip install "ray[data]"'
OBJECT_STORE = 300_000_000  # bytes; only lists of files and the model pass through it
BLOCKS = 2000  # that Ray keeps account of, at most
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
TIMEOUT = 10  # seconds
NOT_SENT = ["**/__pycache__"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(
        parser, "my_photos --model my_model --out results",
        "s3://bucket/shards --heatmaps --embeddings --address auto --out s3://bucket/results",
    )
    parser.add_argument(
        "source", metavar="SOURCE",
        help="folder with all below it, pattern, or address as s3://bucket/photos: of images, tar shards or Parquet "
        "files",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR",
        help="new folder or address, or that of a run that was cut off, to go on; all machines must reach it",
    )
    common.add_shared(parser, ["--model", "--int8"])
    parser.add_argument("--column", metavar="NAME", help="of Parquet, the images (default: the first column of bytes)")
    parser.add_argument("--embeddings", action="store_true", help="write embeddings as well, as `index --from` needs")
    parser.add_argument("--heatmaps", action="store_true", help="write heat maps as well, as 8-bit PNG")
    group = parser.add_argument_group("machines")
    group.add_argument(
        "--address", metavar="A", help="of a Ray cluster to join, auto for the one here (default: this machine alone)"
    )
    group.add_argument(
        "--actors", type=int, metavar="N", help="workers of one thread each (default: one per core of all machines)"
    )
    common.add_options(parser, annotate.Settings)


def main(options) -> int:
    from tqdm import tqdm

    settings = common.chosen(options, annotate.Settings)
    file = common.model_file(options)
    with tqdm(desc="explaining", unit=" images", leave=False, delay=2, disable=None) as bar:

        def show(entry):
            bar.total = entry["total"]
            bar.update(entry["done"] - bar.n)

        done = run(
            options.source, file, options.out, settings=settings, embeddings=options.embeddings, column=options.column,
            heatmaps=options.heatmaps, address=options.address, n_actors=options.actors, progress=show,
        )
    if done.before:
        print(f"{done.before} of {done.parts} parts are from before")
    print(f"{done.images} images in {done.parts - done.before} parts, {done.unreadable} of them unreadable", flush=True)
    if done.images:
        rate = done.images / done.seconds
        print(f"{rate:.0f} images per second, {rate / done.actors:.0f} per worker, nodes: {done.nodes}")
    return 2 if 0 < done.images == done.unreadable and not done.before else 0


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    parts: int  # of the whole job
    before: int  # parts, that were there already
    images: int  # of this run
    unreadable: int  # of these
    seconds: float  # from the first piece that is handed out to the last that is finished
    actors: int
    nodes: int  # that finished a piece


def run(
    source: str, model_file: str | os.PathLike, out: str, *, settings: annotate.Settings | None = None,
    embeddings: bool = False, heatmaps: bool = False, column: str | None = None, address: str | None = None,
    n_actors: int | None = None, progress: Callable[[dict], None] = lambda entry: None,
) -> Summary:
    """Explain all images of a source and write a row for each; go on where a run with the same arguments ended.

    Args:
        source, column: as of `bulk_source.find`.
        model_file: an ``explainer.tflite``, or that of a detector.
        out: a folder or an address of pyarrow's file systems.
        settings: what becomes a box; None for the defaults.
        embeddings, heatmaps: whether they are written.
        address: of a Ray cluster, or "auto"; None starts Ray on this machine and ends it.
        n_actors: workers, each of one thread; None: as many as the cores.
        progress: called after each part with "done" and "total", numbers of images; the total is None for tar shards.

    Raises:
        FileExistsError: ``out`` holds something else.
        FileNotFoundError, ValueError: of `bulk_source.find` or `runtime.Explainer`; no such cluster; no Ray.
        OSError: a worker failed; the sentence says why.
    """
    if n_actors is not None and n_actors < 1:
        raise ValueError(f"--actors must be at least 1. Received: {n_actors}")
    check_packages()
    from utils.commands import bulk_parts, bulk_source, bulk_work

    settings, found = settings or annotate.Settings(), bulk_source.find(source, column)
    about = _about(source, found, model_file) | {"settings": asdict(settings)}
    about |= {"embeddings": embeddings, "heatmaps": heatmaps}
    if embeddings and about["kind"] == "anomaly":
        raise ValueError("A detector has no embeddings: leave out --embeddings.")
    finished = bulk_parts.begin(out, about)
    todo = {number: piece for number, piece in enumerate(found.pieces) if number not in finished}
    job = bulk_work.Job(replace(found, pieces=()), _anywhere(out), settings, embeddings=embeddings, heatmaps=heatmaps)
    total = None if found.kind == "tar" else sum(piece.n_images for piece in todo.values())
    entries, n_images = [], 0
    with _cluster(address, n_actors) as n_cores:
        n_actors = min(n_actors or n_cores, max(len(todo), 1))
        for entry in _work(todo, job, Path(model_file).read_bytes(), n_actors=n_actors) if todo else []:
            entries.append(entry)
            n_images += entry["images"]
            progress({"done": n_images, "total": total})
    return _summary(entries, parts=len(found.pieces), before=len(finished), images=n_images, actors=n_actors)


def _summary(entries, **numbers):
    began = min((entry["began"] for entry in entries), default=0)
    return Summary(
        unreadable=sum(entry["unreadable"] for entry in entries), nodes=len({entry["node"] for entry in entries}),
        seconds=max((entry["ended"] for entry in entries), default=0) - began, **numbers,
    )


def _about(source, found, model_file):
    """What the folder of results says of the job; a job that says something else is another one."""
    from utils.commands import bulk_parts

    explainer = runtime.Explainer(model_file, num_threads=1)
    return {
        "format": bulk_parts.FORMAT, "model": explainer.metadata["sha256"], "kind": explainer.kind,
        "class_names": list(explainer.class_names), "source": found.address, "files": _anywhere(source),
        "column": found.column, "parts": len(found.pieces), "fingerprint": found.fingerprint,
    }


def check_packages() -> None:
    """Raise one sentence where Ray Data is not installed."""
    try:
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401
    except ImportError:
        raise ValueError(NEEDS) from None


def _anywhere(out):
    """A path that workers in other folders understand."""
    return out if "://" in out else Path(out).expanduser().absolute().as_posix()


@contextmanager
def _cluster(address, n_actors):
    """Join or start Ray, quietly; yields the number of cores, and leaves or ends it."""
    import ray

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    how = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if address:
        package = {"py_modules": [str(Path(runtime.__file__).parent)], "excludes": NOT_SENT}
        how |= {"address": address, "runtime_env": package}
    else:
        # "local": without an address Ray would join what it finds here, or what was here once.
        how |= {"address": "local", "num_cpus": n_actors, "object_store_memory": OBJECT_STORE}
        how |= {"include_dashboard": False}
    try:
        if address and "://" not in address and ":" in address:  # Ray would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), TIMEOUT).close()
        with runtime.silent_stderr():
            ray.init(**how)
    except Exception as error:  # it raises nearly anything
        what = f"join the Ray cluster {address}" if address else "start Ray on this machine"
        raise ValueError(f"Cannot {what}: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        ray.shutdown()


def _work(todo, job, model, *, n_actors):
    """Hand out the pieces; yields what `bulk_work.Worker` says of each as soon as it is done."""
    import ray

    from utils.commands import bulk_work

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        rows = [{"number": number, "piece": piece.pack()} for number, piece in todo.items()]
        pieces = ray.data.from_items(rows, override_num_blocks=min(len(todo), BLOCKS))
        done = pieces.map_batches(
            bulk_work.Worker, batch_size=1, num_cpus=1, fn_constructor_args=[job, model],
            compute=ray.data.ActorPoolStrategy(size=n_actors),
        )
        yield from done.iter_rows()
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        reason = " ".join((str(cause).strip() or type(cause).__name__).splitlines()[-1:])
        raise OSError(f"A worker failed, and what it had finished stays in {job.out}: {reason}") from None
