"""The notebooks without running them: form, stored outputs, links; and the setup cell in a make-believe Colab."""

import base64
import io
import os
import re
import shutil
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nbformat
import notebooks
import numpy as np
import pytest
from nbclient import NotebookClient
from nbval.plugin import comment_markers, get_sanitize_patterns, metadata_tags
from PIL import Image

ROOT = notebooks.ROOT
REPOSITORY = notebooks.repository()
MAX_LINES, MAX_MEDIAN_LINES = 30, 6  # of a code cell
MIN_ASSERTS = 12  # in a notebook, those of the setup cell not counted
MAX_UNCHECKED = 0.03  # share of code cells that nbval does not compare
ASSERT = re.compile(r"^\s*(?:assert\b|np\.testing\.assert_)", re.M)
ABSOLUTE_PATH = re.compile(r"(?<![\w.])/(home|tmp|root|work|content|mnt|Users|private|var/folders)/|\b[A-Z]:\\+\w")
# With a comment or as a form field, over several lines, or a comment of its own.
SETTING = re.compile(r"[A-Z][A-Z0-9_]* = .*  # (\w|@param \{type)|[A-Z][A-Z0-9_]* = [(\[{]$|[# )\]}]|$")
COLAB_LINK = re.compile(r"https://colab\.research\.google\.com/github/([^/\s]+/[^/\s]+)/blob/main/([^)\s\"]+)")


@pytest.fixture(scope="module", params=notebooks.notebooks(), ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture(scope="module")
def cells(path):
    return nbformat.read(path, as_version=4).cells


@pytest.fixture(scope="module")
def code(cells):
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


@pytest.fixture(scope="module")
def text(cells):
    """All markdown as one text."""
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def is_preamble(cell) -> bool:
    """Setup, imports, settings: one block that needs no prose between its cells."""
    lines = [line for line in cell.source.splitlines() if line and not line.startswith(("#", " ", ")"))]
    only_names = all(re.match(r"(import|from) |[A-Z][A-Z0-9_, ]* = ", line) for line in lines)
    return only_names or "setup" in cell.metadata.get("tags", [])


def tagged(cells, tag: str):
    """The one cell with this tag."""
    found = [cell for cell in cells if tag in cell.metadata.get("tags", [])]
    assert len(found) == 1, f"{len(found)} cells have the tag {tag}"
    return found[0]


def test_is_valid_and_small(path):
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))
    assert path.stat().st_size <= notebooks.MAX_BYTES


def test_metadata_is_normalised(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info", "colab"} and notebook.metadata.colab.toc_visible
    assert {key for cell in notebook.cells for key in cell.metadata} <= set(notebooks.KEPT)


def test_ran_from_top_to_bottom(code):
    # nbval compares nothing where the count is missing.
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_stores_no_error_and_no_stderr(code):
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type != "error", output
        assert output.get("name") != "stderr", output.text


def test_stores_no_widget(code):
    for output in (output for cell in code for output in cell.outputs):
        assert notebooks.WIDGET not in output.get("data", {}), "its kernel is gone; run `make notebooks`"


def test_prints_numbers_not_truth(code):
    for text in (str(part) for cell in code for output in cell.outputs for part in text_parts(output)):
        assert not re.search(r"\bTrue_?\W*$", text, re.M), f"a reader wants the number: {text}"


def test_names_no_absolute_path(cells):
    for cell in cells:
        outputs = [str(part) for output in cell.get("outputs", []) for part in text_parts(output)]
        for part in [cell.source, *outputs]:
            assert not ABSOLUTE_PATH.search(part), part


def text_parts(output):
    yield output.get("text", "")
    yield from (value for kind, value in output.get("data", {}).items() if not kind.startswith("image/"))


def test_markers_are_known_and_few(code):
    unchecked = 0
    for cell in code:
        marked = [line for line in cell.source.splitlines() if "NBVAL" in line.upper()]
        for line in marked:
            assert line.removeprefix("# ") in comment_markers, f"not a marker alone on its line: {line}"
        assert not set(cell.metadata.get("tags", [])) & set(metadata_tags), "write markers in plain sight"
        unchecked += any("CHECK_OUTPUT" not in line for line in marked)
    assert unchecked <= MAX_UNCHECKED * len(code)


def test_opens_with_title_badge_and_setup(path, cells, text):
    assert len(re.findall(r"^# ", text, re.M)) == 1
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert notebooks.BADGE.format(repository=REPOSITORY, file=path.name) in cells[0].source, "run `make badges`"
    assert cells[1].cell_type == "code"
    assert cells[1].source == notebooks.setup_cell(REPOSITORY), "run `make badges`"
    assert cells[1].metadata == notebooks.SETUP_METADATA, "run `make badges`"


def test_settings_stand_in_one_tagged_cell(code):
    settings = tagged(code, "parameters")
    for line in settings.source.splitlines():
        assert re.match(SETTING, line), f"no setting: {line}"
    for cell in code[code.index(settings) + 1 :]:
        assert not re.search(r"^[A-Z][A-Z0-9_]+ = ", cell.source, re.M), f"a setting further down: {cell.source}"


def test_uses_no_magic(code):
    for cell in code:
        assert not re.search(r"^\s*[!%]", cell.source, re.M), cell.source


def test_cells_are_short(code):
    lengths = [len(cell.source.splitlines()) for cell in code]
    assert max(lengths) <= MAX_LINES, code[lengths.index(max(lengths))].source
    assert statistics.median(lengths) <= MAX_MEDIAN_LINES


def test_steps_are_introduced(cells):
    kinds = ["p" if cell.cell_type == "code" and is_preamble(cell) else cell.cell_type[0] for cell in cells]
    steps = "".join(kinds)  # (m)arkdown, (p)reamble, (c)ode
    assert "pc" not in steps, "no word between the settings and the first step"
    assert "ccc" not in steps, "no word between three steps"


def test_images_have_alt_text(text):
    assert not re.search(r"!\[\s*\]", text)
    for tag in re.findall(r"<img\b[^>]*>", text):
        assert re.search(r"\balt=[\"'][^\"']", tag), tag


def test_claims_are_asserted(code):
    assert sum(len(ASSERT.findall(cell.source)) for cell in code[1:]) >= MIN_ASSERTS


def test_every_numbered_section_checks_its_claim(cells):
    heading, checked = None, {}
    for cell in cells:
        for line in cell.source.splitlines():
            if cell.cell_type == "markdown" and line.startswith("## "):
                heading = line if re.match(r"## \d+\. ", line) else None
                checked.setdefault(heading, False)
            elif cell.cell_type == "code" and ASSERT.match(line):
                checked[heading] = True
    checked.pop(None, None)
    assert all(checked.values()), [heading for heading, done in checked.items() if not done]


def test_links_name_this_repository():
    pages = [ROOT / "README.md", *notebooks.notebooks()]
    for page in (page for page in pages if page.exists()):
        for owner_and_name, file in COLAB_LINK.findall(page.read_text(encoding="utf-8")):
            assert owner_and_name == REPOSITORY, f"{page.name}: run `make badges`"
            assert (ROOT / file).exists(), f"{page.name} links to {file}"


def names(file: str) -> set[str]:
    return set(re.findall(r"^[\w.-]+", (ROOT / file).read_text().lower(), re.M))


def test_every_requirement_is_pinned():
    pins = (ROOT / "tests/requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in pins)
    assert names("requirements.txt") <= names("tests/requirements.txt"), "run `make pins`"


def test_badges_rewrites_everything(tmp_path, monkeypatch):
    (tmp_path / "CITATION.cff").write_text("repository-code: https://github.com/old/name\n")
    (tmp_path / "README.md").write_text(
        "https://github.com/old/name.git https://github.com/old/name-2 https://github.com/old/name#top\n"
        "https://colab.research.google.com/github/old/name/blob/main/A.ipynb"
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A")]), tmp_path / "A.ipynb")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)

    notebooks.badges("new/home")
    notebooks.badges("new/home")  # a second time changes nothing

    assert notebooks.repository() == "new/home"
    assert (tmp_path / "README.md").read_text() == (
        "https://github.com/new/home.git https://github.com/old/name-2 https://github.com/new/home#top\n"
        "https://colab.research.google.com/github/new/home/blob/main/A.ipynb"
    )
    title, setup = nbformat.read(tmp_path / "A.ipynb", as_version=4).cells
    assert title.source == "# A\n\n" + notebooks.BADGE.format(repository="new/home", file="A.ipynb")
    assert setup.source == notebooks.setup_cell("new/home")
    assert setup.metadata == notebooks.SETUP_METADATA
    assert sorted(os.listdir(tmp_path)) == ["A.ipynb", "CITATION.cff", "README.md"]


@pytest.mark.parametrize("cell", ["import sys; print('x', file=sys.stderr)", "1 / 0"])
def test_a_failed_run_leaves_the_notebook_alone(cell, tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), tmp_path / "A.ipynb")
    before = (tmp_path / "A.ipynb").read_bytes()
    with pytest.raises(SystemExit, match=r"A\.ipynb is left as it was"):
        notebooks.execute(tmp_path / "A.ipynb")
    assert (tmp_path / "A.ipynb").read_bytes() == before


def test_a_run_keeps_tags_and_folds(tmp_path):
    metadata = {"tags": ["parameters"], "cellView": "form", "scrolled": True}
    cell = nbformat.v4.new_code_cell("print(1)", metadata=metadata)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "A.ipynb")
    notebooks.execute(tmp_path / "A.ipynb")
    (cell,) = nbformat.read(tmp_path / "A.ipynb", as_version=4).cells
    assert cell.metadata == {"tags": ["parameters"], "cellView": "form"}
    assert (cell.execution_count, cell.outputs[0].text) == (1, "1\n")


def test_decimals_are_not_compared():
    """What one CPU rounds differently from another: by the one rule that nbval gets, as nbval reads it."""
    ((regex, by),) = get_sanitize_patterns((ROOT / "tests" / "nbval.cfg").read_text())
    for stored, new in [("heat 0.84", "heat -0.9"), ("9 of 30 kept", "29 of 30 kept"), ("a   1.25 ms", "a  12.50 ms")]:
        assert re.sub(regex, by, stored) == re.sub(regex, by, new)
    for stored, new in [("(40, 96)", "(40, 64)"), ("9 of 30", "9 of 31"), ("a 0.5", "b 0.5"), ("gu 3", "gu 4")]:
        assert re.sub(regex, by, stored) != re.sub(regex, by, new)


def test_photos_are_stored_as_jpeg_and_plots_as_png():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    line = np.full((64, 64, 3), 255, np.uint8)
    line[32] = 0
    for pixels, kind in ((noise, "image/jpeg"), (line, "image/png")):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="png")
        ((stored, data),) = notebooks.lighter(base64.b64encode(file.getvalue()).decode()).items()
        assert stored == kind and Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 64)


@pytest.fixture
def colab(tmp_path):
    """A folder like Colab's: `google.colab` is loaded, the repository is near, nothing else is there."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    stubs = tmp_path / "stubs"
    (stubs / "google" / "colab").mkdir(parents=True)
    (stubs / "google" / "colab" / "__init__.py").touch()
    (stubs / "sitecustomize.py").write_text("import google.colab\n")
    (stubs / "utils.py").write_text("# another package of the same name\n")

    origin = tmp_path / "origin"
    shutil.copytree(ROOT / "utils", origin / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    (origin / "utils" / "faster_gradcam.py").touch()
    requirements = (ROOT / "requirements.txt").read_text()
    try:
        version("opencv-python")
    except PackageNotFoundError:  # a machine without libGL
        requirements = requirements.replace("opencv-python", "opencv-python-headless")
    (origin / "requirements.txt").write_text(requirements)
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--no-verify", "--message=all"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=origin, check=True)

    content = tmp_path / "content"
    content.mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(stubs),
        "PIP_NO_INDEX": "1",  # everything is there, so pip has nothing to ask for
        "PIP_CONFIG_FILE": os.devnull,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{origin.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{REPOSITORY}.git",
    }
    return content, environment


CHECK = "import utils.data\nassert utils.data.__file__ == os.path.join({folder!r}, 'utils', 'data.py')\n"


def python(source, folder, environment):
    return subprocess.run([sys.executable, "-c", source], cwd=folder, env=environment, capture_output=True, text=True)


def test_setup_cell_in_colab(colab):
    content, environment = colab
    setup = notebooks.setup_cell(REPOSITORY) + "\n"
    check = CHECK.format(folder=str(content / "faster-grad-cam"))
    first = python("import utils\n" + setup + check, content, environment)
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")

    # The kernel is restarted: back in the first folder, the clone is there. Then the cell is run a second time.
    (content / "faster-grad-cam" / "requirements.txt").write_text("")  # pip has had its turn
    again = python(setup + check + setup + check, content, environment)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert os.listdir(content) == ["faster-grad-cam"]


@pytest.mark.parametrize("lost", ["git", "pip"])
def test_setup_cell_fails_aloud(colab, lost):
    content, environment = colab
    if lost == "git":
        environment = environment | {"GIT_CONFIG_KEY_0": f"url.{(content / 'nowhere').as_uri()}.insteadOf"}
    else:
        (content / "utils").mkdir()
        (content / "utils" / "faster_gradcam.py").touch()
        (content / "requirements.txt").write_text("a-package-that-is-not-here\n")
    result = python(notebooks.setup_cell(REPOSITORY), content, environment)
    assert result.returncode
    assert re.search(r"AssertionError: `.*(git clone|pip install).*` failed: .*(nowhere|not-here)", result.stderr, re.S)


def test_setup_cell_elsewhere(tmp_path):
    setup = notebooks.setup_cell(REPOSITORY) + "\n"
    here = python(setup + CHECK.format(folder=str(ROOT)), ROOT, dict(os.environ))
    assert (here.returncode, here.stdout, here.stderr) == (0, "", "")
    elsewhere = python(setup, Path(tmp_path), dict(os.environ))
    assert "AssertionError: Open this notebook in the project's folder" in elsewhere.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        # Seed 0, with oneDNN and without, is what nbval runs in `make test` and in .ci/run.
        pytest.param({"settings": "SEED, RENDER_SEED = 1, 101"}, id="seed 1"),
        pytest.param({"settings": "SEED, RENDER_SEED = 2, 102"}, id="seed 2"),
        pytest.param({"setup": "IN_COLAB = True"}, id="real photos", marks=pytest.mark.real),
    ],
)
def test_training_notebook_with_other_settings(change, request):
    if "setup" in change:  # what Colab runs, on photos and weights that lie here
        request.getfixturevalue("janken_dataset")
        request.getfixturevalue("imagenet_weights")
    notebook = nbformat.read(ROOT / "Train_Faster-Grad-CAM.ipynb", as_version=4)
    settings = notebook.cells.index(tagged(notebook.cells, "parameters"))
    extra = {settings: change.get("setup", ""), settings + 2: change.get("settings", "")}
    for place, source in extra.items():
        notebook.cells.insert(place, nbformat.v4.new_code_cell(source))
    notebook.cells.append(nbformat.v4.new_code_cell("assert accuracy >= 0.97, accuracy"))
    run_all(notebook, change.get("environment", {}))


@pytest.mark.slow
@pytest.mark.real
def test_layerwise_notebook_with_imagenet_networks(imagenet_weights):
    """Of two networks one has weights; its best class of a picture of a cat is a cat."""
    notebook = nbformat.read(ROOT / "Layerwise_GradCAM.ipynb", as_version=4)
    settings = tagged(notebook.cells, "parameters")
    picture = imagenet_weights.parent / "images" / "cat_720p.jpg"
    settings.source += f'\nNETWORKS = ("resnet18", "mobilenet_v2")\nMY_IMAGE = {str(picture)!r}'
    check = 'assert "cat" in class_names["mobilenet_v2"][best["mobilenet_v2"][0]]'
    notebook.cells.append(nbformat.v4.new_code_cell(check))
    run_all(notebook, {"FASTER_GRAD_CAM_OFFLINE": "1"})
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "resnet18 is left out: Keras publishes no weights of resnet18" in printed


def run_all(notebook, environment):
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    client.execute(env=os.environ | environment)
