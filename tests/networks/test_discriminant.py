"""What tells hot cells from cold ones, against values by hand, scikit-learn and invariants."""

import keras
import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from utils.networks import discriminant
from utils.networks.discriminant import Discriminant


@pytest.fixture
def maps(rng):
    """Of 40 photos 8 x 8 cells of 5 channels, in the middle another mean, and the heat that says so."""
    heat = np.zeros((40, 8, 8), np.float32)
    heat[:, 2:6, 3:6] = 1
    maps = rng.standard_normal((40, 8, 8, 5)) @ rng.standard_normal((5, 5))
    return (maps + heat[..., None] * [3, -2, 0, 1, 0]).astype(np.float32), heat


def test_weights_are_those_of_fishers_discriminant(maps, monkeypatch):
    monkeypatch.setattr(discriminant, "SHRINKAGE", 0.0)
    maps, heat = maps
    fitted = Discriminant.fit([([maps[:30]], heat[:30]), ([maps[30:]], heat[30:])])
    other = LinearDiscriminantAnalysis(solver="lsqr").fit(maps.reshape(-1, 5), heat.ravel() > 0)
    ratios = fitted.weights[0] / other.coef_[0]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)
    z = maps @ fitted.weights[0] + fitted.bias
    hot, cold = z[heat > 0], z[heat == 0]
    assert abs(hot.mean() + cold.mean()) < 1e-3 and z.var() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(fitted([maps]), np.log1p(np.exp(z)), rtol=1e-4)


def test_the_rim_is_cold_whatever_its_heat(maps):
    maps, heat = maps
    warm = np.where(discriminant.rim(8, 8), 1, heat).astype(np.float32)
    (of_heat,), (of_warm,) = (Discriminant.fit([([maps], shown)]).weights for shown in (heat, warm))
    np.testing.assert_array_equal(of_heat, of_warm)


def test_scale_and_offset_of_a_channel_do_not_change_the_order_of_cells(maps, monkeypatch):
    monkeypatch.setattr(discriminant, "SHRINKAGE", 0.0)
    maps, heat = maps
    scaled = maps * np.float32([1, 10, 0.1, 1, 2]) + np.float32([0, 1, 2, 3, 4])
    one, other = (Discriminant.fit([([shown], heat)])([shown]) for shown in (maps, scaled))
    np.testing.assert_allclose(one, other, atol=1e-2)


def test_layers_of_several_grids_add_up(maps, rng):
    maps, heat = maps
    fine = rng.standard_normal((40, 16, 24, 3)).astype(np.float32)
    fitted = Discriminant.fit([([maps, fine], heat)])
    assert fitted([maps, fine]).shape == (40, 16, 24) and (fitted([maps, fine]) > 0).all()
    again = Discriminant.of(fitted.arrays())
    np.testing.assert_array_equal(again([maps, fine]), fitted([maps, fine]))
    assert Discriminant.of({}) is None


def test_no_heat_and_constant_maps_stay_finite():
    maps, heat = np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4), np.float32)
    assert np.isfinite(Discriminant.fit([([maps], heat)])([maps])).all()


def test_the_rim_needs_three_cells(rng):
    inputs = keras.Input((8, 8, 3))
    network = keras.Model(inputs, keras.layers.Conv2D(2, 3, strides=4, padding="same", name="maps")(inputs))
    images = rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    with pytest.raises(ValueError, match=r"at least 3 x 3 cells. Received: \(2, 2\)"):
        discriminant.contrasts(network, ["maps"], images, None)
