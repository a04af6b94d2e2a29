"""Heat maps, overlays and boxes against written-out values."""

import cv2
import numpy as np
import pytest

from utils import heatmap


def test_normalise_and_resize_is_relu_then_division_by_the_maximum():
    raw = np.array([[[-2.0, 1.0], [4.0, 2.0]]])
    np.testing.assert_allclose(heatmap.normalise_and_resize(raw, 2, 2), [[[0, 0.25], [1, 0.5]]])


def test_no_positive_evidence_is_a_map_of_zeros():
    raw = np.stack([np.zeros((3, 3)), -np.ones((3, 3)), np.full((3, 3), 1e-40)])
    maps = heatmap.normalise_and_resize(raw, 6, 6)
    assert maps.dtype == np.float32 and maps.shape == (3, 6, 6)
    assert not maps[:2].any() and maps[2].max() < 1e-20  # next to nothing is no full heat either


def test_normalise_and_resize_resizes_bilinearly_and_stays_in_range():
    maps = heatmap.normalise_and_resize(np.array([[[0.0, 1.0]]]), 1, 4)
    np.testing.assert_allclose(maps[0, 0], [0, 0.25, 0.75, 1])  # half-pixel centres


def test_maps_are_normalised_one_by_one():
    maps = heatmap.normalise_and_resize(np.array([[[1.0]], [[100.0]]]), 1, 1)
    np.testing.assert_array_equal(maps, np.ones((2, 1, 1)))


def test_overlay_mixes_image_and_colours():
    image = np.full((2, 2, 3), 100, np.uint8)
    hottest = cv2.applyColorMap(np.array([[255]], np.uint8), heatmap.COLORMAP)[0, 0, ::-1]
    result = heatmap.overlay(image, np.ones((2, 2), np.float32), opacity=0.25)
    assert result.dtype == np.uint8 and np.abs(result - np.round(0.75 * 100 + 0.25 * hottest)).max() <= 1
    np.testing.assert_array_equal(heatmap.overlay(image, np.ones((2, 2), np.float32), opacity=0.0), image)


def test_grey_rounds():
    assert heatmap.grey(np.array([[0.0, 0.5, 0.998, 1.0]])).tolist() == [[0, 128, 254, 255]]


@pytest.fixture
def spots():
    """A single hottest pixel, and a rectangle of 15 pixels of 0.9 with a faint one beside it."""
    heat = np.zeros((8, 10), np.float32)
    heat[0, 0], heat[3:6, 4:9], heat[6, 9] = 1.0, 0.9, 0.1
    return heat


def test_boxes_come_by_their_heat(spots):
    first, second = heatmap.boxes(spots, 0.5, n_boxes=5)
    assert first.corners == (4, 3, 9, 6) and second.corners == (0, 0, 1, 1)
    assert first.score == pytest.approx(13.5 / 14.6) and second.score == pytest.approx(1 / 14.6)
    assert first.region.sum() == 15 and first.region[3:6, 4:9].all()
    assert [box.corners for box in heatmap.boxes(spots, 0.5)] == [first.corners]
    assert [box.corners for box in heatmap.boxes(spots, 0.5, n_boxes=5, min_area=0.1)] == [first.corners]
    assert heatmap.box(spots, 0.5) == first.corners and heatmap.box(spots, 0.95) == second.corners


@pytest.mark.parametrize(
    "heat, area, n_boxes",  # of a second region, whose first one has 1.0 on 6 pixels; 0.6 of it is as much
    [(1.0, 6, 2), (0.61, 6, 2), (0.59, 6, 1), (1.0, 4, 2), (1.0, 3, 1)],
)
def test_auto_gives_each_of_several_objects_a_box(heat, area, n_boxes):
    maps = np.zeros((8, 20), np.float32)
    maps[1:3, 1:4] = 1
    maps[5, 1 : 1 + area] = heat
    maps[7, 19] = 0.9  # a hot pixel is no object
    found = heatmap.boxes(maps, 0.5, n_boxes="auto")
    assert len(found) == n_boxes and found[-1].region[5, 1] == (n_boxes == 2)


def test_a_threshold_is_a_share_of_the_maximum(spots):
    np.testing.assert_array_equal(heatmap.hot(spots, 0.5), spots > 0.5)
    np.testing.assert_array_equal(heatmap.hot(spots / 7, 0.5), spots > 0.5)
    np.testing.assert_array_equal(heatmap.hot(spots, 0), spots > 0)
    assert heatmap.box(spots, 0) == (4, 3, 10, 7)  # the faint pixel touches by a corner


def test_a_percentile_leaves_the_hottest():
    heat = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_array_equal(heatmap.hot(heat, "p75"), heat > 11.25)
    assert not heatmap.hot(np.ones((4, 4)), "p75").any()  # nothing is hotter than the rest


def test_otsu_splits_by_orders_of_magnitude():
    heat = np.array([[1.0, 0.2, 1e-3, 1e-4]], np.float32)
    assert heatmap.hot(heat).tolist() == [[True, True, False, False]]
    np.testing.assert_array_equal(heatmap.hot(heat / 50), heatmap.hot(heat))
    assert heatmap.hot(np.full((2, 2), 0.3)).all()  # no two parts: all that is not cold


@pytest.mark.parametrize("threshold", ["otsu", 0.0, 0.5, "p0"])
def test_no_heat_no_box(threshold):
    assert heatmap.boxes(np.zeros((5, 5), np.float32), threshold) == []
    assert heatmap.box(np.zeros((5, 5), np.float32), threshold) is None


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"threshold": 1.0}, "A threshold must be"), ({"threshold": "p100"}, "A threshold must be"),
        ({"threshold": "best"}, "A threshold must be"), ({"n_boxes": 0}, "n_boxes >= 1"),
        ({"n_boxes": "many"}, "or \"auto\""),
        ({"min_area": 1.0}, "min_area in"), ({"heatmap": np.ones((1, 2, 2))}, "one finite heat map"),
        ({"heatmap": np.array([[np.nan]])}, "one finite heat map"), ({"heatmap": -np.ones((2, 2))}, "nowhere below 0"),
        ({"heatmap": np.ones((0, 2))}, "one finite heat map"),
    ],
)
def test_what_has_no_boxes(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        heatmap.boxes(**{"heatmap": np.ones((2, 2))} | change)


def test_an_outline_runs_along_the_edges_of_pixels(rng):
    assert set(map(tuple, heatmap.outline(np.ones((3, 5), bool)))) == {(0, 0), (5, 0), (5, 3), (0, 3)}
    one = np.zeros((4, 4), bool)
    one[2, 1] = True
    assert set(map(tuple, heatmap.outline(one))) == {(1, 2), (2, 2), (2, 3), (1, 3)}
    heat = cv2.GaussianBlur(rng.random((60, 60)).astype(np.float32), (0, 0), 6)
    box = heatmap.boxes(heat - heat.min(), 0.5)[0]
    border, (x0, y0, x1, y1) = heatmap.outline(box.region), box.corners
    assert np.abs([*border.min(axis=0), *border.max(axis=0)] - np.array([x0, y0, x1, y1])).max() <= 0.5
    filled = np.zeros((600, 600), np.uint8)
    cv2.fillPoly(filled, [np.round(border * 10).astype(np.int32)], 1)
    assert abs(filled.sum() / 100 - box.region.sum()) < 0.03 * box.region.sum()


def test_segment_is_the_image_times_its_heat():
    image = np.array([[[200, 100, 0], [50, 50, 50]]], np.uint8)
    heat = np.array([[0.5, 0.0]], np.float32)
    assert heatmap.segment(image, heat).tolist() == [[[100, 50, 0], [0, 0, 0]]]
