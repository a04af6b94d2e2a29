"""The formats for other tools, each read back: by pycocotools, supervision, Label Studio's own package, a schema, and
Ultralytics' rules about paths.
"""

import json
import os
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest
from test_annotate import FakeExplainer, picture, run

from utils import imaging
from utils.commands import annotate, annotation_files, annotation_formats

TRUTH = {"a": [[12, 6, 30, 24]], "b": [[36, 30, 66, 46], [3, 2, 18, 24]]}


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(annotate, "Explainer", FakeExplainer)
    images = {
        "a.png": picture(("red", 12, 6, 30, 24)), "b.jpg": picture(("green", 3, 2, 18, 24), ("green", 36, 30, 66, 46)),
    }
    blob = np.zeros((240, 360, 3), np.uint8)
    cv2.ellipse(blob, (180, 120), (110, 70), 30, 0, 360, (255, 0, 0), -1)
    images["blob.png"] = blob
    for name, image in images.items():
        imaging.write_image(tmp_path / "photos" / name, image)
    run(tmp_path / "photos", tmp_path / "out", n_boxes=3, formats=annotation_files.ALL_FORMATS)
    return tmp_path / "out"


def test_masks_and_polygons_cover_the_same_area_for_pycocotools(out):
    coco = pytest.importorskip("pycocotools.coco").COCO
    polygons, masks = coco(out / annotate.COCO), coco(out / annotation_formats.RLE)
    assert polygons.getAnnIds() == masks.getAnnIds() and len(masks.getAnnIds()) == 4
    for key in masks.getAnnIds():
        (polygon,), (item,) = polygons.loadAnns(key), masks.loadAnns(key)
        mask, by_polygon = masks.annToMask(item), polygons.annToMask(polygon)
        print(f"area {mask.sum()}, of the polygon {by_polygon.sum()}, stated {polygon['area']}")
        assert mask.sum() == item["area"] and abs(mask.sum() - by_polygon.sum()) <= 0.01 * mask.sum()
        assert abs(mask.sum() - polygon["area"]) <= 0.01 * mask.sum()
        x, y, width, height = item["bbox"]
        inside = np.zeros_like(mask)
        inside[y : y + height, x : x + width] = 1
        assert (mask & inside).sum() >= 0.98 * mask.sum()


def test_ultralytics_finds_images_and_labels_from_any_folder(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its rules, from elsewhere
    file = (out / annotation_formats.ROOT / "data.yaml").resolve()
    settings = dict(line.split(": ") for line in file.read_text().splitlines() if line[0] != " " and ": " in line)
    names = [json.loads(line.split(": ")[1]) for line in file.read_text().splitlines() if line[0] == " "]
    assert names == ["green", "red"] and settings["train"] == settings["val"] == "images/train"
    images = sorted((file.parent / settings["train"]).iterdir())
    assert [path.name for path in images] == ["a.png", "b.jpg", "blob.png"]
    listed = (file.parent / "train.txt").read_text().splitlines()
    assert [(file.parent / line).resolve() for line in listed] == images
    for path in images[:2]:
        folder, part = str(path).rsplit(f"{os.sep}images{os.sep}", 1)
        lines = Path(folder, "labels", part).with_suffix(".txt").read_text().splitlines()
        size = np.array(imaging.read_image(path).shape[1::-1])
        boxes = []
        for line in lines:
            _, *values = map(float, line.split())
            centre, side = np.array(values[:2]) * size, np.array(values[2:]) * size
            boxes.append([*centre - side / 2, *centre + side / 2])
        np.testing.assert_allclose(boxes, TRUTH[path.stem], atol=1e-4)
        np.testing.assert_array_equal(imaging.read_image(path), imaging.read_image(out / annotate.IMAGES / path.name))


def test_classes_for_label_img_and_label_studio(out):
    for name in annotation_files.CLASSES:
        assert (out / name).read_text() == "green\nred\n"


PERCENT = {"type": "number", "minimum": 0, "maximum": 100}
VALUE = {
    "type": "object", "required": ["x", "y", "width", "height", "rotation", "rectanglelabels"],
    "properties": {
        "x": PERCENT, "y": PERCENT, "width": PERCENT, "height": PERCENT, "rotation": {"type": "number"},
        "rectanglelabels": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    },
}
RESULT = {
    "type": "object",
    "required": ["id", "type", "from_name", "to_name", "original_width", "original_height", "value", "score"],
    "properties": {
        "id": {"type": "string"}, "type": {"const": "rectanglelabels"}, "value": VALUE,
        "original_width": {"type": "integer", "minimum": 1}, "original_height": {"type": "integer", "minimum": 1},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
    },
}
PREDICTION = {
    "type": "object", "required": ["model_version", "result", "score"],
    "properties": {"result": {"type": "array", "items": RESULT}, "score": {"type": "number"}},
}
SCHEMA = {  # of Label Studio's tasks with predictions
    "type": "array", "items": {
        "type": "object", "required": ["data", "predictions"],
        "properties": {
            "data": {"type": "object", "required": ["image"]}, "predictions": {"type": "array", "items": PREDICTION},
        },
    },
}


def test_label_studio_reads_percent_and_scores(out):
    tasks = json.loads((out / annotation_formats.TASKS).read_text())
    jsonschema.validate(tasks, SCHEMA)
    for task in tasks[:2]:
        file = Path(task["data"]["image"].removeprefix(annotation_formats.LOCAL_FILES))
        assert (out / file).is_file()
        boxes = []
        for result in task["predictions"][0]["result"]:
            size = np.array([result["original_width"], result["original_height"]]) / 100
            low = np.array([result["value"]["x"], result["value"]["y"]]) * size
            side = np.array([result["value"]["width"], result["value"]["height"]]) * size
            boxes.append([*low, *low + side])
        np.testing.assert_allclose(boxes, TRUTH[file.stem], atol=1e-3)


@pytest.mark.parametrize("kind", ["yolo", "ultralytics", "voc"])
def test_supervision_reads_the_boxes(out, kind):
    datasets = pytest.importorskip("supervision", reason="supervision is not installed").DetectionDataset
    if kind == "voc":
        dataset = datasets.from_pascal_voc(str(out / annotate.IMAGES), str(out / "Annotations"))
    else:
        root, part = (out, "") if kind == "yolo" else (out / annotation_formats.ROOT, annotation_formats.SUBSET)
        places = root / "images" / part, root / "labels" / part, root / "data.yaml"
        dataset = datasets.from_yolo(*map(str, places))
    assert sorted(dataset.classes) == ["green", "red"] and len(dataset) == 3
    for path, _, found in dataset:
        labels = {dataset.classes[class_id] for class_id in found.class_id}
        assert labels == {"green" if Path(path).stem == "b" else "red"}
        if Path(path).stem in TRUTH:
            np.testing.assert_allclose(sorted(found.xyxy.tolist()), sorted(TRUTH[Path(path).stem]), atol=1e-3)


def test_label_studio_itself_takes_the_predictions(out):
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    labels = "".join(f'<Label value="{name}"/>' for name in ("green", "red"))
    view = '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">{}'
    checked = interface.LabelInterface(view.format(labels) + "</RectangleLabels></View>")
    tasks = json.loads((out / annotation_formats.TASKS).read_text())
    problems = [checked.validate_prediction(task["predictions"][0], return_errors=True) for task in tasks]
    assert len(tasks) == 3 and not any(problems), problems
    tasks[0]["predictions"][0]["result"][0]["value"]["width"] = 120  # percent
    assert checked.validate_prediction(tasks[0]["predictions"][0], return_errors=True)


def test_a_second_run_changes_nothing_and_force_starts_anew(out, tmp_path):
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    run(tmp_path / "photos", out, n_boxes=3, formats=annotation_files.ALL_FORMATS)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (tmp_path / "photos" / "a.png").unlink()
    run(tmp_path / "photos", out, n_boxes=3, formats=["voc"], force=True)
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert not {name for name in left if name.startswith((annotation_formats.ROOT, "coco", "label"))}


def test_an_image_named_classes_keeps_its_label_file(tmp_path, monkeypatch):
    monkeypatch.setattr(annotate, "Explainer", FakeExplainer)
    imaging.write_image(tmp_path / "photos" / "classes.png", picture(("red", 12, 6, 30, 24)))
    run(tmp_path / "photos", tmp_path / "out")
    assert (tmp_path / "out/labels/classes.txt").read_text().startswith("1 0.29")


def test_run_lengths_and_filled_polygons(rng):
    mask = rng.random((7, 5)) > 0.5
    lengths = annotation_formats.run_lengths(mask)
    values = np.repeat(np.arange(len(lengths)) % 2, lengths)
    np.testing.assert_array_equal(values.reshape(5, 7).T, mask)
    triangle = annotation_formats.fill(np.array([[0, 0], [4, 0], [0, 4]]), 4, 5)
    assert triangle.astype(int).tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0] * 5]


def test_an_unknown_format(tmp_path):
    with pytest.raises(ValueError, match="The formats are voc, coco, yolo, rle, ultralytics, labelstudio. Received: x"):
        annotate.run([], "no file", tmp_path, formats=["x"])
