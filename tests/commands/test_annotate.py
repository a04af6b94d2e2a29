"""Annotation files: what is in them, who else can read them, what is rejected, and runs that are cut off."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image
from samples import photo, write

from utils import imaging, runtime
from utils.__main__ import main
from utils.commands import annotate, annotation_files
from utils.commands.annotation_files import SHEETS, TRAINVAL, YOLO
from utils.commands.common import DEFAULT_MODEL

HANDS = DEFAULT_MODEL.parents[1] / "hands"
NAMES = ("green", "red", "none")
SIDE = 24  # pixels, of the make-believe network's input
LEVELS = {"red": 0, "green": 1}


class FakeExplainer:
    """Sees red or green patches before black, and is the surer the brighter they are."""

    class_names, input_size, metadata = NAMES, (SIDE, SIDE), {"sha256": "0" * 64}

    def __init__(self, *_, **__):
        pass

    def explain(self, images):
        colour = images[0].astype(np.float32)
        red, green = colour[..., 0].sum(), colour[..., 1].sum()
        label = 2 if red + green < 255 else int(red > green)
        heat = colour.max(axis=2) * (label != 2)
        heat /= max(heat.max(), 1e-12)
        scores = np.full((1, 3), 0.1, np.float32)
        scores[0, label] += 0.02 + 0.3 * (colour.max() / 255) ** 8
        clusters = np.array([-1 if label == 2 else 0])
        return runtime.Explanation(np.array([label]), NAMES, scores, heat[None], clusters, np.ones((1, 1), np.float32))


def picture(*patches, height=48, width=72, level=255):
    """A black image with patches (colour, x0, y0, x1, y1)."""
    image = np.zeros((height, width, 3), np.uint8)
    for colour, x0, y0, x1, y1 in patches:
        image[y0:y1, x0:x1, LEVELS[colour]] = level
    return image


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(annotate, "Explainer", FakeExplainer)


@pytest.fixture
def photos(tmp_path):
    """Two that can be annotated, one of them with two patches, and one of each kind that cannot."""
    folder = tmp_path / "photos"
    for name, image in {
        "a.png": picture(("red", 12, 6, 30, 24)), "b.png": picture(("green", 3, 2, 18, 24), ("green", 36, 30, 66, 46)),
        "dark.png": picture(), "unsure.png": picture(("red", 12, 6, 30, 24), level=100),
        "cross.png": picture(("red", 0, 22, 72, 24), ("red", 36, 0, 39, 48)),
    }.items():
        imaging.write_image(folder / name, image)
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.jpg").touch()
    return folder


def run(photos, out, force=False, formats=annotate.FORMATS, **settings):
    files = imaging.image_files([photos])
    return annotate.run(
        files, "no file", out, settings=annotate.Settings(0.5, **settings), formats=formats, force=force
    )


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reasons(out):
    with (out / annotate.REJECTED).open(encoding="utf-8") as file:
        return {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}


def corners(out, name):
    """The boxes that VOC, COCO and YOLO state for one image, half open, in pixels."""
    root = ElementTree.parse(out / f"Annotations/{name}.xml").getroot()
    voc = [[int(item.find(f"bndbox/{tag}").text) for tag in ("xmin", "ymin", "xmax", "ymax")]
           for item in root.iter("object")]
    coco = json.loads((out / annotate.COCO).read_text())
    image = next(image for image in coco["images"] if Path(image["file_name"]).stem == name)
    boxes = [item["bbox"] for item in coco["annotations"] if item["image_id"] == image["id"]]
    lines = [[float(x) for x in line.split()[1:]] for line in (out / f"labels/{name}.txt").read_text().splitlines()]
    size = np.array([image["width"], image["height"]])
    yolo = [[*(np.array(v[:2]) - np.array(v[2:]) / 2) * size, *(np.array(v[:2]) + np.array(v[2:]) / 2) * size]
            for v in lines]
    return np.array(voc) - [1, 1, 0, 0], np.array([[x, y, x + w, y + h] for x, y, w, h in boxes]), np.array(yolo)


def test_boxes_are_the_patches_in_every_format(fake, photos, tmp_path):
    summary = run(photos, tmp_path / "out")  # two patches get a box each, unasked
    assert (summary.kept, summary.rejected, summary.unreadable, summary.explained) == (2, 5, 2, 7)
    for name, truth in {"a": [[12, 6, 30, 24]], "b": [[36, 30, 66, 46], [3, 2, 18, 24]]}.items():
        for boxes in corners(tmp_path / "out", name):
            np.testing.assert_allclose(boxes, truth, atol=1e-4)
    assert (tmp_path / "out" / TRAINVAL).read_text() == "a\nb\n"
    assert [line.split()[0] for line in (tmp_path / "out/labels/b.txt").read_text().splitlines()] == ["0", "0"]
    coco = json.loads((tmp_path / "out" / annotate.COCO).read_text())
    assert [c["name"] for c in coco["categories"]] == ["green", "red"] and len(coco["annotations"]) == 3
    for item in coco["annotations"]:  # a rectangle is its own polygon
        x, y, w, h = item["bbox"]
        polygon = set(map(tuple, np.reshape(item["segmentation"][0], (-1, 2))))
        assert polygon == {(x, y), (x + w, y), (x + w, y + h), (x, y + h)} and item["area"] == w * h
    sheet = imaging.read_image(tmp_path / "out" / SHEETS / "0001.jpg")
    assert sheet.shape == (annotation_files.TILE, annotation_files.SHEET_COLUMNS * annotation_files.TILE, 3)


def test_each_rejected_image_has_its_reason(fake, photos, tmp_path):
    run(photos, tmp_path / "out")
    # 47 of 24 x 24 cells; softmax of 30 · (0.12017, 0.1, 0.1).
    assert reasons(tmp_path / "out") == {
        "cross.png": "The IoU of mask and box is 0.082, below 0.3.", "dark.png": "The label is none.",
        "empty.jpg": f"Cannot read {photos / 'empty.jpg'}: the file is empty (0 bytes).",
        "text.jpg": f"Cannot read {photos / 'text.jpg'}: it is not an image in a known format.",
        "unsure.png": "The confidence is 0.478, below 0.6.",
    }
    run(photos, tmp_path / "lax", min_iou=0, min_confidence=0.4, min_area=0.2)
    assert reasons(tmp_path / "lax")["a.png"] == "No hot region covers 0.2 of the image."
    assert not {"cross.png", "unsure.png"} & {name for name, why in reasons(tmp_path / "lax").items() if "IoU" in why}


def test_formats_can_be_chosen_and_added(fake, photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out, formats=["coco"])
    assert (out / annotate.COCO).exists() and not (out / "labels").exists() and not (out / "Annotations").exists()
    assert run(photos, out, formats=["voc"]).explained == 0
    assert (out / TRAINVAL).exists() and not (out / YOLO).exists()
    with pytest.raises(ValueError, match="The formats are voc, coco, yolo, .* Received: kitti"):
        run(photos, out, formats=["kitti"])


def test_odd_images(fake, tmp_path):
    """Turned, grey, transparent, one pixel wide, the same stem twice, names in other scripts."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    stored, exif = picture(("red", 12, 6, 30, 24)), Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    photos.mkdir()
    Image.fromarray(stored).save(photos / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(stored).save(photos / "手 & <hand>.png")
    Image.fromarray(stored).save(photos / "手 & <hand>.bmp")
    Image.fromarray(stored.max(axis=2)).save(photos / "grey.png")
    Image.fromarray(np.dstack([stored, np.full((48, 72), 255, np.uint8)])).save(photos / "alpha.png")
    Image.fromarray(stored).save(photos / "moving.gif", save_all=True, append_images=[Image.fromarray(stored[::-1])])
    Image.fromarray(picture(("red", 0, 0, 1, 1), height=1, width=1)).save(photos / "dot.png")
    Image.fromarray(picture(("red", 0, 100, 1, 900), height=1000, width=1)).save(photos / "line.png")
    assert run(photos, out).kept == 8
    truth = dict.fromkeys(("手 & <hand>", "手 & <hand>_2", "grey", "alpha", "moving"), [12, 6, 30, 24])
    truth |= {"turned": [24, 12, 42, 30], "dot": [0, 0, 1, 1]}
    for name, box in truth.items():
        for boxes in corners(out, name):
            np.testing.assert_allclose(boxes, [box], atol=2.01 if name in ("turned", "moving") else 1e-4)
    files = {path.name for path in (out / annotate.IMAGES).iterdir()}
    assert {"手 & <hand>.bmp", "手 & <hand>_2.png", "turned.jpg", "moving.jpg"} < files
    with Image.open(out / annotate.IMAGES / "turned.jpg") as turned:
        assert turned.size == (48, 72) and turned.getexif().get(0x0112, 1) == 1
    assert (out / annotate.IMAGES / "grey.png").read_bytes() == (photos / "grey.png").read_bytes()
    assert ElementTree.parse(out / "Annotations/手 & <hand>_2.xml").findtext("filename") == "手 & <hand>_2.png"


def test_yolo_paths_resolve_beside_their_file_from_any_folder(fake, photos, tmp_path, monkeypatch):
    """As trainers do: without a "path" the folder of the data file is the root, a given one is looked for elsewhere."""
    out = tmp_path / "out"
    run(photos, out, formats=["yolo"])
    monkeypatch.chdir(photos)
    file = Path("..", "out", YOLO)
    lines = dict(line.split(": ", 1) for line in file.read_text().splitlines())
    assert lines["nc"] == "2" and json.loads(lines["names"]) == ["green", "red"] and "path" not in lines
    root = Path(lines.get("path", file.parent))
    for part in ("train", "val"):
        images = sorted((root / lines[part]).resolve().iterdir())
        assert [image.name for image in images] == ["a.png", "b.png"]
        for image in images:  # trainers put labels in the place of the last images
            label = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
            assert label.is_file() and label.parent == out / "labels"


# --- other readers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """The shipped model's annotations of the shipped images."""
    out = tmp_path_factory.mktemp("annotated")
    folders = [HANDS / name for name in ("choki", "gu", "none", "pa")]
    settings = annotate.Settings(n_boxes=2)
    annotate.run(imaging.image_files(folders), DEFAULT_MODEL / runtime.FLOAT_FILE, out, settings=settings)
    return out


def test_shipped_images_are_kept_and_none_is_rejected(annotated):
    assert len(list((annotated / "Annotations").iterdir())) >= 27
    with (annotated / annotate.REJECTED).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(Path(row["file"]).parent.name == "none" for row in rows) >= 9


def test_pycocotools_reads_boxes_and_polygons(annotated, capsys):
    coco = pytest.importorskip("pycocotools.coco").COCO(annotated / annotate.COCO)
    for image in coco.loadImgs(coco.getImgIds()):
        items = coco.loadAnns(coco.getAnnIds(image["id"]))
        np.testing.assert_allclose([item["bbox"] for item in items], boxes_as_sizes(annotated, image), atol=0.5)
        for item in items:
            x, y, w, h = item["bbox"]
            mask = coco.annToMask(item)
            assert mask.shape == (image["height"], image["width"])
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            # The box is rounded to whole pixels, and steps of the polygon are smoothed.
            extent = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            np.testing.assert_allclose(extent, [x, y, x + w, y + h], atol=3)
            assert abs(mask.sum() - item["area"]) < 0.03 * item["area"]


def boxes_as_sizes(out, image):
    boxes = corners(out, Path(image["file_name"]).stem)[0]
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


@pytest.mark.filterwarnings("ignore")  # of an import, and of a reader that is deprecated
def test_supervision_reads_all_three(annotated):
    dataset = pytest.importorskip("supervision").DetectionDataset
    images, labels, notes = (str(annotated / name) for name in (annotate.IMAGES, "labels", "Annotations"))
    read = {
        "voc": dataset.from_pascal_voc(images, notes),
        "yolo": dataset.from_yolo(images, labels, str(annotated / YOLO)),
        "coco": dataset.from_coco(images, str(annotated / annotate.COCO)),
    }
    for kind, found in read.items():
        assert len(found) == len(list(Path(images).iterdir())) and set(found.classes) >= {"choki", "gu", "pa"}
        for path, _, detections in found:
            name = Path(path).stem
            np.testing.assert_allclose(detections.xyxy, corners(annotated, name)[0], atol=0.5, err_msg=kind)
            label = ElementTree.parse(annotated / f"Annotations/{name}.xml").findtext("object/name")
            assert {found.classes[k] for k in detections.class_id} == {label}


# --- interrupted, repeated, changed ------------------------------------------------------------------------------


class Steps:
    """Counts what a run does to the disk, and stops it there: like Ctrl-C before the n-th step."""

    def __init__(self, monkeypatch, stop_at=None):
        self.n, self.stop_at = 0, stop_at
        for module, name in ((os, "replace"), (annotate, "find"), (annotate, "copy_or_reencode"), (json, "dumps")):
            monkeypatch.setattr(module, name, self.counted(getattr(module, name)))

    def counted(self, function):
        def call(*arguments, **options):
            self.n += 1
            if self.n == self.stop_at:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call


def test_interrupted_anywhere_it_ends_in_the_same_files(fake, photos, tmp_path, rng):
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch)
        run(photos, tmp_path / "whole", n_boxes=2)
    whole = tree(tmp_path / "whole")
    for stop_at in rng.choice(steps.n, 10, replace=False) + 1:
        out = tmp_path / f"cut{stop_at}"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            Steps(patch, stop_at)
            run(photos, out, n_boxes=2)
        journal = out / annotate.JOURNAL
        if journal.exists() and journal.stat().st_size > 400:  # half a line, as after a loss of power
            os.truncate(journal, journal.stat().st_size - rng.integers(1, 60))
        run(photos, out, n_boxes=2)
        assert tree(out) == whole, stop_at


@pytest.mark.slow
def test_killed_ten_times_it_ends_in_the_same_files(annotated, tmp_path, rng):
    folders = [str(HANDS / name) for name in ("choki", "gu", "none", "pa")]
    command = [sys.executable, "-m", "utils", "annotate", *folders, "--boxes", "2", "--out", str(tmp_path)]
    for _ in range(10):
        process = subprocess.Popen(command, cwd=HANDS.parents[1], stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.2, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=HANDS.parents[1], check=True)
    assert tree(tmp_path) == tree(annotated)


def test_nothing_is_overwritten_without_force(fake, photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out)
    before = tree(out)
    assert run(photos, out).explained == 0 and tree(out) == before  # a second time changes nothing
    mine = out / "labels" / "a.txt"
    mine.write_text("1 0.5 0.5 1 1\n")
    imaging.write_image(photos / "new.png", picture(("red", 12, 6, 30, 24)))
    for change in ({}, {"min_confidence": 0.4}):
        with pytest.raises(FileExistsError, match="--force"):
            run(photos, out, **change)
        assert mine.read_text() == "1 0.5 0.5 1 1\n" and not (out / "labels" / "new.txt").exists()
    assert run(photos, out, force=True, min_iou=0.9, n_boxes=1).kept == 2  # of b only one of two patches has a box
    assert mine.read_text() != "1 0.5 0.5 1 1\n" and (out / "labels" / "new.txt").exists()


def test_force_leaves_nothing_of_the_run_before(fake, photos, tmp_path):
    run(photos, tmp_path / "out", min_confidence=0.4, min_iou=0)
    (photos / "a.png").unlink()
    run(photos, tmp_path / "out", force=True)
    run(photos, tmp_path / "new")
    assert tree(tmp_path / "out") == tree(tmp_path / "new")


def test_a_foreign_folder_is_left_alone(fake, photos, tmp_path):
    for name in ("notes.txt", annotate.JOURNAL):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(FileExistsError, match="holds other files"):
            run(photos, out)
        assert tree(out) == {name: b"mine"}


def test_a_photo_that_changed_is_looked_at_again(fake, photos, tmp_path):
    run(photos, tmp_path / "out", formats=["voc"])
    shutil.rmtree(tmp_path / "out" / "Annotations")
    (tmp_path / "out" / annotate.IMAGES / "b.png").unlink()
    cv2.imwrite(str(photos / "a.png"), picture(("red", 0, 0, 60, 40))[..., ::-1])
    assert run(photos, tmp_path / "out", formats=["voc"]).explained == 2
    root = ElementTree.parse(tmp_path / "out/Annotations/a.xml")
    assert root.findtext("object/bndbox/xmax") == "60"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--threshold", "2"], "A threshold must be"), (["--threshold", "hot"], "A threshold must be"),
        (["--boxes", "0"], "n_boxes >= 1"), (["--boxes", "many"], 'or "auto"'),
        (["--min-iou", "1.5"], "must lie in 0..1"),
        (["--min-confidence", "nan"], "must lie in 0..1"),
        (["--model", "nowhere"], "no explainer file"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path, capsys):
    assert main(["annotate", str(HANDS / "gu"), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert sentence in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_command_line(tmp_path, capsys):
    shutil.copy(HANDS / "gu" / "01.jpg", tmp_path / "fist.jpg")
    (tmp_path / "text.png").write_text("not an image")
    assert main(["annotate", str(tmp_path), "--out", str(tmp_path / "out"), "--int8"]) == 0
    printed = capsys.readouterr().out
    assert "kept 1 of 2 images; 1 rejected, see" in printed and "images per second" in printed
    assert main(["annotate", str(tmp_path / "text.png"), "--out", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    "name, options, copied",
    [
        ("a.jpeg", {}, "copy.jpg"), ("b.bmp", {}, "copy.bmp"), ("c.dat", {"format": "PNG"}, "copy.png"),
        ("d.jpg", {"exif": {0x0112: 3}}, None), ("e.gif", {}, None), ("f.tif", {}, None),
    ],
)
def test_what_everybody_reads_alike_is_copied_byte_by_byte(tmp_path, name, options, copied):
    if "exif" in options:
        exif = Image.Exif()
        exif.update(options["exif"])
        options = {"exif": exif}
    path = write(tmp_path / name, photo(), **options)
    image = imaging.read_image(path)
    copy = annotate.copy_or_reencode(path, image, tmp_path / "new" / "copy")
    assert copy == tmp_path / "new" / (copied or "copy.jpg") and list(copy.parent.iterdir()) == [copy]
    assert (copy.read_bytes() == path.read_bytes()) == bool(copied)
    raw = cv2.imread(str(copy), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)[..., ::-1]
    assert np.abs(raw.astype(int) - image).mean() < 5
