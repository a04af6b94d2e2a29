"""``push``: a model folder to the Hugging Face hub, from where ``--model hf://OWNER/NAME`` takes it."""

import argparse
import re
from pathlib import Path

from utils import imaging, runtime
from utils.commands import common
from utils.storage import hub

LIBRARY = "faster-grad-cam"
TAGS = {  # by kind of model
    "label": ("image-classification", "grad-cam", "explainability"),
    "anomaly": ("anomaly-detection", "explainability"),
}
PIPELINES = {"label": "image-classification"}  # the hub has a name for these only


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(parser, "my_model my-name/my-model", "my_detector my-name/my-detector --license mit --private")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="model folder; only its own files travel")
    parser.add_argument("repository", metavar="OWNER/NAME", help="where to at the hub; made if need be")
    parser.add_argument("--license", metavar="NAME", help="what the hub shows as licence, such as mit or cc-by-4.0")
    parser.add_argument("--private", action="store_true", help="if the repository is made: let only its owner see it")


def main(options) -> int:
    from utils.networks import model_folder

    hub.check_name(options.repository)
    meta = model_folder.read(options.folder, lambda meta: "format" in meta and meta.get("kind", "label") in TAGS)
    names = {*meta["sha256"], runtime.META_FILE, runtime.FLOAT_FILE, runtime.INT8_FILE} & set(hub.FILES)
    files = {name: options.folder / name for name in sorted(names) if (options.folder / name).is_file()}
    files["README.md"] = card(options.folder, meta, license=options.license).encode()
    address = send(files, options.repository, private=options.private)
    print(f"pushed {len(files)} files to {address}; take them with --model hf://{options.repository}")
    return 0


def send(files: dict[str, Path | bytes], repository: str, *, private: bool = False) -> str:
    """One commit: there, these files, by name, replace all of a model folder. Returns the repository's address.

    Raises:
        ValueError, OSError: as of `hub.local`.
    """
    with hub.reaching(repository) as package:
        api = package.HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        stale = (set(api.list_repo_files(repository)) & set(hub.FILES)) - set(files)
        operations = [package.CommitOperationAdd(name, content) for name, content in files.items()]
        operations += [package.CommitOperationDelete(name) for name in sorted(stale)]
        api.create_commit(repository, operations, commit_message="Push a model folder")
    return str(address)


def card(folder: Path, meta: dict, *, license: str | None = None) -> str:
    """The folder's card, or a short one, below the header that the hub reads; a card that has a header stays as it is.

    Args:
        meta: what ``meta.json`` holds.
        license: None leaves it out. ValueError if it is more than a word.
    """
    if license and not re.fullmatch(r"[\w.-]+", license, re.ASCII):
        raise ValueError(f"Expected one word as licence, such as mit. Received: {imaging.printable(license)}")
    files = [folder / name for name in hub.CARD_FILES if (folder / name).is_file()]
    text = files[0].read_text(encoding="utf-8") if files else _short_card(folder, meta)
    if text.startswith("---\n"):
        return text
    kind = meta.get("kind", "label")
    formats = ("keras", "litert") if (folder / runtime.FLOAT_FILE).is_file() else ("keras",)
    known = {"license": license, "library_name": LIBRARY, "pipeline_tag": PIPELINES.get(kind)}
    header = [f"{key}: {value}" for key, value in known.items() if value]
    header += ["tags:", *(f"- {tag}" for tag in TAGS[kind] + formats)]
    return "\n".join(["---", *header, "---", "", text])


def _short_card(folder, meta):
    """What ``meta.json`` tells, for a folder without a card."""
    names = ", ".join(imaging.printable(name) for name in meta.get("class_names", runtime.VERDICTS))
    lines = [f"# {imaging.printable(folder.resolve().name)}", "", f"It tells apart: {names}. It shows where it looked."]
    if "test_accuracy" in meta:
        lines += ["", f"Accuracy on held-out images: {meta['test_accuracy']}"]
    return "\n".join(lines) + "\n"
