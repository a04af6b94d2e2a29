"""Measures that ask the network, with toy networks whose scores can be computed by hand, and beside other packages."""

import numpy as np
import pytest
from benchmarks import road

from utils import imaging
from utils.metrics import faithfulness
from utils.runtime import Explanation

MEASURES = (
    faithfulness.keep_and_delete, faithfulness.insertion_auc, faithfulness.deletion_auc, faithfulness.road,
    faithfulness.drop_and_increase,
)


@pytest.fixture
def halves():
    """Two dark images (4, 4): the left half of the first is bright, the right half of the second."""
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[0, :, :2] = images[1, :, 2:] = 200
    return images


def brighter_side(images):
    """Scores (n, 2): mean brightness of the left half and of the right half, in 0..1."""
    grey = images.astype(float).mean(axis=3) / 255
    return np.stack([grey[:, :, :2].mean(axis=(1, 2)), grey[:, :, 2:].mean(axis=(1, 2))], axis=1)


def half_maps(*left):
    """For each image a map (4, 4) that is hot on its left half, or else on its right half."""
    sides = np.repeat([[1.0, 0.0]], 2, axis=1)[0]
    return np.stack([np.tile(sides if is_left else sides[::-1], (4, 1)) for is_left in left])


def test_keep_and_delete():
    # One bright pixel in a black image; the class is "the brightest pixel is white".
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[:, 2, 5] = 255

    def peak(batch):
        is_white = (batch == 255).any(axis=(1, 2, 3))
        return np.stack([is_white, ~is_white], axis=1)

    right, wrong = np.zeros((2, 8, 8))
    right[2, 5], wrong[6, 1] = 1, 1
    heat = np.stack([right, wrong, np.zeros((8, 8))])
    keep, delete = faithfulness.keep_and_delete(peak, images, heat, np.zeros(3, int), share=0.1)
    np.testing.assert_array_equal(keep, [1, 0, 0])
    np.testing.assert_array_equal(delete, [0, 1, 1])  # a flat map takes nothing away


def test_embedding_loss():
    # The embedding: brightness of the left and of the right half, of which only the left one is not 0.
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[:, 0, 0] = 255

    def halves_of(batch):
        left, right = np.split(batch.astype(float), 2, axis=2)
        return np.stack([left.max(axis=(1, 2, 3)), np.full(len(batch), 10.0)], axis=1)

    right, wrong = np.zeros((2, 8, 8))
    right[0, 0], wrong[7, 7] = 1, 1
    heat = np.stack([right, wrong, np.zeros((8, 8))])
    losses = faithfulness.embedding_loss(halves_of, images, heat, shares=(1 / 64, 1.0))
    gone = imaging.blur_away(images[0].astype(np.float32)).round()
    peaks = [np.where(np.arange(64).reshape(8, 8) == 0, gone[..., 0], images[0, ..., 0]).max(), gone.max()]
    a, b = (1 - (peak * 255 + 100) / np.hypot(peak, 10) / np.hypot(255, 10) for peak in peaks)
    np.testing.assert_allclose(losses, [(a + b) / 2, b / 2, 0], atol=1e-6)  # a flat map takes nothing away
    with pytest.raises(ValueError, match="Shares must lie in"):
        faithfulness.embedding_loss(halves_of, images, heat, shares=(0.1, 1.5))


def test_deletion_auc():
    # 200 in all: hottest first leaves 100, 40, 0, 0; coldest first 200, 160, 100, 0.
    images = np.array([[[100, 60], [40, 0]]] * 3, np.uint8)[..., None].repeat(3, axis=3)
    heat = np.array([[[1.0, 0.6], [0.4, 0.0]], [[0.0, 0.4], [0.6, 1.0]], np.zeros((2, 2))])

    def total(batch):
        return batch[..., 0].astype(float).sum(axis=(1, 2))[:, None]

    areas = faithfulness.deletion_auc(total, images, heat, np.zeros(3, int), n_steps=4)
    np.testing.assert_allclose(areas, [(200 / 2 + 100 + 40) / 4, (200 / 2 + 200 + 160 + 100) / 4, 200 / 2])


def test_insertion_auc():
    # A white pixel far from the border; the score is its value. It comes back in the first of two steps, or the last.
    images = np.zeros((3, 16, 16, 3), np.float32)
    images[:, 8, 8] = 255
    heat = np.zeros((3, 16, 16))
    heat[0, 8, 8] = 1
    heat[1] = 1 - heat[0]
    start = 255 / np.exp(-(np.arange(-5, 6) ** 2) / 50).sum() ** 2

    def value(batch):
        return batch[:, 8, 8, :1]

    areas = faithfulness.insertion_auc(value, images, heat, np.zeros(3, int), n_steps=2)
    early, late, flat = start / 4 + 255 * 3 / 4, start * 3 / 4 + 255 / 4, (start + 255) / 2
    np.testing.assert_allclose(areas, [early, late, flat], rtol=1e-5)


def test_impute_by_hand():
    # One pixel in the middle of a 3 x 3 image: four direct neighbours of weight 1/6, four diagonal ones of 1/12.
    image = np.array([[0, 6, 0], [12, 99, 18], [24, 0, 36]])[..., None].repeat(3, axis=2)
    removed = np.zeros((3, 3), bool)
    removed[1, 1] = True
    filled = faithfulness.impute(image, removed)
    np.testing.assert_allclose(filled[1, 1], (6 + 12 + 18 + 0) / 6 + (24 + 36) / 12)
    np.testing.assert_array_equal(filled[~removed], image[~removed])
    # In the corner there are three neighbours, of weight 1/6, 1/6 and 1/12: 2/5, 2/5 and 1/5.
    corner = faithfulness.impute(image, np.eye(3, dtype=bool) & (np.arange(3) == 0))
    np.testing.assert_allclose(corner[0, 0], (6 + 12) * 2 / 5 + 99 / 5)
    # What depends on one known pixel alone takes its value.
    row = faithfulness.impute(np.full((1, 4, 3), 6), np.array([[False, True, True, True]]))
    np.testing.assert_allclose(row, 6)
    np.testing.assert_array_equal(faithfulness.impute(image, np.zeros((3, 3), bool)), image)
    with pytest.raises(ValueError, match="At least one pixel"):
        faithfulness.impute(image, np.ones((3, 3), bool))


def test_impute_continues_a_ramp():
    ramp = np.arange(9.0)[None, :, None].repeat(9, axis=0).repeat(3, axis=2)
    removed = np.zeros((9, 9), bool)
    removed[2:7, 2:7] = True
    np.testing.assert_allclose(faithfulness.impute(ramp, removed), ramp)


def test_impute_is_that_of_pytorch_grad_cam():
    image = road.material()[0][0]
    for removed, expected in zip(road.removed(), road.expected()["imputed"], strict=True):
        np.testing.assert_allclose(faithfulness.impute(image, removed), expected, atol=1e-4)


def test_road_is_that_of_pytorch_grad_cam():
    expected = road.expected()["road"]
    silent = faithfulness.road(road.predict, *road.material(), percentiles=road.PERCENTILES, noise=0)
    np.testing.assert_allclose(silent, expected, atol=1e-6)
    noisy = faithfulness.road(road.predict, *road.material(), percentiles=road.PERCENTILES)
    np.testing.assert_allclose(noisy, expected, atol=0.02)
    assert not np.array_equal(noisy, silent)
    again = faithfulness.road(road.predict, *road.material(), percentiles=road.PERCENTILES)
    np.testing.assert_array_equal(again, noisy)


@pytest.mark.parametrize("mode", ["insertion", "deletion"])
def test_auc_is_that_of_rise_written_out(mode):
    measure = getattr(faithfulness, f"{mode}_auc")
    areas = measure(road.predict, *road.material(), n_steps=road.N_STEPS)
    np.testing.assert_allclose(areas, road.expected()[mode], atol=1e-6)


def test_road_by_hand(halves):
    # Half of the pixels is removed. Without the dark half all becomes bright, without the bright half all dark.
    ids, half = np.array([0, 1]), {"percentiles": (50,), "noise": 0}
    right = faithfulness.road(brighter_side, halves, half_maps(True, False), ids, **half)
    np.testing.assert_allclose(right, 200 / 255 / 2)
    wrong = faithfulness.road(brighter_side, halves, half_maps(False, True), ids, **half)
    np.testing.assert_allclose(wrong, -right)
    assert (faithfulness.road(brighter_side, halves, np.zeros((2, 4, 4)), ids) == 0).all()
    for percentiles in ((), (0, 50), (50, 100)):
        with pytest.raises(ValueError, match="Percentiles"):
            faithfulness.road(brighter_side, halves, half_maps(True, False), ids, percentiles=percentiles)


def test_drop_and_increase(halves):
    heat = np.stack([half_maps(True)[0], half_maps(True)[0] / 4])
    drop, increase = faithfulness.drop_and_increase(brighter_side, halves, heat, np.array([0, 1]))
    np.testing.assert_allclose(drop, [0, 1])
    np.testing.assert_array_equal(increase, [0, 0])

    def darkness(batch):
        return 1 - brighter_side(batch)

    drop, increase = faithfulness.drop_and_increase(darkness, halves, np.full((2, 4, 4), 0.5), np.array([0, 0]))
    np.testing.assert_allclose(drop, 0)
    np.testing.assert_array_equal(increase, [1, 0])
    # A class that is 0 already cannot drop.
    assert np.isnan(faithfulness.drop_and_increase(brighter_side, halves, heat, np.array([1, 0]))[0]).all()


@pytest.mark.parametrize("measure", [faithfulness.insertion_auc, faithfulness.road])
def test_the_inverse_map_is_worse(measure, halves):
    ids, heat = np.array([0, 1]), half_maps(True, False)
    right, flat, wrong = (measure(brighter_side, halves, maps, ids) for maps in (heat, 0 * heat, 1 - heat))
    assert (right > flat).all() and (flat > wrong).all()


def test_predict_is_asked_in_batches_of_the_images_own_dtype(halves):
    seen = []

    def predict(images):
        seen.append((len(images), images.dtype, images.min(), images.max()))
        return brighter_side(images)

    many = np.repeat(halves, 50, axis=0)
    for images in (many, many.astype(np.float32)):
        faithfulness.keep_and_delete(predict, images, half_maps(*[True] * 100), np.zeros(100, int))
        assert max(n for n, *_ in seen) <= faithfulness.BATCH_SIZE and sum(n for n, *_ in seen) == 200
        assert {dtype for _, dtype, *_ in seen} == {images.dtype}
        assert min(low for *_, low, _ in seen) >= 0 and max(high for *_, high in seen) <= 200
        seen.clear()


def test_probabilities_are_the_softmax_of_scaled_cosines():
    class Explainer:
        def explain(self, images):
            nothing = np.zeros((1, 1, 1), np.float32)
            scores = np.array([[0.5, 0.4]], np.float32)
            return Explanation(np.zeros(1, int), ("a", "b"), scores, nothing, np.zeros(1, int), nothing[0])

    share = np.exp(3) / (1 + np.exp(3))
    np.testing.assert_allclose(faithfulness.probabilities(Explainer())(None), [[share, 1 - share]], rtol=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_bad_input_is_named(measure, halves):
    heat, ids = half_maps(True, False), np.array([0, 1])
    for bad in ((halves[:1], heat, ids), (halves, heat[:, :2], ids), (halves, heat, ids[:1]), (halves, heat, ids + 1),
                (halves, heat, ids / 2)):
        with pytest.raises(ValueError, match="Received: "):
            measure(brighter_side, *bad)
    with pytest.raises(ValueError, match="finite"):
        measure(brighter_side, halves, heat * np.nan, ids)
    with pytest.raises(ValueError, match="predict must return"):
        measure(lambda images: images.mean(axis=(1, 2, 3)), halves, heat, ids)


def test_no_steps(halves):
    with pytest.raises(ValueError, match="at least one step"):
        faithfulness.deletion_auc(brighter_side, halves, half_maps(True, False), np.array([0, 1]), n_steps=0)
