"""Augmentation: what must change, what must not."""

import numpy as np
import pytest
from samples import GREEN, RED, photo

from utils import augment, data
from utils.render import camera


@pytest.fixture
def hand(rng):
    image = rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[12:28, 10:22] = True
    return image, mask


def test_without_strength_an_image_is_at_most_mirrored(hand, rng):
    image, mask = hand
    black = np.zeros_like(image)[None]
    results = [augment.augment(image, mask, backgrounds=black, rng=rng, strength=0.0) for _ in range(20)]
    seen = {result.tobytes() for result in results}
    assert seen == {image.astype(np.float32).tobytes(), image[:, ::-1].astype(np.float32).tobytes()}


def test_at_full_strength_nothing_of_the_old_background_is_left(hand, rng, monkeypatch):
    monkeypatch.setattr(augment, "SAME_BLURRED", 0)
    monkeypatch.setattr(camera, "CHANCE", 0)
    image, mask = hand
    image[~mask], image[mask] = (255, 0, 0), (0, 255, 0)
    blue = np.full((1, 40, 40, 3), (0, 0, 255), np.uint8)
    for _ in range(20):
        result = augment.augment(image, mask, backgrounds=blue, rng=rng)
        assert result.dtype == np.float32 and result.min() >= 0 and result.max() <= 255
        red = result[..., 0] > result[..., 1:].max(axis=-1) + 50  # at the hand's edge, where pixels are mixed
        assert red.sum() < 0.05 * red.size and (result[..., 2] > 100).sum() > 0.05 * red.size


def test_an_image_without_a_mask_keeps_its_background(hand, rng, monkeypatch):
    image = np.full((40, 40, 3), 100, np.uint8)
    blue = np.full((1, 40, 40, 3), (0, 0, 255), np.uint8)
    monkeypatch.setattr(camera, "CHANCE", 0)
    result = augment.augment(image, None, backgrounds=blue, rng=rng)
    assert np.ptp(result, axis=(0, 1)).max() == 0 and result.mean() > 40


def test_now_and_then_the_background_is_the_blurred_picture_itself(hand, rng, monkeypatch):
    monkeypatch.setattr(augment, "SAME_BLURRED", 1)
    image, mask = hand
    image[~mask], image[mask] = (255, 0, 0), (0, 255, 0)
    blue = np.full((1, 40, 40, 3), (0, 0, 255), np.uint8)
    results = np.stack([augment.augment(image, mask, backgrounds=blue, rng=rng) for _ in range(20)])
    red, _, blue = results.mean(axis=(0, 1, 2))
    assert red > 5 * blue  # blue comes in patches only


@pytest.mark.parametrize("strength", [1.0, 0.2])
def test_nothing_is_left_of_a_hidden_object(hand, rng, monkeypatch, strength):
    monkeypatch.setattr(camera, "CHANCE", 0)
    monkeypatch.setattr(augment.imaging, "blur_away", np.zeros_like)
    image, mask = hand
    image[~mask], image[mask] = 40, 240
    grey = np.full((1, 40, 40, 3), 40, np.uint8)
    how = {"backgrounds": grey, "rng": rng, "strength": strength}
    brightest = {
        flag: [augment.augment(image, mask, hidden=flag, **how).max() for _ in range(10)] for flag in (True, False)
    }
    assert max(brightest[True]) < 120 < min(brightest[False])
    for unknown in (None, mask | True):  # nothing is known to be the object, so nothing is hidden
        assert augment.augment(image, unknown, hidden=True, **how).min() > 0


def test_a_mask_of_everything_keeps_the_background(hand, rng):
    image = np.full((40, 40, 3), 100, np.uint8)
    blue = np.full((1, 40, 40, 3), 100, np.uint8)
    result = augment.augment(image, np.ones((40, 40), bool), backgrounds=blue, rng=rng)
    assert np.ptp(result, axis=(0, 1)).max() < 100  # noise at most


def test_an_empty_mask_gives_a_background(hand, rng, monkeypatch):
    monkeypatch.setattr(camera, "CHANCE", 0)
    image, mask = hand
    grey = np.full((1, 40, 40, 3), 128, np.uint8)
    result = augment.augment(image, mask & False, backgrounds=grey, rng=rng)
    assert np.ptp(result, axis=(0, 1)).max() == 0


def test_the_warp_turns_shifts_and_zooms_about_the_centre():
    rng = np.random.default_rng(1)
    for _ in range(50):
        warp = augment._random_warp(np.ones((101, 101), bool), False, 1.0, rng)
        zoom = np.sqrt(abs(np.linalg.det(warp[:, :2])))
        assert 1 - augment.ZOOM <= zoom <= 1 + augment.ZOOM
        moved = warp @ [50, 50, 1] - 50  # where the centre goes
        assert np.abs(moved).max() <= augment.SHIFT * 101 + 1e-9
        assert abs(warp[1, 0]) <= zoom * np.sin(np.radians(augment.ROTATION)) + 1e-9  # the shear moves x only


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
def test_an_object_that_is_cut_out_gets_another_size_and_place(hand, strength):
    _, mask = hand  # columns 10 to 21, rows 12 to 27: 16 pixels high, its centre at (15.5, 19.5)
    rng = np.random.default_rng(1)
    low, high = (np.array(augment.EXTENT) * 40 / 16) ** strength
    for _ in range(50):
        warp = augment._random_warp(mask, True, strength, rng)
        assert low - 1e-9 <= np.sqrt(abs(np.linalg.det(warp[:, :2]))) <= high + 1e-9
        x, y = warp @ [15.5, 19.5, 1] - 19.5
        reach = strength * augment.SHIFT * 40 + 1e-9
        assert abs(y) <= reach and abs(abs(x) - (1 - strength) * 4) <= reach


def test_views_are_one_variation_of_each_training_image(hand):
    image, mask = hand
    images, masks = np.stack([image] * 3), np.stack([mask] * 3)
    labels, names = np.zeros(3, int), ("a", "b", "c")
    dataset = data.Dataset(images, labels, ("hand",), masks, np.array([0, 2]), np.array([1]), names)
    backgrounds = np.zeros((1, 40, 40, 3), np.uint8)
    views = augment.views(dataset, backgrounds=backgrounds, seed=1)
    assert views.shape == (2, 40, 40, 3) and views.dtype == np.uint8 and (views[0] != views[1]).any()
    np.testing.assert_array_equal(views, augment.views(dataset, backgrounds=backgrounds, seed=1))


def test_backgrounds_depend_on_the_seed_alone():
    first, again, other = (augment.render_backgrounds(32, seed=seed) for seed in (1, 1, 2))
    assert first.shape == (augment.N_BACKGROUNDS, 32, 32, 3) and (first == again).all() and (first != other).any()


def test_replace_background():
    image, background, mask = photo(8, 8, RED), photo(8, 8, GREEN), np.zeros((8, 8), bool)
    assert np.array_equal(augment.replace_background(image, mask, background), background)
    assert np.array_equal(augment.replace_background(image, ~mask, background), image)
    mask[:, 4:] = True
    mixed = augment.replace_background(image, mask, background)[-1, :, 0]
    assert (mixed[:3] == GREEN[0]).all() and (mixed[5:] == RED[0]).all()
    assert GREEN[0] < mixed[3] < mixed[4] < RED[0]  # a soft edge
    with pytest.raises(ValueError, match="Received image"):
        augment.replace_background(image, mask.astype(np.uint8), background)
    with pytest.raises(ValueError, match="Received image"):
        augment.replace_background(image, mask[:4], background)


def draw(dataset, indices, **settings):
    return augment.batches(dataset, indices, backgrounds=np.zeros((1, 32, 32, 3), np.uint8), seed=0, **settings)


def test_none_shows_hidden_objects_now_and_then(monkeypatch):
    calls = []
    monkeypatch.setattr(augment, "augment", lambda image, mask, hidden, **_: calls.append(hidden) or image)
    images, masks = np.zeros((6, 32, 32, 3), np.uint8), np.zeros((6, 32, 32), bool)
    images[:4], masks[:4, :16] = 1, True  # the class "a"; "none" is black
    labels = np.array([0, 0, 0, 0, 1, 1])
    for names, expected in ((("a", "none"), augment.HIDDEN), (("a", "b"), 0)):
        dataset = data.Dataset(images, labels, names, masks, np.arange(6), np.array([], int), tuple("abcdef"))
        batches = list(draw(dataset, np.arange(6), batch_size=100, steps=10))
        hidden = np.array(calls).reshape(10, 100)
        calls.clear()
        for flags, (pictures, classes) in zip(hidden, batches, strict=True):
            assert classes[flags].all()  # all of them under "none", and showing "a"
            np.testing.assert_array_equal(pictures[:, 0, 0, 0], (classes == 0) | flags)
        assert abs(hidden.sum() / sum(classes.sum() for _, classes in batches) - expected) < 0.05


@pytest.mark.parametrize("names, batch_size, steps, counts", [
    (("a", "b"), 4, 3, [6, 6]),
    (("a", "b", "c", "none"), 14, 1, [4, 4, 4, 2]),
    (("a", "none", "b"), 2, 5, [4, 2, 4]),  # fewer than there are classes
    (tuple("abcdefghi"), 3, 6, [2] * 9),
])
def test_batches_hold_every_class_equally_often_but_none_half_as_often(names, batch_size, steps, counts):
    labels = np.arange(len(names))
    images = np.zeros((len(names), 32, 32, 3), np.uint8)
    dataset = data.Dataset(images, labels, names, None, labels, np.array([], int), names)
    drawn = [classes for _, classes in draw(dataset, labels, batch_size=batch_size, steps=steps, strength=0.0)]
    assert np.bincount(np.concatenate(drawn)).tolist() == counts


def test_robust_puts_bars_of_its_own_colours_behind_an_object(hand, rng, monkeypatch):
    monkeypatch.setattr(augment, "SAME_BLURRED", 0)
    monkeypatch.setattr(augment, "BARS", 1)
    monkeypatch.setattr(camera, "CHANCE", 0)
    monkeypatch.setattr(camera, "CHANCES", (0,) * len(camera.CHANCES))
    image, mask = hand
    image[~mask], image[mask] = (255, 0, 0), (0, 255, 0)
    blue = np.full((1, 40, 40, 3), (0, 0, 255), np.uint8)

    def green(robust):
        results = [augment.augment(image, mask, backgrounds=blue, rng=rng, robust=robust) for _ in range(20)]
        return np.mean([result[..., 1] > 60 for result in results])

    assert green(robust=True) > 1.3 * green(robust=False)
