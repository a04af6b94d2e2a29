"""Keep the notebooks in order: run them and store their outputs, write their badges and setup cells.

    python tests/notebooks.py execute [NOTEBOOK...]
    python tests/notebooks.py badges [OWNER/NAME]
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 2_000_000
WIDGET = "application/vnd.jupyter.widget-view+json"  # names a widget of a kernel that is gone: not stored

# The first code cell of every notebook; OWNER/NAME comes from CITATION.cff.
SETUP_CELL = """\
# Colab: fetch the project and what it needs. Anywhere else: only make sure that `utils` is this project's.
import os
import subprocess
import sys

IN_COLAB = "google.colab" in sys.modules


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")


if IN_COLAB:
    if not os.path.exists("utils/faster_gradcam.py"):
        if not os.path.exists("faster-grad-cam/utils/faster_gradcam.py"):
            source = "https://github.com/OWNER/NAME.git"
            run("git", "clone", "--quiet", "--depth=1", source, "faster-grad-cam")
        os.chdir("faster-grad-cam")
    run(sys.executable, "-m", "pip", "install", "--quiet", "-r", "requirements.txt")

assert os.path.exists("utils/faster_gradcam.py"), f"Open this notebook in the project's folder, not in {os.getcwd()}."
sys.path.insert(0, os.getcwd())
if getattr(sys.modules.get("utils"), "__file__", None) != os.path.abspath("utils/__init__.py"):
    for name in [name for name in sys.modules if name.split(".")[0] == "utils"]:
        del sys.modules[name]  # another package of this common name
import utils

assert os.path.samefile(utils.__path__[0], "utils"), f"`utils` is not this project's: {utils.__path__[0]}"
"""
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/{file})"
)


def notebooks() -> list[Path]:
    return sorted(ROOT.glob("*.ipynb"))


def repository() -> str:
    """OWNER/NAME as CITATION.cff has it."""
    link = re.search(r"^repository-code: https://github\.com/(\S+/\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    if not link:
        sys.exit("CITATION.cff has no line `repository-code: https://github.com/OWNER/NAME`.")
    return link[1]


def setup_cell(repository: str) -> str:
    return SETUP_CELL.replace("OWNER/NAME", repository).strip()


def write(path: Path, text: str) -> None:
    """Replace a file as a whole: whatever happens, the old or the new one is there."""
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def execute(path: Path) -> None:
    """Run a notebook in its folder and store the outputs, or leave the file alone and say what went wrong."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
    where = {"metadata": {"path": str(path.parent)}}
    quiet = ["--IPKernelApp.capture_fd_output=False"]  # as in nbval, what Python prints counts, not C libraries' logs
    options = {"record_timing": False, "coalesce_streams": True, "store_widget_state": False}
    options |= {"kernel_name": "python3", "timeout": 600, "resources": where, "extra_arguments": quiet}
    try:
        NotebookClient(notebook, **options).execute(stderr=subprocess.DEVNULL)
    except (CellExecutionError, DeadKernelError, TimeoutError) as error:
        sys.exit(f"{path.name} is left as it was: {error}")
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
        if any(output.get("name") == "stderr" for output in cell.get("outputs", [])):
            sys.exit(f"{path.name} is left as it was, a cell writes to stderr:\n{cell.source}\n{cell.outputs}")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > MAX_BYTES:
        sys.exit(f"{path.name} is left as it was: with outputs it has {len(text):,} bytes, allowed are {MAX_BYTES:,}.")
    write(path, text)


def badges(new: str) -> None:
    """Make OWNER/NAME `new` in CITATION.cff, README.md and every notebook."""
    old = repository()

    def renamed(text: str) -> str:
        return re.sub(rf"(github\.com/|google\.com/github/){re.escape(old)}(?![\w-])", rf"\g<1>{new}", text)

    for path in [ROOT / "CITATION.cff", ROOT / "README.md"]:
        if path.exists():
            write(path, renamed(path.read_text(encoding="utf-8")))
    for path in notebooks():
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = renamed(cell.source)
        first = notebook.cells[0]
        badge = BADGE.format(repository=new, file=path.name)
        first.source, found = re.subn(r"\[!\[Open in Colab\]\(\S+\)\]\(\S+\)", badge, first.source)
        if not found:
            first.source += f"\n\n{badge}"
        if len(notebook.cells) == 1 or "google.colab" not in notebook.cells[1].source:
            notebook.cells.insert(1, nbformat.v4.new_code_cell())
        notebook.cells[1].source = setup_cell(new)
        write(path, nbformat.writes(notebook) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["execute", "badges"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all notebooks; OWNER/NAME of CITATION.cff")
    arguments = parser.parse_args()
    names = [name for name in arguments.names if name]
    if arguments.command == "badges":
        new = " ".join(names) or repository()
        if not re.fullmatch(r"[A-Za-z0-9-]+/[\w.-]+", new, re.ASCII):
            parser.error(f"the repository is named OWNER/NAME; received: {new}")
        return badges(new)
    # What is stored must come from the repository alone, whatever lies on this machine.
    os.environ["FASTER_GRAD_CAM_OFFLINE"] = "1"
    for variable in ("JANKEN_DATASET", "JANKEN_MASKS", "IMAGENET_WEIGHTS"):
        os.environ.pop(variable, None)
    for path in map(Path, names) if names else notebooks():
        start = time.monotonic()
        execute(path.resolve())
        print(f"{path.name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
