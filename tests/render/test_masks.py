"""utils.render.masks: where the object is, when nobody says."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import photo

from utils import data, imaging
from utils.render.masks import foreground_mask, hand_mask


@pytest.mark.real
def test_hand_mask_agrees_with_the_truth(janken_dataset, janken_masks):
    paths = sorted(p for p in janken_dataset.glob("*/*") if p.suffix.lower() == ".jpg")

    def iou(path):
        mask = hand_mask(imaging.read_image(path))
        truth = np.asarray(Image.open(janken_masks / f"{path.parent.name}_{path.stem}.png").convert("L")) > 127
        return (mask & truth).sum() / (mask | truth).sum()

    ious = [iou(path) for path in paths]
    assert len(ious) == 167 and np.mean(ious) >= 0.95 and min(ious) >= 0.85


def test_foreground_mask_agrees_with_the_truth(janken_dataset, janken_masks):
    """The photos' masks are the same as for test_hand_mask_agrees_with_the_truth; here nothing is known of skin."""
    photos = data.load_janken("janken", image_size=96)
    ious = []
    for image, name in zip(photos.images[::4], photos.names[::4], strict=True):
        gesture, file = name.split("/")
        truth = imaging.read_image(janken_masks / f"{gesture}_{Path(file).stem}.png")[..., 0] > 127
        truth = imaging.resize(truth[None], 96, 96)[0]
        guess = foreground_mask(image)
        ious.append((guess & truth).sum() / (guess | truth).sum())
    assert np.mean(ious) > 0.9


def test_hand_mask_depends_on_the_image_alone():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (60, 80, 3), np.uint8) for _ in range(8)]
    masks = [hand_mask(image) for image in images]
    with ThreadPoolExecutor(3) as pool:
        again = list(pool.map(hand_mask, reversed(images)))
    assert all(np.array_equal(a, b) for a, b in zip(masks, reversed(again), strict=True))


def test_hand_mask_refuses_what_is_no_image():
    for image in (photo() / 255, photo()[..., 0]):
        with pytest.raises(ValueError, match="expected uint8 RGB"):
            hand_mask(image)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (2, 2), (5, 3)])
def test_hand_mask_of_odd_sizes(size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for image in (noise, np.full_like(noise, 128)):
        mask = hand_mask(image)
        assert mask.shape == size and mask.dtype == bool
    assert not mask.any()  # one colour, no hand
