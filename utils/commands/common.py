"""What several commands share: options, the form of their help, progress, results in files. Needs no TensorFlow."""

import argparse
import contextlib
import ctypes
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import get_args

import numpy as np

from utils import imaging, runtime
from utils.storage import hub

DEFAULT_MODEL = Path(__file__).resolve().parents[2] / "data" / "models" / "janken"
SOURCES = ("janken", "synthetic")  # of training data; any other name is a folder
DATA_HELP = "janken (real photos), synthetic (rendered hands) or a folder with one sub-folder per class"
OTHER_KIND = {  # what is said of a model of this kind where another is wanted
    "label": "finds no anomalies but names classes: `explain`, `annotate`, `evaluate`, `export`, `benchmark`, "
    "`index` and `demo` take it; `anomaly fit` makes a model that does",
    "anomaly": "finds anomalies and names no classes: `anomaly explain` and `demo` take it; `train` makes a model that "
    "does",
}
METAVARS = {int: "N", float: "X", str: "NAME"}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGE = 1 << 20  # bytes
SHARED = {
    "images": {"nargs": "+", "type": Path, "metavar": "IMAGE", "help": "image files, or folders of them"},
    "--model": {
        "type": Path, "default": DEFAULT_MODEL, "metavar": "FOLDER",
        "help": "model folder, or hf://OWNER/NAME at the Hugging Face hub (default: the shipped one)",
    },
    "--from": {
        "dest": "bulk", "metavar": "DIR", "help": "take what `bulk` wrote there instead of images: no network runs"
    },
    "--int8": {"action": "store_true", "help": "run the int8 file instead of the float32 one"},
    "--threads": {"type": int, "default": 2, "metavar": "N", "help": "CPU threads of the network"},
    "--weights": {"default": "imagenet", "metavar": "NAME", "help": "imagenet, none (random) or a weights file"},
    "--seed": {"type": int, "default": 0, "metavar": "N", "help": "seed of everything random"},
    "--json": {"type": Path, "metavar": "FILE", "help": "write the numbers as JSON"},
    "--plot": {"type": Path, "metavar": "FILE", "help": "draw a figure: .png or .svg"},
}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that names a default where there is one, and no path of this machine."""

    def _get_help_string(self, action):
        has_none = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        if has_none or isinstance(action.default, Path) or "default:" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


def add_examples(parser: argparse.ArgumentParser, *lines: str) -> None:
    """Show these arguments as examples below the help."""
    parser.epilog = "\n".join(["examples:", *(f"  {parser.prog} {line}" for line in lines)])


def add_shared(parser, names: list[str]) -> None:
    """Add these of the `SHARED` options."""
    for name in names:
        parser.add_argument(name, **SHARED[name])


def fetch_model(options) -> None:
    """Where a model is named as ``hf://OWNER/NAME``, put the folder of its copy there."""
    if getattr(options, "model", None):
        options.model = hub.local(options.model)


def is_from_bulk(options, images: object) -> bool:
    """Whether --from names results of ``bulk``; one sentence if images are named as well, or neither."""
    if bool(options.bulk) == bool(images):
        raise ValueError("Name images, or --from and what `bulk` wrote, but not both.")
    if options.bulk:
        from utils.commands import bulk

        bulk.check_packages()
    return bool(options.bulk)


def check_kind(model: Path, kind: str, meta: dict | None = None) -> None:
    """Raise one sentence for a model that is not of this kind, "label" or "anomaly".

    Args:
        meta: what the model says of itself; None: what the folder's ``meta.json`` does.
    """
    found = (_read_meta(model) if meta is None else meta).get("kind", "label")
    if found != kind:
        raise ValueError(f"{model} {OTHER_KIND.get(found, 'is of a kind that is not known here')}.")


def _read_meta(folder):
    """The content of ``meta.json``; {} if it is damaged, which is said on loading."""
    file = folder / runtime.META_FILE
    if not file.is_file():
        problem = f"it holds no {file.name}; `train` or `anomaly fit` makes one"
        if folder.is_file():
            problem = "it is a file; name the folder that it lies in"
        elif any((folder / name).is_file() for name in (runtime.FLOAT_FILE, runtime.INT8_FILE)):
            problem = f"it holds no {file.name}, only an exported file, for demo, annotate or anomaly explain"
        raise FileNotFoundError(f"{folder} is not a model folder: {problem}.")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return {}


def spread(n_items: int, n: int) -> np.ndarray:
    """At most n of the numbers 0 to n_items − 1, evenly spread, ascending."""
    return np.linspace(0, n_items - 1, min(n, n_items)).astype(int)


def model_file(options, kind: str | None = None) -> Path:
    """The exported file that --model and --int8 name, as of `exported_file`."""
    name = runtime.INT8_FILE if getattr(options, "int8", False) else runtime.FLOAT_FILE
    return exported_file(options.model, name, kind)


def exported_file(folder: Path, name: str, kind: str | None = None) -> Path:
    """The file of this name in a model folder, after a check that it is there, and of this kind if one is given.

    Raises:
        FileNotFoundError, ValueError: it is not; the sentence says what takes it, or makes it.
    """
    file = folder / name
    if file.is_file():
        if kind:
            check_kind(folder, kind, runtime.read_metadata(file))
        return file
    advice = "; name the folder around the file" if folder.is_file() else "; `export` or `anomaly fit` writes one"
    if (folder / runtime.META_FILE).is_file():
        meta = _read_meta(folder)
        check_kind(folder, kind or meta.get("kind", "label"), meta)
        advice = f": `python -m utils export {folder} --data my_photos` writes it"
        if meta.get("kind") == "anomaly":
            command = "anomaly fit --int8" if name == runtime.INT8_FILE else "anomaly fit"
            advice = f": `python -m utils {command}` writes it"
    raise FileNotFoundError(f"There is no explainer file {file}{advice}.")


def option(default, help: str, **settings):
    """A dataclass field that is an option of the command line, too: `add_options` and `chosen` go with it.

    Args:
        settings: as of ``ArgumentParser.add_argument``; "flag", if it is not the field's name; "group", its title.
    """
    return field(default=default, metadata={"help": help, **settings})


def add_options(parser: argparse.ArgumentParser, dataclass: type) -> None:
    """Add the options of a dataclass, in groups."""
    groups = {group.title: group for group in parser._action_groups}
    for part in fields(dataclass):
        settings = dict(part.metadata)
        if not settings:
            continue
        title = settings.pop("group")
        groups[title] = groups.get(title) or parser.add_argument_group(title)
        flag = settings.pop("flag", f"--{part.name.replace('_', '-')}")
        if part.type is bool:
            settings["action"] = "store_true"
        else:
            kind = next(iter(get_args(part.type)), part.type)  # of `int | None` the int
            settings = {"default": part.default, "type": kind} | settings
            if "choices" not in settings:
                settings = {"metavar": METAVARS[kind]} | settings
        groups[title].add_argument(flag, dest=part.name, **settings)


def chosen(options, dataclass: type):
    """The dataclass with what was chosen."""
    return dataclass(**{part.name: getattr(options, part.name) for part in fields(dataclass)})


def chosen_weights(options) -> str | None:
    """--weights as the networks take it."""
    return None if options.weights == "none" else options.weights


def prepare_results(options) -> None:
    """Make the folders of --json and, where there is such an option, --plot: better now than after the measurements."""
    for path in (options.json, getattr(options, "plot", None)):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)


def write_results(options, result: dict, draw: Callable) -> None:
    """Write the numbers and the figure that ``draw`` returns, as far as they were asked for."""
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        draw().savefig(options.plot)


def find_images(paths: list) -> list[tuple[Path, str]]:
    """`imaging.image_files`, and a line on stderr about what else is in the folders."""
    left_out = []
    try:
        return imaging.image_files(paths, left_out)
    finally:
        report_left_out(left_out)


def report_left_out(left_out: Sequence[Path]) -> None:
    """Say on stderr what is in the folders and was not taken for an image."""
    if left_out:
        names = [f"{path}/" if path.is_dir() else str(path) for path in left_out[:5]]
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        print(f"left out {len(left_out)}: {', '.join(names)}{more}", file=sys.stderr)


def return_memory() -> None:
    """Give large tensors back to the system once they are freed; else holes in the heap keep a fifth more memory."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        for kind in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            ctypes.CDLL("libc.so.6").mallopt(kind, LARGE)


def with_bar(files: list, what: str) -> Iterable:
    """The files, with a bar on stderr while they are gone through, where that is a terminal and tqdm is there."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # on a board
        return files
    return tqdm(files, what, leave=False, delay=2, disable=None)


def columns(values: list) -> str:
    """A line of values, which may come from outside."""
    return "\t".join(map(imaging.printable, values))


def write_line(line: str) -> None:
    """Print a line; a bar of `with_bar` steps aside."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        print(line)
    else:
        tqdm.write(line)


def report_skipped(skipped: list[str], n_files: int) -> int:
    """Say on stderr what was skipped; returns the exit code: 2 if that is every file."""
    if skipped:
        print(f"skipped {len(skipped)} of {n_files}: {first_of(skipped)}", file=sys.stderr)
    return 2 if len(skipped) == n_files else 0


def first_of(sentences: list[str]) -> str:
    """The first five sentences, and how many more there are."""
    more = [f"and {len(sentences) - 5} more"] if len(sentences) > 5 else []
    return " ".join(sentences[:5] + more)
