"""Measures against hand-computed values."""

import numpy as np
import pytest
from scipy import stats

from utils import metrics

HEAT = np.array([[[0.0, 0.2], [0.6, 0.2]]])
MASK = np.array([[[False, True], [True, False]]])


def test_heat_in_mask():
    assert metrics.heat_in_mask(HEAT, MASK) == pytest.approx([0.8])


def test_pointing_game():
    np.testing.assert_array_equal(
        metrics.pointing_game(np.stack([HEAT[0], 1 - HEAT[0]]), np.repeat(MASK, 2, 0)), [1, 0]
    )


def test_pixel_ap():
    # Hottest first: hit (precision 1), then a tie of hit and miss (precision 2/3): 1/2 · 1 + 1/2 · 2/3.
    assert metrics.pixel_ap(HEAT, MASK) == pytest.approx([5 / 6])


def test_a_map_of_zeros_points_at_nothing():
    zeros = np.zeros_like(HEAT)
    assert metrics.heat_in_mask(zeros, MASK) == [0] and metrics.pointing_game(zeros, MASK) == [0]


def test_an_empty_mask_has_no_value():
    empty = np.zeros_like(MASK)
    for measure in (metrics.heat_in_mask, metrics.pointing_game, metrics.pixel_ap):
        assert np.isnan(measure(HEAT, empty)).all()


def test_agreement_is_that_of_scipy(rng):
    a, b = rng.random((3, 4, 5)), rng.random((3, 4, 5)).round(1)  # with ties
    for i in range(3):
        assert metrics.pearson(a, b)[i] == pytest.approx(stats.pearsonr(a[i].ravel(), b[i].ravel()).statistic)
        assert metrics.spearman(a, b)[i] == pytest.approx(stats.spearmanr(a[i].ravel(), b[i].ravel()).statistic)
    np.testing.assert_allclose(metrics.pearson(a, 3 * a + 1), 1)
    assert np.isnan(metrics.pearson(a, np.ones_like(a))).all()


def test_centre_gaussian():
    baseline = metrics.centre_gaussian(9, 5)
    assert baseline.shape == (9, 5) and baseline[4, 2] == 1
    assert baseline[4, 3] == pytest.approx(np.exp(-((4 / 5) ** 2) / 2))  # σ = 5 / 4
