"""``index`` and ``search``: what is in the index, whatever happens to it, and the images that are found."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from utils import imaging, runtime
from utils.__main__ import main
from utils.commands import image_index, searching
from utils.commands.common import DEFAULT_MODEL

HANDS = DEFAULT_MODEL.parents[1] / "hands"
FILE = DEFAULT_MODEL / runtime.FLOAT_FILE
NAMES = {f"{name}/{i:02d}.jpg" for name in ("choki", "gu", "none", "pa") for i in range(10)}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    place = tmp_path_factory.mktemp("indices") / "index"
    assert main(["index", str(HANDS), "--out", str(place)]) == 0
    return place


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(HANDS / "gu", folder)
    return folder


def run(*words):
    return main([str(word) for word in words])


def names(place):
    return sorted(record["name"] for record in image_index.read(place).records)


def test_the_index_holds_the_embedding_of_each_image(index):
    read = image_index.read(index)
    assert sorted(NAMES) == names(index) and read.embeddings.shape == (40, 128)  # masks are no images
    explainer = runtime.Explainer(FILE)
    for record, embedding in list(zip(read.records, read.embeddings, strict=True))[::13]:
        image = imaging.read_image(HANDS / record["name"])
        np.testing.assert_allclose(explainer.explain(image).embeddings[0], embedding, atol=1e-6)
        assert record["size"] == (HANDS / record["name"]).stat().st_size
    assert {path.suffix for path in index.rglob("*") if path.is_file()} == {".json", ".npz"}


def test_the_nearest_is_the_image_itself_and_then_its_class(index, tmp_path, capsys):
    assert run("search", HANDS / "pa" / "00.jpg", "--index", index, "--top", 6, "--out", tmp_path / "hits.png") == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["1.0000", "pa/00.jpg"] and len(lines) == 6
    assert all(name.startswith("pa/") for _, name in lines)
    assert [float(score) for score, _ in lines] == sorted((float(score) for score, _ in lines), reverse=True)
    with Image.open(tmp_path / "hits.png") as sheet:
        assert sheet.size == (4 * (2 * searching.TILE + searching.GAP), 2 * (searching.TILE + searching.GAP))


def test_a_part_of_an_image_is_searched_by_the_sum_of_its_cells(index):
    explainer = runtime.Explainer(FILE)
    image = imaging.read_image(HANDS / "pa" / "00.jpg")
    whole, part = searching.cells_of(explainer, image), searching.cells_of(explainer, image, [0, 0, 80, 160])
    other = searching.cells_of(explainer, image, [80, 0, 160, 160])
    np.testing.assert_allclose(part.embedding + other.embedding, whole.embedding, atol=1e-5)
    all_of_it = searching.cells_of(explainer, image, [0, 0, 160, 160])
    np.testing.assert_allclose(all_of_it.embedding, whole.embedding, atol=1e-6)


@pytest.mark.parametrize("region", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 161, 5), (9, 9, 3, 12)])
def test_a_region_that_is_none(region, index, capsys):
    assert run("search", HANDS / "pa" / "00.jpg", "--index", index, "--region", *region) == 2
    assert "must lie in the image and hold a pixel. Received: " in capsys.readouterr().err


def test_cells_at_the_border_count_in_part():
    np.testing.assert_allclose(searching._inside(0.25, 0.625, 0, 1, 4), [0, 1, 0.5, 0])
    np.testing.assert_allclose(searching._inside(0.25, 0.5, 0.5, 1, 4), 0)  # of a network that crops
    np.testing.assert_allclose(searching._inside(0, 0.25, 1, 0, 4), [0, 0, 0, 1])  # of one that mirrors


def test_what_is_the_same_twice(photos, tmp_path, capsys):
    shutil.copy(photos / "03.jpg", photos / "copy.jpg")
    assert run("index", photos, "--out", tmp_path / "index") == 0
    capsys.readouterr()
    assert run("search", "--index", tmp_path / "index", "--duplicates", "--above", "0.99999") == 0
    assert capsys.readouterr().out == "1.0000\t03.jpg\tcopy.jpg\n"


def test_duplicates_over_several_blocks(monkeypatch, rng):
    monkeypatch.setattr(image_index, "BLOCK", 3)
    vectors = rng.standard_normal((11, 8)).astype(np.float32)
    vectors[9] = vectors[1]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = image_index.Index(HANDS, "", [{"name": str(i)} for i in range(11)], vectors)
    assert [pair[1:] for pair in index.duplicates(0.99)] == [("1", "9")]


def test_only_what_is_new_is_looked_at_and_what_is_gone_is_dropped(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_index, "PART_SIZE", 4)
    place = tmp_path / "index"
    assert run("index", photos, "--out", place) == 0
    (photos / "02.jpg").unlink()
    (photos / "05.jpg").touch()
    os.utime(photos / "05.jpg", ns=(1, 1))
    shutil.copy(HANDS / "pa" / "01.jpg", photos / "new.jpg")
    capsys.readouterr()
    assert run("index", photos, "--out", place) == 0
    assert capsys.readouterr().out.startswith("2 new images, 8 from before, 2 dropped;")
    assert names(place) == sorted(path.name for path in photos.iterdir())
    assert run("index", photos, "--out", place) == 0
    assert capsys.readouterr().out.startswith("0 new images, 10 from before, 0 dropped;")


def test_unreadable_images_are_named(photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes((photos / "01.jpg").read_bytes()[:500])
    assert run("index", photos, "--out", tmp_path / "index") == 0
    assert "skipped 1 of 11: Cannot read " in capsys.readouterr().err and len(names(tmp_path / "index")) == 10


def test_an_index_that_is_killed_again_and_again_is_complete_in_the_end(tmp_path):
    """Each run dies in the middle of writing its second part; nothing is lost of what was there, nothing is twice."""
    place, folder = tmp_path / "index", tmp_path / "photos"
    shutil.copytree(HANDS, folder)
    code = (
        "import os, signal, sys\n"
        "from utils.commands import image_index\n"
        "from utils.__main__ import main\n"
        "image_index.PART_SIZE, save, calls = 3, image_index.np.savez, []\n"
        "def savez(file, **arrays):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2:\n"
        "        file.write(b'PK half a part')\n"
        "        file.flush()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    save(file, **arrays)\n"
        "image_index.np.savez = savez\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for turn in range(10):
        killed = subprocess.run([sys.executable, "-c", code, "index", folder, "--out", place], capture_output=True)
        assert killed.returncode == -signal.SIGKILL
        assert len(names(place)) == len(set(names(place))) == 3 * (turn + 1)
    assert run("index", folder, "--out", place) == 0
    assert names(place) == sorted(NAMES)


def test_a_kill_at_any_time(photos, tmp_path):
    place = tmp_path / "index"
    for wait in (0.2, 0.35, 0.5):
        process = subprocess.Popen([sys.executable, "-m", "utils", "index", photos, "--out", place])
        time.sleep(wait)
        process.kill()
        process.wait()
    assert run("index", photos, "--out", place) == 0
    assert names(place) == sorted(path.name for path in photos.iterdir())


def test_one_sentence_for_each_problem(index, tmp_path, capsys):
    empty, broken, other = tmp_path / "empty", tmp_path / "broken", tmp_path / "other"
    empty.mkdir()
    (tmp_path / "text.jpg").write_text("no image")
    shutil.copytree(index, broken)
    part = next((broken / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:-100])
    shutil.copytree(index, other)
    about = json.loads((other / "index.json").read_text())
    (other / "index.json").write_text(json.dumps(about | {"model": "0" * 64}))
    hand = HANDS / "gu" / "00.jpg"
    for words, sentence in (
        (("index", empty, "--out", tmp_path / "x"), "There is no image file in"),
        (("index", tmp_path / "nowhere", "--out", tmp_path / "x"), "There is no folder"),
        (("index", HANDS, "--out", HANDS), "holds other files; choose a new folder for the index"),
        (("index", HANDS / "gu", "--out", index), "is of another folder"),
        (("index", HANDS, "--out", other), "was made with another model"),
        (("index", HANDS, "--out", broken), "The index is damaged: "),
        (("search", hand, "--index", broken), "The index is damaged: "),
        (("search", hand, "--index", other), "was made with another model"),
        (("search", hand, "--index", empty), "There is no index in"),
        (("search", tmp_path / "text.jpg", "--index", index), "it is not an image in a known format"),
        (("search", "--index", index), "Name an IMAGE to search by, or --duplicates"),
        (("search", hand, "--index", index, "--duplicates"), "Name an IMAGE to search by, or --duplicates"),
        (("search", hand, "--index", index, "--top", 0), "Expected --top >= 1"),
        (("search", hand, "--index", index, "--int8"), "was made with another model"),
        (("search", hand, "--index", index, "--out", tmp_path / "hits.doc"), "An image file must end in one of"),
    ):
        assert run(*words) == 2, words
        error = capsys.readouterr().err.removeprefix(f"left out 1: {HANDS}/masks/\n")
        assert sentence in error and error.count("\n") == 1 and "Traceback" not in error, error
    (other / "index.json").write_text("[]")
    assert run("search", hand, "--index", other) == 2
    assert "is damaged, or of another version" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_nothing_is_unpickled(tmp_path, index):
    place = tmp_path / "index"
    shutil.copytree(index, place)
    part = next((place / "parts").iterdir())
    np.savez(part, embeddings=np.array([print], object), records=np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="The index is damaged"):
        image_index.read(place)
