"""Rings: normal ones closed and without a mask, every defect where its mask says."""

import cv2
import numpy as np
import pytest

from utils.render import rings

INK = 128  # darker than this is line


@pytest.mark.parametrize("size", [32, 96, 200, 400])
def test_shapes_and_types(size):
    images, masks = rings.render_rings([rings.NORMAL, *rings.DEFECTS], size)
    assert images.dtype == np.uint8 and images.shape == (7, size, size, 3)
    assert masks.dtype == bool and masks.shape == (7, size, size)
    assert not masks[0].any() and masks[1:].any(axis=(1, 2)).all()


def test_the_same_seed_gives_the_same_images():
    kinds = ["cross", rings.NORMAL, "dot"]
    images, masks = rings.render_rings(kinds, seed=5)
    np.testing.assert_array_equal(images[:2], rings.render_rings(kinds[:2], seed=5)[0])
    assert not np.array_equal(images, rings.render_rings(kinds, seed=6)[0])


def test_a_normal_ring_is_one_closed_line_on_light_paper():
    for image in rings.render_rings([rings.NORMAL] * 20, 192)[0]:
        line = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) < INK
        assert 0.01 < line.mean() < 0.12
        assert cv2.connectedComponents(line.astype(np.uint8))[0] == 2  # background and one line
        assert cv2.connectedComponents((~line).astype(np.uint8), connectivity=4)[0] >= 3  # inside and outside


@pytest.mark.parametrize("kind", rings.DEFECTS)
@pytest.mark.parametrize("difficulty", [0, 0.5, 1])
def test_a_mask_covers_its_defect(kind, difficulty):
    images, masks = rings.render_rings([kind] * 10, 192, difficulty=difficulty)
    for image, mask in zip(images.mean(axis=-1), masks, strict=True):
        inside, paper = np.median(image[mask]), np.median(image)
        assert 0.0005 < mask.mean() < 0.06
        if kind in ("missing piece", "broken line"):
            assert inside > 0.75 * paper  # only paper is left
        else:
            assert inside < 0.8 * paper


def test_difficulty_makes_defects_smaller():
    sizes = [rings.render_rings(rings.DEFECTS * 5, difficulty=d)[1].mean() for d in (0, 0.5, 1)]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ["scratch"]}, "'scratch'"),
        ({"image_size": 16}, "32 to 1024"),
        ({"image_size": 96.0}, "32 to 1024"),
        ({"difficulty": 1.5}, "difficulty"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        rings.render_rings(**({"kinds": [rings.NORMAL]} | arguments))
