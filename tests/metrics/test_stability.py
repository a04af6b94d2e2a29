"""Max-sensitivity and sparseness beside computations written out, and on maps whose values are known."""

import numpy as np
import pytest

from utils.metrics import stability


def grey(images):
    return np.asarray(images, np.float64).mean(axis=3)


def test_max_sensitivity_against_a_loop(rng):
    images = rng.random((3, 5, 4, 3))
    noise = np.random.default_rng(7)
    copies = [images + noise.uniform(-0.2, 0.2, images.shape) for _ in range(6)]
    expected = []
    for n in range(3):
        before = grey(images)[n]
        changes = [np.sqrt(((grey(copy)[n] - before) ** 2).sum()) for copy in copies]
        expected.append(max(changes) / np.sqrt((before**2).sum()))
    got = stability.max_sensitivity(grey, images, radius=0.2, n_samples=6, seed=7)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    together = stability.max_sensitivity(
        lambda x: np.stack([grey(x), np.ones(x.shape[:3])]), images, radius=0.2, n_samples=6, seed=7
    )
    np.testing.assert_allclose(together, [expected, np.zeros(3)], rtol=1e-12)


def test_more_samples_find_no_less_and_the_scale_of_a_map_does_not_matter(rng):
    images = rng.integers(0, 256, (2, 6, 6, 3)).astype(np.uint8)
    few, many = (stability.max_sensitivity(grey, images, n_samples=n) for n in (1, 8))
    assert (many >= few).all() and (few > 0).all()
    np.testing.assert_allclose(stability.max_sensitivity(lambda x: 9 * grey(x), images, n_samples=8), many)


def test_noise_keeps_the_type_of_the_images():
    seen = []
    images = np.full((1, 3, 3, 3), 254, np.uint8)
    stability.max_sensitivity(lambda x: seen.append(x) or np.ones((1, 3, 3)), images)
    assert all(x.dtype == np.uint8 for x in seen) and max(x.max() for x in seen) <= 255
    assert min(x.min() for x in seen) >= 254 - 6


def test_a_map_of_zeros_has_no_value():
    assert np.isnan(stability.max_sensitivity(lambda x: np.zeros(x.shape[:3]), np.ones((1, 2, 2, 3)))).all()
    assert np.isnan(stability.sparseness(np.zeros((1, 2, 2)))).all()


def test_sparseness_is_half_the_relative_mean_difference(rng):
    maps = rng.random((3, 4, 5)) ** 3
    for heat, got in zip(maps.reshape(3, -1), stability.sparseness(maps), strict=True):
        assert got == pytest.approx(np.abs(heat[:, None] - heat).mean() / (2 * heat.mean()))
    assert stability.sparseness(np.eye(4)[None])[0] == pytest.approx(0.75)


@pytest.mark.parametrize("how", [{"radius": 0}, {"n_samples": 0}])
def test_wrong_settings(how):
    with pytest.raises(ValueError, match="a radius above 0 and at least one sample"):
        stability.max_sensitivity(grey, np.ones((1, 2, 2, 3)), **how)
    with pytest.raises(ValueError, match=r"maps of shape \(1, 2, 2\). Received: \(1, 3, 3\)"):
        stability.max_sensitivity(lambda x: np.ones((1, 3, 3)), np.ones((1, 2, 2, 3)), heatmaps=np.ones((1, 2, 2)))
