"""Deep feature factorisation: on maps that are made of known concepts, and what the concepts speak for."""

import keras
import numpy as np
import pytest
from small_networks import small_transformer

from utils import heatmap
from utils.networks import concepts


def network_of(kernel):
    """Its maps are the image; its scores their mean times the kernel (C, n_classes)."""
    inputs = keras.Input((4, 6, kernel.shape[0]))
    maps = keras.layers.Conv2D(kernel.shape[0], 1, use_bias=False, name="maps")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(maps)
    network = keras.Model(inputs, keras.layers.Dense(kernel.shape[1], "softmax", name="head")(x))
    network.set_weights([np.eye(kernel.shape[0])[None, None], kernel, np.full(kernel.shape[1], 0.3)])
    return network


def test_known_concepts_are_found_and_named():
    # Left half: concept (3, 0, 4)/5 of strength 10; right half: (0, 1, 0) of strength 5, in one image only 2.5.
    images = np.zeros((2, 4, 6, 3), np.float32)
    images[:, :, :3] = [6, 0, 8]
    images[0, :, 3:, 1], images[1, :, 3:, 1] = 5, 2.5
    kernel = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]])
    found = concepts.factorise(network_of(kernel), images, n_concepts=2)
    np.testing.assert_allclose(found.vectors, [[0.6, 0, 0.8], [0, 1, 0]], atol=1e-3)
    np.testing.assert_allclose(found.evidence, [[6, 4], [0, 5]], atol=0.01)
    assert found.names(["cat", "dog"]) == ["cat", "dog"] and found.names(["cat", "dog"], 2)[0] == "cat, dog"
    assert found.explained == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(found.heatmaps[:, 0, :, :3], 1, atol=1e-3)
    np.testing.assert_allclose(found.heatmaps[:, 0, :, 3:], 0, atol=1e-3)
    np.testing.assert_allclose(found.heatmaps[1, 1, :, 3:], 0.5, atol=1e-3)


def test_more_concepts_hold_more_and_the_same_seed_gives_the_same(rng):
    images = rng.random((3, 4, 6, 5)).astype(np.float32)
    network = network_of(rng.random((5, 3)))
    shares = [concepts.factorise(network, images, n_concepts=k).explained for k in (1, 2, 4)]
    assert shares == sorted(shares) and 0.5 < shares[0] < shares[-1] <= 1
    once, twice = (concepts.factorise(network, images, n_concepts=2) for _ in range(2))
    np.testing.assert_array_equal(once.heatmaps, twice.heatmaps)
    assert once.heatmaps.shape == (3, 2, 4, 6) and 0 <= once.heatmaps.min() <= once.heatmaps.max() <= 1


def test_tokens_of_a_transformer_hold_concepts(rng):
    images = rng.random((2, 24, 32, 3)).astype(np.float32)
    found = concepts.factorise(small_transformer((24, 32)), images, n_concepts=3)
    assert found.heatmaps.shape == (2, 3, 24, 32) and found.evidence.shape == (3, 5)


@pytest.mark.parametrize("n_concepts", [0, 6])
def test_wrong_numbers_and_empty_maps(n_concepts, rng):
    network = network_of(rng.random((5, 3)))
    with pytest.raises(ValueError, match=f"Expected 1 to 5 concepts. Received: {n_concepts}"):
        concepts.factorise(network, rng.random((1, 4, 6, 5)), n_concepts=n_concepts)
    with pytest.raises(ValueError, match="not all zero. Received: those of 'maps'"):
        concepts.factorise(network, np.zeros((1, 4, 6, 5)), n_concepts=2)


def test_concepts_are_drawn_in_colours_of_their_own():
    image, maps = np.full((2, 3, 3), 100, np.uint8), np.zeros((2, 2, 3))
    maps[0, :, 0], maps[1, :, 1] = 1, 0.5
    maps[0, :, 1] = 0.25  # the stronger one counts
    drawn = heatmap.paint(image, maps, opacity=1)
    red, green = heatmap.CONCEPT_COLOURS[:2]
    np.testing.assert_array_equal(drawn[:, 0], [red] * 2)
    np.testing.assert_allclose(drawn[:, 1], [0.5 * np.array(green) + 50] * 2, atol=1)
    np.testing.assert_array_equal(drawn[:, 2], image[:, 2])
    with pytest.raises(ValueError, match=r"Expected maps \(K, 2, 3\) of at most 8 concepts. Received: \(2, 3\)"):
        heatmap.paint(image, maps[0])
