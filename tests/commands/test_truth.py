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
