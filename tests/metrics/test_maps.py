"""Measures against hand-computed values."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from utils import metrics

HEAT = np.array([[[0.0, 0.2], [0.6, 0.2]]])
MASK = np.array([[[False, True], [True, False]]])
PER_IMAGE = (metrics.heat_in_mask, metrics.pointing_game, metrics.pixel_ap, metrics.best_iou)
POOLED = (metrics.pxap, metrics.max_box_acc, metrics.max_box_acc_v2)
LOCALISATION = (*PER_IMAGE, *POOLED)
AGREEMENT = (metrics.pearson, metrics.spearman, metrics.top_iou)


@pytest.fixture
def blob():
    """A rectangle that fills 6 of 30 pixels, as mask (2, 5, 6), once here and once there."""
    masks = np.zeros((2, 5, 6), bool)
    masks[0, 1:3, 1:4] = masks[1, 2:5, 4:6] = True
    return masks


def test_heat_in_mask():
    assert metrics.heat_in_mask(HEAT, MASK) == pytest.approx([0.8])


def test_pointing_game():
    np.testing.assert_array_equal(
        metrics.pointing_game(np.stack([HEAT[0], 1 - HEAT[0]]), np.repeat(MASK, 2, 0)), [1, 0]
    )


def test_pixel_ap():
    # Hottest first: hit (precision 1), then a tie of hit and miss (precision 2/3): 1/2 · 1 + 1/2 · 2/3.
    assert metrics.pixel_ap(HEAT, MASK) == pytest.approx([5 / 6])


def test_pxap_pools_the_pixels_of_all_images():
    heat, masks = np.array([[[0.9, 0.1]], [[0.5, 0.2]]]), np.array([[[True, False]], [[False, True]]])
    # Hottest first: hit (1), miss, hit (2/3), miss. Image by image the second scores only 1/2.
    assert metrics.pxap(heat, masks) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert metrics.pixel_ap(heat, masks) == pytest.approx([1, 1 / 2])
    with_empty = np.concatenate([masks, [[[False, False]]]])
    false_alarm = np.concatenate([heat, [[[1.0, 0.0]]]])
    assert metrics.pxap(false_alarm, with_empty) == pytest.approx(1 / 2 * 1 / 2 + 1 / 2 * 2 / 4)


def test_best_iou():
    # Hotter than 0.2: 1 of 2 found, union 2. Hotter than 0: 2 found, union 3.
    assert metrics.best_iou(HEAT, MASK) == pytest.approx([2 / 3])
    tied = np.array([[[1.0, 1.0], [1.0, 0.0]]])  # no threshold parts what is equally hot
    assert metrics.best_iou(tied, MASK) == pytest.approx([2 / 3])


def test_best_iou_is_that_of_trying_every_threshold(rng):
    heat, masks = rng.random((4, 6, 5)).round(1), rng.random((4, 6, 5)) > 0.7
    tried = [
        [((h > t) & m).sum() / ((h > t) | m).sum() for t in np.unique(np.append(h, 0))]
        for h, m in zip(heat, masks, strict=True)
    ]
    np.testing.assert_allclose(metrics.best_iou(heat, masks), [max(values) for values in tried])


def test_max_box_acc(blob):
    heat = blob * 0.8
    heat[0, 4, 5] = 1  # a hotter spot elsewhere: below 0.8 the rectangle is larger, above it is not seen
    assert metrics.max_box_acc(heat, blob) == 1
    heat[0, 3:5, 2:6] = 1  # 8 pixels, larger than the rectangle and touching it: one region, box 4 x 5 for 2 x 3
    assert metrics.max_box_acc(heat, blob) == 0.5
    assert metrics.max_box_acc(heat, blob, min_iou=6 / 20) == 1


def test_max_box_acc_v2_takes_the_best_box(blob):
    heat = blob.astype(float)
    heat[0, 4, :] = 1  # six pixels and a border apart from the rectangle
    heat[0, 3, 5] = 1  # and a seventh: now it is the larger region
    assert metrics.max_box_acc(heat, blob) == 0.5
    assert metrics.max_box_acc_v2(heat, blob) == 1
    heat = blob.astype(float)
    heat[0, 1:3, 1] = 0  # box 2 x 2 in a box 2 x 3: 0.67, enough for 0.3 and 0.5
    assert metrics.max_box_acc_v2(heat, blob) == pytest.approx((1 + 1 + 0.5) / 3)


def test_boxes_of_masks_and_their_iou():
    masks = np.zeros((2, 5, 6), bool)
    masks[0, 1:3, 4] = masks[0, 2, 1] = True
    assert metrics.mask_boxes(masks).tolist() == [[1, 1, 5, 3], [0, 0, 0, 0]]
    pairs = [[0, 0, 4, 2], [0, 0, 4, 2], [0, 0, 1, 1]], [[2, 1, 4, 5], [0, 0, 4, 2], [1, 0, 2, 1]]
    np.testing.assert_allclose(metrics.box_iou(*pairs), [2 / 14, 1, 0])
    np.testing.assert_allclose(metrics.box_iou(np.array(pairs[0]), np.array([[0, 0, 4, 4]])), [0.5, 0.5, 1 / 16])


def test_one_threshold_for_all_boxes(blob):
    weak, strong = (np.where(mask, 1, halo) for mask, halo in zip(blob, (0.3, 0.6), strict=True))
    heat = np.stack([weak, strong])
    assert metrics.max_box_acc(heat, blob) == 1  # above 0.6
    heat[0, 1, 1] = 2  # now 0.5 of the maximum in the first map, and only one pixel above it
    assert metrics.max_box_acc(heat, blob) == 0.5


def test_images_without_an_object_have_no_box(blob):
    heat, masks = np.concatenate([blob, blob]).astype(float), np.concatenate([blob, np.zeros_like(blob)])
    assert metrics.max_box_acc(heat, masks) == metrics.max_box_acc_v2(heat, masks) == 1


def test_the_mask_itself_is_the_perfect_map(blob):
    for measure in LOCALISATION:
        np.testing.assert_array_equal(measure(blob.astype(np.float32), blob), 1)


def test_the_inverse_of_the_mask_finds_nothing(blob):
    inverse = 1.0 - blob
    for measure in (metrics.heat_in_mask, metrics.pointing_game, metrics.best_iou):
        np.testing.assert_array_equal(measure(inverse, blob), 0)
    assert metrics.pxap(inverse, blob) == pytest.approx(6 / 30)  # found last of all


def test_a_map_of_zeros_points_at_nothing(blob):
    zeros = np.zeros(blob.shape)
    for measure in (metrics.heat_in_mask, metrics.pointing_game, metrics.best_iou, *POOLED[1:]):
        np.testing.assert_array_equal(measure(zeros, blob), 0)
    for measure in (metrics.pixel_ap, metrics.pxap):
        np.testing.assert_allclose(measure(zeros, blob), 6 / 30)
    for measure in AGREEMENT:
        assert np.isnan(measure(zeros, blob)).all()


def test_top_iou():
    heat = np.arange(10.0).reshape(1, 2, 5)  # hottest 20 %: the last two pixels
    other = heat.copy()
    other[0, 0, 0] = 9.5
    assert metrics.top_iou(heat, 3 * heat + 1) == [1]
    assert metrics.top_iou(heat, other) == pytest.approx([1 / 3])
    assert metrics.top_iou(heat, -heat) == [0]


def test_hottest_is_the_same_number_in_each_map(rng):
    heat = np.maximum(rng.standard_normal((3, 7, 9)) - [[[0.0]], [[1.0]], [[1.8]]], 0)
    hot = metrics.hottest(heat, 0.25)
    np.testing.assert_array_equal(hot.sum(axis=(1, 2)), 16)
    assert all(h[m].min() >= h[~m].max() for h, m in zip(heat, hot, strict=True))
    assert not metrics.hottest(np.zeros_like(heat), 0.25).any()
    for share in (0, 1.5):
        with pytest.raises(ValueError, match="share"):
            metrics.hottest(heat, share)


def test_ranks_put_ties_near_the_heat_first():
    heat = np.zeros((1, 5, 5))
    heat[0, 2, 3] = 1
    places = metrics.ranks(heat)[0]
    assert sorted(places.ravel()) == list(range(25))
    assert places[2, 3] == 0 and set(places[[1, 3, 2, 2], [3, 3, 2, 4]]) == {1, 2, 3, 4}
    assert places[:, 0].min() > places[:, 2:].max()


def test_ranks_know_neither_left_nor_top():
    flat = metrics.ranks(np.zeros((1, 40, 40)))[0]
    for side in (flat[:, :20], flat[:20]):
        assert side.mean() == pytest.approx(flat.mean(), rel=0.03)
    np.testing.assert_array_equal(metrics.ranks(np.full((1, 40, 40), 0.7))[0], flat)
    bump = np.maximum(metrics.centre_gaussian(41, 41)[None] - 0.9, 0)  # zeros all round a centre
    quarter = metrics.hottest(bump, 0.25)[0]
    assert abs(quarter[:, :20].sum() - quarter[:, 21:].sum()) <= 4
    assert abs(quarter[:20].sum() - quarter[21:].sum()) <= 4


@pytest.mark.parametrize("measure", (*LOCALISATION, *AGREEMENT))
def test_bad_input_is_named(measure):
    good, mask = np.ones((2, 3, 4)), np.ones((2, 3, 4), bool)
    for heat, other in ((good, mask[:1]), (good, mask[:, :2]), (good[0], mask[0]), (good[:0], mask[:0])):
        with pytest.raises(ValueError, match=r"Received: .*\("):
            measure(heat, other)
    with pytest.raises(ValueError, match="finite"):
        measure(np.full_like(good, np.nan), mask)


def test_masks_are_bool():
    with pytest.raises(ValueError, match="bool mask .* uint8"):
        metrics.heat_in_mask(HEAT, np.uint8(255) * MASK)


def test_an_empty_mask_has_no_value():
    empty = np.zeros_like(MASK)
    for measure in LOCALISATION:
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
    assert metrics.aupro(DEFECT_HEAT, DEFECTS, 2 / 9) == pytest.approx(1 / 4)
    assert metrics.aupro(DEFECT_HEAT, DEFECTS, 3 / 9) == pytest.approx((2 / 4 + 1 / 2) / 3)
    assert metrics.aupro(DEFECT_HEAT, DEFECTS, 1) == pytest.approx((2 / 4 + 1 / 2 + 6) / 9)
    # Half way between two thresholds the curve is a straight line, here a level one.
    assert metrics.aupro(DEFECT_HEAT, DEFECTS, 1 / 9 / 2) == pytest.approx(1 / 4)
    assert metrics.aupro(DEFECTS * 1.0, DEFECTS) == 1
    assert metrics.aupro(np.ones(DEFECTS.shape), DEFECTS, 0.3) == pytest.approx(0.15)  # one threshold: the diagonal
    assert np.isnan(metrics.aupro(DEFECT_HEAT, np.zeros_like(DEFECTS)))


def test_aupro_of_one_region_is_the_area_under_the_roc_curve(rng):
    heat, masks = rng.random((3, 8, 8)).round(1), np.zeros((3, 8, 8), bool)
    masks[1, 2:5, 3:7] = True
    assert metrics.aupro(heat, masks, 1) == pytest.approx(metrics.pixel_auroc(heat, masks))
    assert metrics.pixel_auroc(heat, masks) == pytest.approx(roc_auc_score(masks.ravel(), heat.ravel()))


def test_best_f1(rng):
    scores, anomalous = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    threshold, value = metrics.best_f1(scores, anomalous)
    assert (threshold, value) == (0.35, pytest.approx(0.8))  # precision 2/3, recall 1
    scores, anomalous = rng.random(50).round(1), rng.random(50) > 0.6
    threshold, value = metrics.best_f1(scores, anomalous)
    tried = [f1_score(anomalous, scores >= t) for t in np.unique(scores)]
    assert value == pytest.approx(max(tried)) and f1_score(anomalous, scores >= threshold) == pytest.approx(value)
    assert np.isnan(metrics.best_f1(scores, np.zeros(50, bool))).all()


@pytest.mark.parametrize("measure", [metrics.image_auroc, metrics.best_f1])
@pytest.mark.parametrize(
    ("scores", "anomalous"), [([1.0], [1]), ([1.0, 2], [True]), ([], np.zeros(0, bool)), ([np.nan], [True])]
)
def test_anomaly_measures_refuse_what_is_no_score(measure, scores, anomalous):
    with pytest.raises(ValueError, match="Received"):
        measure(np.array(scores), np.array(anomalous))
