"""Maps of networks that forget: nothing shuffled, too little to matter, and all that matters."""

import functools

import keras
import numpy as np
import pytest

from utils import gradcam
from utils.arcface import ArcFace
from utils.faster_gradcam import FasterGradCAM
from utils.metrics import sanity


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(x)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="early")(x)
    x = keras.layers.Conv2D(12, 3, activation="relu", name="late")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, ArcFace(3, name="head")(keras.layers.Dense(5, name="embedding")(x)))


@pytest.fixture(scope="module")
def faster(network, images):
    labels = np.arange(6) % 3
    return FasterGradCAM.fit(network, images, labels, layer="late", n_clusters=1)


def explain(images, **options):
    return functools.partial(gradcam.explain, images=images, layer="late", targets=0, **options)


def test_maps_of_a_forgetful_network_lose_their_likeness(network, images):
    weights = [array.copy() for array in network.get_weights()]
    agreement = sanity.cascade(network, explain(images))
    assert list(agreement) == ["head", "embedding", "late", "early"]
    assert all(values.shape == (6,) for values in agreement.values())
    assert abs(np.nanmean(agreement["early"])) < 0.5
    for before, after in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_eigencam_does_not_notice_what_lies_above_its_layer(network, images):
    agreement = sanity.cascade(network, explain(images, method="eigencam"), layers=["early", "embedding"])
    assert list(agreement) == ["embedding", "early"]
    np.testing.assert_allclose(agreement["embedding"], 1)
    assert agreement["early"].mean() < 0.9


def test_all_layers_down_to_the_named_one_are_shuffled(network, images):
    each, last = (sanity.cascade(network, explain(images), layers=layers) for layers in (None, ["late"]))
    np.testing.assert_array_equal(each["late"], last["late"])


def test_equal_seeds_shuffle_equally(network, images):
    shuffle = functools.partial(sanity.cascade, network, explain(images), layers=["late"])
    first, again, other = (shuffle(seed=seed)["late"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other, equal_nan=True)


def test_stored_weights_give_the_explainers_own_maps(faster, images):
    own = sanity.stored_weights(faster, images)(faster.network)
    np.testing.assert_allclose(own, faster.explain(images).heatmaps, atol=1e-5)


def test_stored_weights_do_not_explain_another_network(faster, images):
    agreement = sanity.cascade(faster.network, sanity.stored_weights(faster, images))
    np.testing.assert_allclose(agreement["embedding"], 1)  # the map takes no notice of it
    assert np.nanmean(agreement["early"]) < 0.8


def test_layers_of_nested_networks(network, images):
    inner = keras.Model(network.inputs, network.get_layer("embedding").output, name="inner")
    outer = keras.Sequential([keras.Input((16, 16, 3)), inner, keras.layers.Dense(2, name="top")])
    maps = functools.partial(gradcam.explain, images=images, layer="inner/late", targets=1)
    assert list(sanity.cascade(outer, maps)) == ["top", "inner/embedding", "inner/late", "inner/early"]


def test_unknown_layer(network, images):
    with pytest.raises(ValueError, match=r"early.*Received: \['global_average_pooling2d"):
        sanity.cascade(network, explain(images), layers=[network.layers[-3].name])
