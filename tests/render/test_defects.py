"""Artificial defects: they change what their mask says, and only that."""

import numpy as np
import pytest

from utils.render import defects
from utils.render.rings import NORMAL, render_rings


@pytest.fixture(scope="module")
def rings():
    return render_rings([NORMAL] * 8, 96)[0]


@pytest.mark.parametrize("kind", defects.KINDS)
def test_a_defect_is_where_its_mask_says(kind, rings, rng):
    made = 0
    for image, other in zip(rings, rings[::-1], strict=True):
        before = image.copy()
        changed, mask = defects.add_defect(image, other, kind=kind, rng=rng)
        assert changed.dtype == np.uint8 and changed.shape == image.shape
        assert mask.dtype == bool and mask.shape == image.shape[:2]
        np.testing.assert_array_equal(image, before)
        difference = np.abs(changed.astype(int) - image).max(axis=-1)
        assert (difference[~mask] < 9 * defects.SMALLEST_CHANGE).all()  # no neighbourhood has changed
        if mask.any():
            made += 1
            assert defects.SMALLEST_AREA <= mask.mean() < 0.3
            assert difference[mask].mean() > defects.SMALLEST_CHANGE / 2
    assert made >= 4


@pytest.mark.parametrize("kind", defects.KINDS)
def test_the_same_generator_gives_the_same_defect(kind, rings):
    once, again = (defects.add_defect(rings[0], rings[1], kind=kind, rng=np.random.default_rng(3)) for _ in range(2))
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["erased", "shifted"])
def test_what_changes_nothing_is_no_defect(kind, rng):
    plain = np.full((48, 48, 3), 90, np.uint8)
    changed, mask = defects.add_defect(plain, plain, kind=kind, rng=rng)
    assert not mask.any()
    np.testing.assert_array_equal(changed, plain)
