"""Keep the notebooks in order: run them and store their outputs, write their badges and setup cells, make pages.

    python tests/notebooks.py execute [NOTEBOOK...]
    python tests/notebooks.py badges [OWNER/NAME]
    python tests/notebooks.py page NOTEBOOK PAGE
"""

import argparse
import base64
import copy
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from jinja2 import DictLoader
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 2_000_000
KEPT = ("tags", "cellView", "jupyter")  # of a cell's metadata
WIDGET = "application/vnd.jupyter.widget-view+json"  # names a widget of a kernel that is gone: not stored

# The first code cell of every notebook, folded; OWNER/NAME comes from CITATION.cff.
SETUP_CELL = """\
#@title Setup
# Colab: fetch the project and what it needs. Anywhere else: only make sure that `utils` is this project's.
import os
import subprocess
import sys

IN_COLAB = "google.colab" in sys.modules


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"`{' '.join(command)}` failed: {result.stderr.strip()}"


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
SETUP_METADATA = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["setup"]}
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/{file})"
    " [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
    "(https://kaggle.com/kernels/welcome?src=https://github.com/{repository}/blob/main/{file})"
)
METADATA = {  # of a notebook; Colab opens its table of contents
    "colab": {"toc_visible": True},
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


# Jupyter's own template without what it takes from the network: require.js, MathJax and Mermaid, none of them needed.
PAGE_TEMPLATE = """\
{% extends "lab/index.html.j2" %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}
<style>
main { max-width: 66rem; margin: auto; }
.jp-RenderedText { padding-left: 0.7rem; }
</style>
{% endblock %}
"""


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


def lighter(png: str) -> dict[str, str]:
    """The picture as JPEG if that takes less than half: so photos are. Plots stay as they are, PNG."""
    file = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").save(file, format="jpeg", quality=88, optimize=True)
    jpeg = base64.b64encode(file.getvalue()).decode()
    return {"image/jpeg": jpeg} if len(jpeg) < len(png) / 2 else {"image/png": png}


def executed(path: Path) -> nbformat.NotebookNode:
    """A notebook after a run in its folder; what fails or writes to stderr ends the program with a message."""
    notebook = nbformat.read(path, as_version=4)
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
            data = output.get("data", {})
            data.pop(WIDGET, None)
            if "image/png" in data:
                data |= lighter(data.pop("image/png"))
        if any(output.get("name") == "stderr" for output in cell.get("outputs", [])):
            sys.exit(f"{path.name} is left as it was, a cell writes to stderr:\n{cell.source}\n{cell.outputs}")
    return notebook


def execute(path: Path) -> None:
    """Run a notebook and store the outputs, or leave the file alone and say what went wrong."""
    notebook = executed(path)
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in KEPT}
    notebook.metadata = nbformat.from_dict(METADATA)
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
        old_badge = r"\[!\[Open in Colab\]\(\S+\)\]\(\S+\)( \[!\[Open in Kaggle\]\(\S+\)\]\(\S+\))?"
        first.source, found = re.subn(old_badge, badge, first.source)
        if not found:
            first.source += f"\n\n{badge}"
        if len(notebook.cells) == 1 or "google.colab" not in notebook.cells[1].source:
            notebook.cells.insert(1, nbformat.v4.new_code_cell())
        notebook.cells[1].source = setup_cell(new)
        notebook.cells[1].metadata = nbformat.from_dict(SETUP_METADATA)
        write(path, nbformat.writes(notebook) + "\n")


def page(notebook: nbformat.NotebookNode, folder: Path) -> str:
    """The page of a notebook that lies in `folder`: pictures in it, no set-up code, nothing to be fetched."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if "setup" not in cell.metadata.get("tags", [])]
    first = notebook.cells[0]
    # The badges' pictures lie elsewhere: links in words take their place.
    first.source = re.sub(r"!\[(Open in (?:Colab|Kaggle))\]\(\S+?\)", r"\1", first.source)
    notebook.metadata["title"] = re.search(r"^# (.+)", first.source, re.M)[1]
    template = DictLoader({"page": PAGE_TEMPLATE})
    exporter = HTMLExporter(extra_loaders=[template], template_file="page", embed_images=True)
    return exporter.from_notebook_node(notebook, {"metadata": {"path": str(folder)}})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["execute", "badges", "page"])
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
    if arguments.command == "page":
        if len(names) != 2:
            parser.error("name a notebook and the page to be made of it")
        path = Path(names[0]).resolve()
        return write(Path(names[1]), page(executed(path), path.parent))
    for path in map(Path, names) if names else notebooks():
        start = time.monotonic()
        execute(path.resolve())
        print(f"{path.name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
