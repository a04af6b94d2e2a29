"""Boxes beside photos: scaled to the model's images, and every way such a file can be wrong."""

import json

import numpy as np
import pytest

from utils import data, imaging
from utils.commands import comparison, truth


@pytest.fixture
def folder(tmp_path, rng):
    """Two classes of two photos of 40 x 20 pixels."""
    for name in ("cat", "dog"):
        for i in range(2):
            imaging.write_image(tmp_path / name / f"{i}.png", rng.integers(0, 256, (20, 40, 3)).astype(np.uint8))
    return tmp_path


def load(folder, content):
    (folder / "boxes.json").write_text(content if isinstance(content, str) else json.dumps(content))
    dataset = data.load_folder(folder, image_size=10)
    assert dataset.left_out == ()
    return truth.boxed(folder, dataset)


def test_boxes_are_scaled_to_the_images(folder):
    masks = load(folder, {"cat/1.png": [[4, 2, 20, 10]], "dog/0.png": [[0, 0, 4, 2], [36.0, 18.0, 40.0, 20.0]]})
    assert masks.shape == (4, 10, 10) and not masks[[0, 3]].any()
    expected = np.zeros((10, 10), bool)
    expected[1:5, 1:5] = True
    np.testing.assert_array_equal(masks[1], expected)
    assert masks[2].sum() == 2 and masks[2][0, 0] and masks[2][9, 9]


def test_a_box_smaller_than_a_pixel_is_one_pixel(folder):
    assert load(folder, {"cat/0.png": [[5, 5, 6, 6]]})[0].sum() == 1


def test_no_file_no_boxes(folder):
    assert truth.boxed(folder, data.load_folder(folder, image_size=10)) is None


EXPECTED = {"cat/0.png": [[4, 2, 20, 10]], "dog/1.png": [[0, 0, 4, 2], [36, 18, 40, 20]]}


def coco(names):
    """A COCO file of `EXPECTED`, whose photos have these names, with a box of another class to ignore."""
    kinds = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "thing"}]
    images = [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)]
    boxes = [(10, 1, [4, 2, 16, 8]), (11, 2, [0, 0, 4, 2]), (11, 3, [36, 18, 4, 2.1]), (10, 2, [0, 0, 40, 20])]
    made = [{"id": i, "image_id": n, "category_id": k, "bbox": box} for i, (n, k, box) in enumerate(boxes)]
    return json.dumps({"images": images, "annotations": made, "categories": kinds})


def voc(kind, *boxes):
    objects = "".join(
        f"<object><name>{kind}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>" for x0, y0, x1, y1 in boxes
    )
    return f"<annotation><filename>renamed.jpg</filename>{objects}</annotation>"


@pytest.mark.parametrize(
    "files",
    [
        {"_annotations.coco.json": coco(["cat/0.png", "images/dog/1.png"]), "groups.json": "{}"},
        {"annotations/instances.json": coco(["cat/0", "dog\\1.png"])},
        {"cat/0.xml": voc("cat", *EXPECTED["cat/0.png"]), "dog/1.XML": voc("thing", *EXPECTED["dog/1.png"]),
         "cat/._0.xml": "what a Mac leaves"},
        {"Annotations/cat/0.xml": voc("cat", *EXPECTED["cat/0.png"]),
         "Annotations/dog/1.xml": voc("dog", *EXPECTED["dog/1.png"])},
    ],
    ids=["coco", "coco in a folder", "voc beside", "voc in a folder"],
)
def test_coco_and_voc_say_the_same_as_our_file(files, folder):
    expected = load(folder, EXPECTED)
    (folder / "boxes.json").unlink()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(content)
    dataset = data.load_folder(folder, image_size=10)
    assert dataset.class_names == ("cat", "dog") and dataset.left_out == ()
    np.testing.assert_array_equal(truth.boxed(folder, dataset), expected)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", "{", "a.json is no JSON"),
        ("a.json", '{"images": [{"id": 1}], "annotations": []}', "no COCO file of boxes: KeyError 'file_name'"),
        ("a.json", coco(["0.png", "dog/1.png"]), "names 0.png, which 2 photos are called: cat/0.png, dog/0.png"),
        ("a.json", coco(["cat/0.png", "bird.png"]), "photos that are not there: bird.png"),
        ("cat/0.xml", "<annotation><object></annotation>", "no Pascal VOC file of boxes: mismatched tag"),
        ("cat/0.xml", "<annotation><object/></annotation>", "no Pascal VOC file of boxes"),
        ("cat/0.xml", voc("cat", (0, 0, 41, 5)), "does not lie inside"),
        ("cat/gone.xml", voc("cat", (0, 0, 4, 5)), "photos that are not there: cat/gone"),
    ],
)
def test_coco_and_voc_files_that_are_wrong(name, content, sentence, folder):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        truth.boxed(folder, data.load_folder(folder, image_size=10))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("no JSON", "is not of the form"),
        ([1, 2], "is not of the form"),
        ({"cat/0.png": [[1, 2, 3]]}, "is not of the form"),
        ({"cat/0.png": [["a", 2, 3, 4]]}, "is not of the form"),
        ({"cat/0.png": [[0, 0, 41, 5]]}, "cat/0.png has 40 x 20 pixels. Received: a box that does not lie inside"),
        ({"cat/0.png": [[-1, 0, 5, 5]]}, "does not lie inside"),
        ({"cat/0.png": [[5, 5, 5, 9]]}, "or is empty"),
        ({f"cat/{i}.png": [] for i in range(2, 7)}, "not there: cat/2.png, cat/3.png, cat/4.png and 2 more"),
    ],
)
def test_files_that_are_wrong(folder, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        load(folder, content)


def test_the_box_of_a_map_beside_the_box_of_a_mask():
    heat, masks = np.zeros((3, 8, 8), np.float32), np.zeros((3, 8, 8), bool)
    heat[0, 2:6, 2:6] = 1
    masks[:2, 2:6, 4:8] = True  # half of it, and as much beside it
    np.testing.assert_allclose(comparison.box_iou(heat, masks), [1 / 3, 0, np.nan])
