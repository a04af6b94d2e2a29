"""utils.views: regions of interest, tiles, and what is joined of them."""

import json

import numpy as np
import pytest

from utils import imaging
from utils.views import OUTSIDE, Views


@pytest.fixture
def photos(rng):
    return rng.integers(0, 256, (2, 50, 70, 3)).astype(np.uint8)


def test_whole_photos_are_resized_and_nothing_else(photos, rng):
    np.testing.assert_array_equal(Views().cut(photos, 32, 32), imaging.resize(photos, 32, 32))
    maps = rng.random((2, 32, 32)).astype(np.float32)
    scores, joined = Views().join(np.array([1.0, 2.0]), maps, photos.shape)
    np.testing.assert_array_equal(joined, imaging.resize(maps, 50, 70))
    assert scores.tolist() == [1, 2]


def test_tiles_cover_a_photo_and_overlap(photos):
    tiles = Views(tile=20).cut(photos, 20, 20)
    starts = [0, 15, 30], [0, 12, 25, 38, 50]  # gaps of 15 at most: a quarter of 20 is shared
    assert tiles.shape == (2 * 15, 20, 20, 3)
    for tile, (n, y, x) in zip(tiles, [(n, y, x) for n in (0, 1) for y in starts[0] for x in starts[1]], strict=True):
        np.testing.assert_array_equal(tile, photos[n, y : y + 20, x : x + 20])


@pytest.mark.parametrize("length, tile", [(64, 64), (65, 64), (200, 64), (1999, 224)])
def test_neighbours_share_a_quarter(length, tile):
    starts = sorted({y for y, _ in Views(tile=tile)._corners((length, tile))})
    assert starts[0] == 0 and starts[-1] == length - tile
    assert all(0 < b - a <= 0.75 * tile + 1 for a, b in zip(starts, starts[1:], strict=False))


def test_maps_that_agree_are_joined_without_a_seam(photos, rng):
    truth = imaging.resize(rng.random((2, 5, 7)).astype(np.float32), 50, 70)
    views = Views(tile=20)
    tiles = np.concatenate([[heat[y : y + 20, x : x + 20] for y, x in views._corners((50, 70))] for heat in truth])
    scores, joined = views.join(np.arange(30), tiles, photos.shape)
    np.testing.assert_allclose(joined, truth, rtol=1e-5)
    assert scores.tolist() == [14, 29]


def test_tiles_that_differ_are_weighted_by_the_distance_to_their_edges():
    maps = np.repeat([0.0, 1.0], 16).reshape(2, 4, 4)
    _, joined = Views(tile=4).join(np.zeros(2), maps, (1, 4, 7))
    # Tiles from 0 and from 3 on share column 3, where both are at their edge.
    np.testing.assert_allclose(joined[0], np.tile([0, 0, 0, 0.5, 1, 1, 1], (4, 1)))


def test_a_box_is_cut_out_and_put_back(photos):
    views = Views.of(photos.shape[1:], (10, 5, 40, 35))
    np.testing.assert_array_equal(views.cut(photos, 30, 30), photos[:, 5:35, 10:40])
    _, joined = views.join(np.zeros(2), np.ones((2, 30, 30)), photos.shape)
    expected = np.zeros((50, 70))
    expected[5:35, 10:40] = 1
    np.testing.assert_array_equal(joined, [expected, expected])


def test_a_region_at_the_edge_is_a_pixel_in_a_tiny_photo(photos):
    views = Views.of(photos.shape[1:], (69, 49, 70, 50))
    np.testing.assert_array_equal(views.cut(photos[:, :8, :8], 1, 1), photos[:, 7:8, 7:8])
    assert Views().is_whole and not views.is_whole and not Views(tile=3).is_whole


def test_of_a_photo_of_another_size_the_same_part_is_seen(photos):
    views = Views.of(photos.shape[1:], (10, 5, 40, 35))
    larger = photos.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(views.cut(larger, 60, 60), larger[:, 10:70, 20:80])


def test_outside_a_mask_all_is_grey_and_cold(photos):
    rows, columns = np.mgrid[:50, :70]
    mask = (rows - 20) ** 2 + (columns - 30) ** 2 < 15**2
    views = Views.of(photos.shape[1:], mask)
    (seen, _), inside = views.cut(photos, 29, 29), mask[6:35, 16:45]
    np.testing.assert_array_equal(seen[inside], photos[0][mask])
    assert (seen[~inside] == OUTSIDE).all()
    _, joined = views.join(np.zeros(2), np.ones((2, 29, 29)), photos.shape)
    np.testing.assert_array_equal(joined[0], mask)


def test_views_travel_as_json(photos):
    mask = np.zeros((50, 70), bool)
    mask[10:30, 20:60] = True
    mask[15, 25] = False
    for views in (Views(), Views.of(photos.shape[1:], (1, 2, 60, 50), 20), Views.of(photos.shape[1:], mask, 20)):
        again = Views.from_dict(json.loads(json.dumps(views.asdict())))
        np.testing.assert_array_equal(again.cut(photos, 24, 24), views.cut(photos, 24, 24))
    assert Views.from_dict({}).asdict() == Views().asdict()


@pytest.mark.parametrize(
    "region, tile, problem",
    [
        ((80, 0, 90, 50), None, "holds no pixel of the photos, of 70 × 50"),
        ((30, 10, 20, 20), None, "holds no pixel"),
        (np.zeros((50, 70), bool), None, "mask is black"),
        (np.ones((50, 50), bool), None, "the size of the photos, 70 × 50 pixels. Received: 50 × 50"),
        (None, 51, "fit into what is looked at, 70 × 50 pixels of a photo. Received: tiles of 51"),
        ((0, 0, 30, 50), 40, "30 × 50"),
        (None, 0, "tiles of 0"),
    ],
)
def test_what_cannot_be_seen_is_one_sentence(region, tile, problem):
    with pytest.raises(ValueError, match=problem) as error:
        Views.of((50, 70, 3), region, tile)
    assert "\n" not in str(error.value)


def test_a_photo_smaller_than_a_tile(photos):
    with pytest.raises(ValueError, match="must fit"):
        Views(tile=60).cut(photos, 32, 32)
