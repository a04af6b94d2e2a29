"""Measures of anomaly detection against hand-computed values."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from utils import metrics

# Two regions, of 2 and 1 pixels, and a normal image; 9 pixels are without a defect.
DEFECTS = np.array([[[1, 0, 0], [1, 0, 1]], [[0, 0, 0], [0, 0, 0]]], bool)
DEFECT_HEAT = np.array([[[0.9, 0.5, 0.1], [0.6, 0.7, 0.4]], [[0.8, 0.0, 0.0], [0.0, 0.0, 0.0]]])


def test_image_auroc():
    # 3 of 4 pairs in order, one tie counts one half.
    assert metrics.image_auroc(np.array([1, 3, 2, 3.0]), np.array([0, 0, 1, 1], bool)) == pytest.approx(2.5 / 4)
    assert np.isnan(metrics.image_auroc(np.array([1.0, 2]), np.array([True, True])))


def test_pixel_auroc_pools_all_images():
    # Of the 9 other pixels 0.9 beats all, 0.6 all but 0.8 and 0.7, 0.4 all but these and 0.5.
    assert metrics.pixel_auroc(DEFECT_HEAT, DEFECTS) == pytest.approx((9 + 7 + 6) / 27)


def test_aupro():
    # Overlap 1/4 before any false alarm and at the first two (0.8, 0.7), then 0.6 completes the first region: 1/2;
    # the third false alarm (0.5), then 0.4: everything.
    assert metrics.aupro(DEFECT_HEAT, DEFECTS, max_fpr=2 / 9) == pytest.approx(1 / 4)
    assert metrics.aupro(DEFECT_HEAT, DEFECTS, max_fpr=3 / 9) == pytest.approx((2 / 4 + 1 / 2) / 3)
    assert metrics.aupro(DEFECT_HEAT, DEFECTS, max_fpr=1) == pytest.approx((2 / 4 + 1 / 2 + 6) / 9)
    # Half way between two thresholds the curve is a straight line, here a level one.
    assert metrics.aupro(DEFECT_HEAT, DEFECTS, max_fpr=1 / 9 / 2) == pytest.approx(1 / 4)
    assert metrics.aupro(DEFECTS * 1.0, DEFECTS) == 1
    # One threshold: the diagonal.
    assert metrics.aupro(np.ones(DEFECTS.shape), DEFECTS, max_fpr=0.3) == pytest.approx(0.15)
    assert np.isnan(metrics.aupro(DEFECT_HEAT, np.zeros_like(DEFECTS)))


def test_aupro_of_one_region_is_the_area_under_the_roc_curve(rng):
    heat, masks = rng.random((3, 8, 8)).round(1), np.zeros((3, 8, 8), bool)
    masks[1, 2:5, 3:7] = True
    assert metrics.aupro(heat, masks, max_fpr=1) == pytest.approx(metrics.pixel_auroc(heat, masks))
    assert metrics.pixel_auroc(heat, masks) == pytest.approx(roc_auc_score(masks.ravel(), heat.ravel()))


@pytest.mark.parametrize(
    ("scores", "anomalous"), [([1.0], [1]), ([1.0, 2], [True]), ([], np.zeros(0, bool)), ([np.nan], [True])]
)
def test_anomaly_measures_refuse_what_is_no_score(scores, anomalous):
    with pytest.raises(ValueError, match="Received"):
        metrics.image_auroc(np.array(scores), np.array(anomalous))
