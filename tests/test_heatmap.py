"""Heat maps, overlays and boxes against written-out values."""

import cv2
import numpy as np

from utils import heatmap


def test_finish_is_relu_then_division_by_the_maximum():
    raw = np.array([[[-2.0, 1.0], [4.0, 2.0]]])
    np.testing.assert_allclose(heatmap.finish(raw, 2, 2), [[[0, 0.25], [1, 0.5]]])


def test_no_positive_evidence_is_a_map_of_zeros():
    raw = np.stack([np.zeros((3, 3)), -np.ones((3, 3)), np.full((3, 3), 1e-40)])
    maps = heatmap.finish(raw, 6, 6)
    assert maps.dtype == np.float32 and maps.shape == (3, 6, 6)
    assert not maps[:2].any() and maps[2].max() < 1e-20  # next to nothing is no full heat either


def test_finish_resizes_bilinearly_and_stays_in_range():
    maps = heatmap.finish(np.array([[[0.0, 1.0]]]), 1, 4)
    np.testing.assert_allclose(maps[0, 0], [0, 0.25, 0.75, 1])  # half-pixel centres


def test_maps_are_normalised_one_by_one():
    maps = heatmap.finish(np.array([[[1.0]], [[100.0]]]), 1, 1)
    np.testing.assert_array_equal(maps, np.ones((2, 1, 1)))


def test_overlay_mixes_image_and_colours():
    image = np.full((2, 2, 3), 100, np.uint8)
    hottest = cv2.applyColorMap(np.array([[255]], np.uint8), heatmap.COLORMAP)[0, 0, ::-1]
    result = heatmap.overlay(image, np.ones((2, 2), np.float32), opacity=0.25)
    assert result.dtype == np.uint8 and np.abs(result - np.round(0.75 * 100 + 0.25 * hottest)).max() <= 1
    np.testing.assert_array_equal(heatmap.overlay(image, np.ones((2, 2), np.float32), opacity=0.0), image)


def test_grey_rounds():
    assert heatmap.grey(np.array([[0.0, 0.5, 0.998, 1.0]])).tolist() == [[0, 128, 254, 255]]


def test_box_surrounds_the_largest_hot_region():
    heat = np.zeros((8, 10), np.float32)
    heat[0, 0] = 1.0  # hottest, but small
    heat[3:6, 4:9] = 0.9
    assert heatmap.box(heat) == (4, 3, 9, 6)
    assert heatmap.box(heat, threshold=0.95) == (0, 0, 1, 1)


def test_no_heat_no_box():
    assert heatmap.box(np.zeros((5, 5), np.float32)) is None


def test_segment_is_the_image_times_its_heat():
    image = np.array([[[200, 100, 0], [50, 50, 50]]], np.uint8)
    heat = np.array([[0.5, 0.0]], np.float32)
    assert heatmap.segment(image, heat).tolist() == [[[100, 50, 0], [0, 0, 0]]]
