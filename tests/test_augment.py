"""Augmentation: what must change, what must not."""

import numpy as np
import pytest

from utils import augment


@pytest.fixture
def hand(rng):
    image = rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[12:28, 10:22] = True
    return image, mask


def test_without_strength_an_image_is_at_most_mirrored(hand, rng):
    image, mask = hand
    seen = {augment.augment(image, mask, image[None] * 0, rng, strength=0.0).tobytes() for _ in range(20)}
    assert seen == {image.astype(np.float32).tobytes(), image[:, ::-1].astype(np.float32).tobytes()}


def test_at_full_strength_nothing_of_the_old_background_is_left(hand, rng):
    image, mask = hand
    image[~mask], image[mask] = (255, 0, 0), (0, 255, 0)
    blue = np.full((1, 40, 40, 3), (0, 0, 255), np.uint8)
    for _ in range(20):
        result = augment.augment(image, mask, blue, rng)
        assert result.dtype == np.float32 and result.min() >= 0 and result.max() <= 255
        red = result[..., 0] > 150  # at the hand's edge, where pixels are mixed
        assert red.sum() < 0.05 * red.size and (result[..., 2] > 100).sum() > 0.3 * red.size


def test_an_image_without_a_mask_keeps_its_background(hand, rng):
    image = np.full((40, 40, 3), 100, np.uint8)
    blue = np.full((1, 40, 40, 3), (0, 0, 255), np.uint8)
    result = augment.augment(image, None, blue, rng)
    assert np.ptp(result, axis=(0, 1)).max() == 0 and result.mean() > 40


def test_an_empty_mask_gives_a_background(hand, rng):
    image, mask = hand
    grey = np.full((1, 40, 40, 3), 128, np.uint8)
    result = augment.augment(image, mask & False, grey, rng)
    assert np.ptp(result, axis=(0, 1)).max() == 0


def test_the_warp_turns_shifts_and_zooms_about_the_centre():
    rng = np.random.default_rng(1)
    for _ in range(50):
        warp = augment._random_warp(101, 1.0, rng)
        zoom = np.sqrt(abs(np.linalg.det(warp[:, :2])))
        assert 1 - augment.ZOOM <= zoom <= 1 + augment.ZOOM
        moved = warp @ [50, 50, 1] - 50  # where the centre goes
        assert np.abs(moved).max() <= augment.SHIFT * 101 + 1e-9
        assert abs(warp[1, 0]) <= zoom * np.sin(np.radians(augment.ROTATION)) + 1e-9


def test_backgrounds_depend_on_the_seed_alone():
    first, again, other = (augment.render_backgrounds(32, seed) for seed in (1, 1, 2))
    assert first.shape == (augment.N_BACKGROUNDS, 32, 32, 3) and (first == again).all() and (first != other).any()
