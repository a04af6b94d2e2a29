"""Names from outside, of files and of classes: drawn, printed and written by libraries that are strict about them."""

import json
import os
import shutil
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
from samples import photo, write

from utils import imaging, runtime
from utils.__main__ import main
from utils.commands import annotate, drawing, sources
from utils.commands.common import DEFAULT_MODEL

HAND = DEFAULT_MODEL.parents[1] / "hands" / "pa" / "00.jpg"
ODD = {  # the name of a file without its suffix: the name of what is made of it
    "caf\udce9": "caf%DCE9", "写\udcff真": "写%DCFF真", "a\nb": "a%0Ab", "a\r\tb": "a%0D%09b", "\x1b[31m": "%1B[31m",
    "a\u2028b": "a%2028b", "a\x85b": "a%85b", "\ufffe": "%FFFE", " a ": "a", "写真\u3000１": "写真\u3000１",
    "plain": "plain",
}


@pytest.mark.parametrize("odd, name", ODD.items(), ids=map(ascii, ODD))
def test_a_name_says_what_it_was(odd, name):
    assert imaging.file_name(odd) == name
    assert imaging.printable(odd).strip() == name and imaging.printable(name) == name


@pytest.mark.parametrize("long", ["a" * 181, "é" * 120, "写" * 80, "👩" * 60, "\udcff" * 100])
def test_a_long_name_is_cut_and_stays_one_of_its_own(long):
    names = {imaging.file_name(long), imaging.file_name(long + "b"), imaging.file_name(long + "c")}
    assert len(names) == 3 and all(len(name.encode()) <= 180 for name in names)
    name = imaging.file_name(long, 60)
    assert len(name.encode()) <= 60 and imaging.printable(long).startswith(name.rpartition("~")[0])


def test_what_would_be_no_name_gets_one():
    assert imaging.file_name("") == imaging.file_name(" . ") == "_" and imaging.file_name("a/b") == "a%2Fb"


def test_names_stay_different(tmp_path):
    for odd in ("a\nb", "a%0Ab", "\udce9", "\udce8"):
        (tmp_path / f"{odd}.jpg").touch()
    names = [name for _, name in imaging.image_files([tmp_path])]
    assert sorted(names) == ["%DCE8", "%DCE9", "a%0Ab", "a%0Ab_2"]


@pytest.mark.parametrize("name", ["a" * 251 + ".jpg", "é" * 125 + ".png", "\udcff" * 250 + ".png"])
def test_any_name_that_the_disk_takes_can_be_written(name, tmp_path):
    imaging.write_image(tmp_path / name, photo())
    assert os.listdir(tmp_path) == [name]  # nothing else is left
    with pytest.raises(RuntimeError), imaging.atomic_write(tmp_path / name) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("text", [*ODD, "\ud800", "🫨" * 9, "ก็", "a" * 3000])
def test_any_text_can_be_drawn(text):
    """Half a character was the end of the process in OpenCV."""
    picture = np.full((60, 90, 3), 128, np.uint8)
    drawing.draw_text(picture, f"{text} 0.5", corner=(0, 60), lowest=60)
    assert (picture != 128).any()


def test_an_annotated_folder_of_odd_names(tmp_path):
    folder, out = tmp_path / "fo\udce9\nto", tmp_path / "out\udcff"
    folder.mkdir()
    for odd in ODD:
        shutil.copy(HAND, folder / f"{odd}.jpg")
    arguments = ["annotate", str(folder), "--out", str(out)]
    assert main(arguments) == main(arguments) == 0  # the second resumes
    listed = (out / "ImageSets/Main/trainval.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(listed) == sorted(ODD.values())
    for name in listed:
        assert (out / f"images/{name}.jpg").read_bytes() == HAND.read_bytes()
        assert ElementTree.parse(out / f"Annotations/{name}.xml").find("filename").text == f"{name}.jpg"
    coco = json.loads((out / "coco.json").read_text())
    assert {image["file_name"] for image in coco["images"]} == {f"{name}.jpg" for name in ODD.values()}
    assert len((out / "journal.jsonl").read_text().splitlines()) == 1 + len(ODD)


@pytest.fixture(scope="module")
def renamed(tmp_path_factory):
    """The shipped explainer, whose classes have odd names, in a folder that has one, too."""
    folder = tmp_path_factory.mktemp("models") / "mod\udce9le"
    folder.mkdir()
    source = DEFAULT_MODEL / runtime.FLOAT_FILE
    metadata = runtime.read_metadata(source)
    names = ["caf\udce9", "a\nb", "x\x1b<&", "none"]
    metadata["class_names"] = [n if m != "none" else m for n, m in zip(names, metadata["class_names"], strict=True)]
    file = folder / runtime.FLOAT_FILE
    file.write_bytes(source.read_bytes()[: metadata["bytes"]])
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(runtime.METADATA_FILE, json.dumps(metadata))
    return folder


def test_class_names_that_no_xml_takes(renamed, tmp_path, capsys):
    out = tmp_path / "out"
    hands = [str(HAND.parents[1] / name / f"0{i}.jpg") for name in ("choki", "gu", "pa") for i in range(3)]
    assert main(["annotate", *hands, "--model", str(renamed), "--out", str(out)]) == 0
    categories = [category["name"] for category in json.loads((out / "coco.json").read_text())["categories"]]
    assert set(categories) <= {"caf%DCE9", "a%0Ab", "x%1B<&", "none"} and len(categories) == 3
    found = {ElementTree.parse(file).find("object/name").text for file in (out / "Annotations").iterdir()}
    assert found <= set(categories) and len(found) >= 2
    assert main(["demo", "--headless", "--source", hands[0], "--model", str(renamed)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["label"] in categories


def test_a_video_whose_name_is_not_unicode(tmp_path, capsys):
    import cv2

    clip = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(5):
        clip.write(np.full((48, 64, 3), 50 * i, np.uint8))
    clip.release()
    for name in ("cl\udce9p.avi", "a\nb.avi", "c" * 250 + ".avi"):
        os.replace(next(tmp_path.glob("*.avi")), tmp_path / name)
        saved = tmp_path / "out\udcff" / name
        saved.parent.mkdir(exist_ok=True)
        assert main(["demo", "--headless", "--source", str(tmp_path / name), "--save", str(saved)]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["frames"] == 5
        assert os.listdir(saved.parent) == [name]
        assert sum(1 for _ in sources.open_source(str(saved))) == 5
        saved.unlink()


def test_an_image_too_wide_for_jpeg_is_kept(tmp_path):
    wide = write(tmp_path / "wide.tif", np.zeros((1, 65501, 3), np.uint8))
    assert annotate.copy_or_reencode(wide, imaging.read_image(wide), tmp_path / "copy").name == "copy.png"
    assert imaging.read_image(tmp_path / "copy.png").shape == (1, 65501, 3)


def test_more_than_five_reasons_are_counted(tmp_path, capsys):
    for i in range(6):
        (tmp_path / f"{i}.jpg").touch()
    assert main(["explain", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("skipped 6 of 6: ") and error.count("Cannot read") == 5 and error.endswith(" and 1 more\n")
