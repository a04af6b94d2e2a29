"""Networks of other kinds than a classifier of maps: transformers, several inputs and outputs, dense outputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_networks import small_transformer, small_unet, two_by_two

from utils import gradcam, heatmap, networks
from utils.networks import targets, tokens


def weighted(network, seed=1):
    rng = np.random.default_rng(seed)
    for weight in network.weights:
        weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
    return network


# --- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_token", [True, False])
def test_tokens_of_a_transformer_by_hand(class_token, rng):
    network = weighted(small_transformer((24, 32), class_token=class_token))
    images = rng.random((2, 24, 32, 3)).astype(np.float32)
    layer = networks.default_layer(network)
    assert layer == ("block_1_norm1" if class_token else "norm")
    start = [x.name for x in network.layers].index(layer) + 1
    with tf.GradientTape() as tape:
        values = {layer: keras.Model(network.input, network.get_layer(layer).output)(images)}
        before = keras.Model(network.input, network.get_layer("block_0_add2").output)(images)
        tape.watch(values[layer])
        if class_token:
            y = values[layer]
            x = before + network.get_layer("block_1_attention")(y, y)
            z = network.get_layer("block_1_norm2")(x)
            x = x + network.get_layer("block_1_dense2")(network.get_layer("block_1_dense1")(z))
            score = network.get_layer("head")(network.get_layer("norm")(x)[:, 0])[:, 3]
        else:
            score = network.get_layer("head")(tf.reduce_mean(values[layer], axis=1))[:, 3]
    maps, gradients = values[layer].numpy(), tape.gradient(score, values[layer]).numpy()
    maps, gradients = (x[:, -48:].reshape(2, 6, 8, 8) for x in (maps, gradients))
    expected = np.einsum("nhwc,nc->nhw", maps, gradients.mean(axis=(1, 2)))
    raw = gradcam.explain(network, images, targets=3, normalise=False)
    np.testing.assert_allclose(raw, expected, atol=1e-5 * np.abs(expected).max())
    assert start > 1
    heat = gradcam.explain(network, images, targets=3)
    np.testing.assert_allclose(heat, heatmap.normalise_and_resize(expected, 24, 32), atol=1e-4)


@pytest.mark.parametrize("method", ["gradcam", "xgradcam", "shapleycam", "scorecam", "ablationcam", "fullgrad"])
def test_each_kind_of_method_takes_tokens(method, rng):
    network = weighted(small_transformer((16, 16)))
    images = rng.random((2, 16, 16, 3)).astype(np.float32)
    heat = gradcam.explain(network, images, layer="block_1_norm1", method=method)
    assert heat.shape == (2, 16, 16) and np.isfinite(heat).all() and 0 <= heat.min() <= heat.max() <= 1
    several = gradcam.explain_layers(network, images, layers=["patches", "block_1_norm1"], method=method)
    np.testing.assert_allclose(several["block_1_norm1"], heat, atol=1e-4)


def test_a_stated_grid_and_one_that_does_not_fit(rng):
    network = small_transformer((24, 32), class_token=False)
    images = rng.random((1, 24, 32, 3)).astype(np.float32)
    assert gradcam.explain(network, images, normalise=False).shape == (1, 6, 8)
    assert gradcam.explain(network, images, grid=(4, 12), normalise=False).shape == (1, 4, 12)
    for grid in ((5, 5), (7, 7), (0, 4)):
        with pytest.raises(ValueError, match=r"Expected grid=\(rows, columns\) of the patches"):
            gradcam.explain(network, images, grid=grid)
    with pytest.raises(ValueError, match="for 30 tokens"):
        tokens.grid_of(30, (4, 6))


def test_names_of_layers_with_tokens_are_listed():
    with pytest.raises(ValueError, match="choose one of .*block_0_norm1.* Received: 'missing'"):
        gradcam.explain(small_transformer((16, 16)), np.zeros((1, 16, 16, 3), np.float32), layer="missing")


# --- several inputs and outputs ------------------------------------------------------------------------------------


def test_one_of_two_outputs_with_the_other_input_held(rng):
    network = weighted(two_by_two())
    images, held = rng.random((3, 12, 12, 3)).astype(np.float32), np.array([0.5, -2.0])
    kind = networks.single(network, output="kind", held={"number": held})
    both = network([images, np.repeat(held[None], 3, axis=0).astype(np.float32)])
    np.testing.assert_allclose(kind(images), both[0], atol=1e-6)
    measure = networks.single(network, output=1, held={"number": held})
    np.testing.assert_allclose(measure(images), both[1], atol=1e-6)
    maps = keras.Model(network.inputs[0], network.get_layer("maps").output)(images)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        number = np.repeat(held[None], 3, axis=0).astype(np.float32)
        x = tf.concat([tf.reduce_mean(maps, axis=(1, 2)), number], axis=1)
        score = network.get_layer("measure")(network.get_layer("hidden")(x))[:, 0]
    expected = tf.einsum("nhwc,nc->nhw", maps, tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2)))
    raw = gradcam.explain(measure, images, targets=0, normalise=False)
    np.testing.assert_allclose(raw, expected, atol=1e-6)
    assert np.abs(gradcam.explain(kind, images, normalise=False) - raw).max() > 1e-3


def test_an_output_by_name_in_explain(rng):
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu", name="maps")(inputs))
    ends = [keras.layers.Dense(3, name="a")(x), keras.layers.Dense(2, "sigmoid", name="b")(x)]
    network, images = keras.Model(inputs, ends), rng.random((2, 12, 12, 3)).astype(np.float32)
    for index, name in enumerate("ab"):
        alone = keras.Model(inputs, ends[index])
        expected = gradcam.explain(alone, images, targets=1)
        np.testing.assert_allclose(gradcam.explain(network, images, output=name, targets=1), expected, atol=1e-6)
        np.testing.assert_allclose(gradcam.explain(network, images, output=index, targets=1), expected, atol=1e-6)
    assert networks.single(network, output="a") is networks.single(network, output="a")  # compiled once
    with pytest.raises(ValueError, match="`networks.single` makes of several"):
        gradcam.explain(network, images)


@pytest.mark.parametrize(
    "how, sentence",
    [
        ({"output": "none", "held": {"number": [0, 0]}}, r"\['kind', 'measure'\], .* Received: 'none'"),
        ({"output": 2, "held": {"number": [0, 0]}}, "Received: 2"),
        ({"held": {"number": [0, 0]}}, "Received: None"),
        ({"output": 0}, r"for all of the inputs \['image', 'number'\] but one. Received: None"),
        ({"output": 0, "held": {}}, r"but one. Received: \[\]"),
        ({"output": 0, "held": {"weight": [0]}}, r"Received: \['weight'\]"),
        ({"output": 0, "held": {"number": [0, 0, 0]}}, r"Expected 'number' of shape \(2,\). Received: \(3,\)"),
    ],
)
def test_wrong_ports(how, sentence):
    with pytest.raises(ValueError, match=sentence):
        networks.single(two_by_two(), **how)


# --- dense outputs, and targets in words ---------------------------------------------------------------------------


def test_a_region_of_a_segmentation(rng):
    network = weighted(small_unet())
    images = rng.random((2, 16, 16, 3)).astype(np.float32)
    mask = np.zeros((16, 16), bool)
    mask[4:9, 2:7] = True
    logits = keras.Model(network.input, network.get_layer("logits").output)(images).numpy()
    asked = targets.region(1, mask=mask)
    np.testing.assert_allclose(asked(tf.constant(logits)), logits[:, mask][..., 1].mean(axis=1), rtol=1e-5)
    heat = gradcam.explain(network, images, layer="up", method="hirescam", targets=asked, normalise=False)
    assert np.abs(heat[:, mask]).max() > 0 and not heat[:, ~mask].any()  # a convolution of 1 x 1 follows
    by_box = gradcam.explain(network, images, layer="bottom", targets=targets.region(1, box=(2, 4, 7, 9)))
    np.testing.assert_allclose(by_box, gradcam.explain(network, images, layer="bottom", targets=asked), atol=1e-6)
    whole = targets.region(2)(tf.constant(logits))
    np.testing.assert_allclose(whole, logits[..., 2].mean(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    "how", [{"mask": np.ones((3, 3), bool)}, {"box": (0, 0, 17, 2)}, {"class_id": 3}, {"class_id": -1}]
)
def test_a_region_that_does_not_fit(how):
    asked = targets.region(**({"class_id": 0} | how))
    with pytest.raises(ValueError, match=r"a region and a class of the output \(1, 16, 16, 3\)"):
        asked(tf.zeros((1, 16, 16, 3)))


@pytest.mark.parametrize(
    "how",
    [{"mask": np.zeros((3, 3), bool)}, {"box": (2, 2, 2, 3)}, {"mask": np.ones((3, 3), bool), "box": (0, 0, 1, 1)}],
)
def test_a_region_that_is_none(how):
    with pytest.raises(ValueError, match="a mask or a box that is not empty"):
        targets.region(0, **how)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("cat - dog", [1, -1, 0]), ("-cat", [-1, 0, 0]), ("- cat", [-1, 0, 0]), ("0 + 0.5 * dog", [1, 0.5, 0]),
        ("x-ray fish", [0, 0, 1]), ("dog - x-ray fish + 2", [0, 1, 0]), ("2*cat + cat", [3, 0, 0]),
    ],
)
def test_targets_in_words(text, expected):
    score = targets.parse(text, ["cat", "dog", "x-ray fish"])
    np.testing.assert_allclose(score(tf.eye(3)), expected)


@pytest.mark.parametrize("text", ["bird", "cat - bird", "", "cat - ", "7", "cat - cat"])
def test_wrong_targets_in_words(text):
    with pytest.raises(ValueError, match="^(The target names a class that is not there|Expected a target such as)"):
        targets.parse(text, ["cat", "dog"])


# --- networks of keras.applications --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ConvNeXtTiny", "EfficientNetV2B0", "NASNetMobile"])
def test_networks_of_keras_applications(name, rng):
    network = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=5)
    images = rng.integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    for method in ("gradcam", "layercam", "shapleycam", "fullgrad"):
        heat = gradcam.explain(network, images, method=method)
        assert heat.shape == (1, 64, 64) and np.isfinite(heat).all()
