"""Measures that ask the network, with toy networks whose scores can be computed by hand."""

import numpy as np
import pytest

from utils import faithfulness


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
    peak = lambda batch: np.stack([batch.max(axis=(1, 2, 3)) == 255, batch.max(axis=(1, 2, 3)) < 255], axis=1)  # noqa: E731
    right, wrong = np.zeros((2, 8, 8))
    right[2, 5], wrong[6, 1] = 1, 1
    heat = np.stack([right, wrong, np.zeros((8, 8))])
    keep, delete = faithfulness.keep_and_delete(peak, images, heat, np.zeros(3, int), share=0.1)
    np.testing.assert_array_equal(keep, [1, 0, 0])
    np.testing.assert_array_equal(delete, [0, 1, 1])  # a flat map takes nothing away


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
            self.scores = np.array([[0.5, 0.4]], np.float32)
            return self

    share = np.exp(3) / (1 + np.exp(3))
    np.testing.assert_allclose(faithfulness.probabilities(Explainer())(None), [[share, 1 - share]], rtol=1e-6)


MEASURES = (faithfulness.keep_and_delete,)


@pytest.mark.parametrize("measure", MEASURES)
def test_bad_input_is_named(measure, halves):
    heat, ids = half_maps(True, False), np.array([0, 1])
    for bad in ((halves[:1], heat, ids), (halves, heat[:, :2], ids), (halves, heat, ids[:1]), (halves, heat, ids + 1),
                (halves, heat, ids / 2)):  # fmt: skip
        with pytest.raises(ValueError, match="Received: "):
            measure(brighter_side, *bad)
    with pytest.raises(ValueError, match="finite"):
        measure(brighter_side, halves, heat * np.nan, ids)
    with pytest.raises(ValueError, match="predict must return"):
        measure(lambda images: images.mean(axis=(1, 2, 3)), halves, heat, ids)
