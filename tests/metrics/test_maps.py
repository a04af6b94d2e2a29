"""Measures against hand-computed values."""

import numpy as np
import pytest
from scipy import stats

from utils import metrics

HEAT = np.array([[[0.0, 0.2], [0.6, 0.2]]])
MASK = np.array([[[False, True], [True, False]]])
PER_IMAGE = (metrics.heat_in_mask, metrics.pointing_game, metrics.pixel_ap, metrics.best_iou)
POOLED = (metrics.pxap, metrics.max_box_acc_v2)
LOCALISATION = (*PER_IMAGE, *POOLED)
AGREEMENT = (metrics.pearson, metrics.spearman)


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


def found(heat, masks, min_iou):
    return metrics.max_box_acc_v2(heat, masks, min_ious=(min_iou,))


def test_an_object_is_found_by_the_best_box_at_the_best_threshold(blob):
    heat = blob * 0.8
    heat[0, 4, 5] = 1  # a hotter spot elsewhere: below 0.8 the rectangle has a box of its own, above it is not seen
    assert found(heat, blob, 0.5) == 1
    heat[0, 3:5, 2:6] = 1  # 8 pixels that touch the rectangle: one region, box 4 x 5 for 2 x 3
    assert found(heat, blob, 0.5) == 0.5
    assert found(heat, blob, 6 / 20) == 1
    heat = blob.astype(float)
    heat[0, 4, :] = heat[0, 3, 5] = 1  # a region larger than the rectangle, but apart from it
    assert metrics.max_box_acc_v2(heat, blob) == 1
    heat = blob.astype(float)
    heat[0, 1:3, 1] = 0  # box 2 x 2 in a box 2 x 3: 0.67, enough for 0.3 and 0.5
    assert metrics.max_box_acc_v2(heat, blob) == pytest.approx((1 + 1 + 0.5) / 3)


def test_one_threshold_for_all_boxes(blob):
    weak, strong = (np.where(mask, 1, halo) for mask, halo in zip(blob, (0.3, 0.6), strict=True))
    heat = np.stack([weak, strong])
    assert found(heat, blob, 0.5) == 1  # above 0.6
    heat[0, 1, 1] = 2  # now 0.5 of the maximum in the first map, and only one pixel above it
    assert found(heat, blob, 0.5) == 0.5


def test_images_without_an_object_have_no_box(blob):
    heat, masks = np.concatenate([blob, blob]).astype(float), np.concatenate([blob, np.zeros_like(blob)])
    assert metrics.max_box_acc_v2(heat, masks) == 1


def test_boxes_of_masks_and_their_iou():
    masks = np.zeros((2, 5, 6), bool)
    masks[0, 1:3, 4] = masks[0, 2, 1] = True
    assert metrics.mask_boxes(masks).tolist() == [[1, 1, 5, 3], [0, 0, 0, 0]]
    pairs = [[0, 0, 4, 2], [0, 0, 4, 2], [0, 0, 1, 1]], [[2, 1, 4, 5], [0, 0, 4, 2], [1, 0, 2, 1]]
    np.testing.assert_allclose(metrics.box_iou(*pairs), [2 / 14, 1, 0])
    np.testing.assert_allclose(metrics.box_iou(np.array(pairs[0]), np.array([[0, 0, 4, 4]])), [0.5, 0.5, 1 / 16])


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


def test_share_on_own_object():
    heat = np.zeros((3, 2, 1, 4))
    masks = np.zeros((3, 2, 1, 4), bool)
    masks[:, 0, 0, 0] = masks[:, 1, 0, 3] = True  # object 0 is the first pixel, object 1 the last
    heat[0, 0] = [[0.6, 0.1, 0.1, 0.2]]  # of its heat 0.6 on its own object, 0.2 on the other
    heat[0, 1] = [[0.1, 0.2, 0.0, 0.2]]  # 0.2 and 0.4, as this map adds up to 0.5
    heat[1] = [[0.7, 0.0, 0.0, 0.1]]  # the same for both classes
    heat[2, :, 0, 1] = 1  # on no object
    shares = metrics.share_on_own_object(heat, masks)
    assert shares == pytest.approx([(0.6 + 0.4) / (0.6 + 0.2 + 0.2 + 0.4), 1 / 2, np.nan], nan_ok=True)


def test_share_on_own_object_refuses_one_map_for_two_masks():
    with pytest.raises(ValueError, match=r"Received: \(3, 1, 2, 2\) and \(3, 2, 2, 2\)"):
        metrics.share_on_own_object(np.ones((3, 1, 2, 2)), np.ones((3, 2, 2, 2), bool))
