"""Ours beside torchvision, pytorch-grad-cam and captum on the same weights; `benchmarks.references` asked them."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from benchmarks import methods, references
from keras import layers
from small_networks import small_transformer

from utils import gradcam, networks
from utils.networks import cams, classifiers, torchvision_nets

CLOSE = 1e-5  # of the largest value

every_network = pytest.mark.parametrize("name", references.LAYERS)


@functools.cache
def network(name):
    network = _small() if name == "small" else classifiers.build(name, image_size=references.SIZES[name])
    state = references.state_dict(name)
    if name in ("resnet18", "shufflenet_v2"):
        torchvision_nets.assign_state_dict(network, state)
    else:  # here the weights have the same order
        pairs = zip(state.values(), network.get_weights(), strict=True)
        network.set_weights([_in_keras_order(values).reshape(old.shape) for values, old in pairs])
    return network


def _small():
    images = keras.Input((*references.SIZES["small"], 3))
    x = classifiers.PREPROCESSING["torch"]()(images)
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="conv1")(x)
    x = layers.Conv2D(12, 3, activation="relu", name="conv2")(x)
    return keras.Model(images, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


def _in_keras_order(values):
    """(out, in, h, w) → (h, w, in, out), where (C, 1, h, w) of a depthwise kernel becomes (h, w, 1, C)."""
    return values.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[values.ndim])


def assert_close(got, expected, tolerance, what=""):
    print(what, f"{abs(got - expected).max() / abs(expected).max():.1e}")
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * abs(expected).max())


@every_network
def test_logits(name):
    logits = network(name)(references.images(name), training=False)
    np.testing.assert_allclose(logits, references.expected()[f"{name}/logits"], rtol=0, atol=1e-4)


def their_plus_plus(maps, gradients):
    """Grad-CAM++ with what pytorch-grad-cam adds to the denominator, 1e-6; ours does not (see `references.SCALE`)."""
    denominator = 2 * gradients**2 + tf.reduce_sum(maps, axis=(1, 2), keepdims=True) * gradients**3 + 1e-6
    weights = tf.nn.relu(gradients) * gradients**2 / denominator
    return tf.einsum("nhwc,nc->nhw", maps, tf.reduce_sum(weights, axis=(1, 2)))


@every_network
def test_raw_maps(name, monkeypatch):
    # All methods as if they were one: the network is traced once.
    def all_methods(*maps_and_gradients):
        formulas = [*(cams.RAW_MAPS[method] for method in references.METHODS), their_plus_plus]
        return tf.stack([formula(*maps_and_gradients) for formula in formulas], axis=1)

    monkeypatch.setitem(cams.RAW_MAPS, "all", all_methods)
    monkeypatch.setattr(gradcam, "METHODS", ("all",))
    names = tuple(references.LAYERS[name])

    def score(scores):
        return references.SCALE * scores[:, references.TARGET]

    raw, *_ = gradcam._raw_maps(network(name), references.images(name), layers=names, targets=score, method="all")
    for layer, maps in zip(names, raw, strict=True):
        expected = references.expected()[f"{name}/{layer}"]
        for i, method in enumerate(references.METHODS):
            for ours, theirs in zip(maps[:, i], expected[i], strict=True):
                assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999, (layer, method)
                if method != "gradcam++":
                    assert_close(ours, theirs, CLOSE, f"{layer} {method}")
        plus_plus = expected[list(references.METHODS).index("gradcam++")]
        assert_close(maps[:, -1], plus_plus, CLOSE, f"{layer} gradcam++ with their constant")
        for method, theirs in zip(references.CAPTUM, references.expected()[f"{name}/{layer}/captum"], strict=True):
            ours = maps[:, list(references.METHODS).index(method)]
            assert_close(ours, references.SCALE * theirs, CLOSE, f"{layer} captum {method}")


@every_network
def test_guided_backpropagation(name):
    guided = gradcam.guided_backprop(network(name), references.images(name), targets=references.TARGET)
    thinned = guided[:, :: references.THINNING, :: references.THINNING]
    assert_close(thinned, references.expected()[f"{name}/guided"], CLOSE, "guided")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])  # whose maps cover the whole image
def test_guided_gradcam(name):
    """Theirs is not divided by the maximum of the map."""
    layer = list(references.LAYERS[name])[-1]
    got = gradcam.guided_gradcam(network(name), references.images(name), layer=layer)
    thinned = got[:, :: references.THINNING, :: references.THINNING]
    for ours, theirs in zip(thinned, references.expected()[f"{name}/guided_gradcam"], strict=True):
        assert_close(ours / abs(ours).max(), theirs / abs(theirs).max(), CLOSE, "guided_gradcam")


# --- the rarer methods, and a transformer -------------------------------------------------------------------------


@functools.cache
def peers():
    return dict(np.load(methods.FILE))


def compare(network_, images, layer, prefix):
    for key, expected in peers().items():
        if not key.startswith(f"{prefix}/"):
            continue
        method = key.rpartition("/")[2]
        targets = None if method == "finercam" else references.TARGET
        got = gradcam.explain(network_, images, layer=layer, targets=targets, method=method, normalise=False)
        for ours, theirs in zip(got, expected, strict=True):
            if method in ("eigengradcam", "ablationcam"):  # a sign is free, and theirs divides by a negative score
                ours = ours * np.sign((ours * theirs).sum())
            assert_close(ours, theirs, CLOSE, f"{prefix} {method}")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "small" else pytest.mark.slow) for name in methods.NETWORKS]
)
def test_rarer_methods(name):
    for layer in references.LAYERS[name]:
        compare(network(name), references.images(name), layer, f"{name}/{layer}")


def test_a_transformer():
    transformer = small_transformer(
        methods.SIZE, patch=methods.PATCH, depth=methods.DEPTH, width=methods.WIDTH, heads=methods.HEADS,
        n_classes=methods.N_CLASSES,
    )
    assign_torch(transformer, methods.transformer_state())
    images = methods.transformer_images()
    np.testing.assert_allclose(transformer(images), peers()["transformer/logits"], rtol=0, atol=1e-5)
    assert networks.default_layer(transformer) == "block_1_norm1"
    compare(transformer, images, "block_1_norm1", "transformer/norm")


def assign_torch(transformer, state):
    """Weights by torch's names into `samples.small_transformer`."""
    width = methods.WIDTH
    layer = transformer.get_layer
    layer("patches").set_weights([state["patches.weight"].transpose(2, 3, 1, 0), state["patches.bias"]])
    layer("tokens").set_weights([state["token"], state["positions"]])
    for n in range(methods.DEPTH):
        own = {name.removeprefix(f"blocks.{n}."): values for name, values in state.items()}
        for norm in ("norm1", "norm2"):
            layer(f"block_{n}_{norm}").set_weights([own[f"{norm}.weight"], own[f"{norm}.bias"]])
        heads = (methods.HEADS, width // methods.HEADS)
        parts = []
        for i in range(3):  # query, key, value
            rows = slice(i * width, (i + 1) * width)
            kernel, bias = own["attention.in_proj_weight"][rows], own["attention.in_proj_bias"][rows]
            parts += [kernel.T.reshape(width, *heads), bias.reshape(heads)]
        out = own["attention.out_proj.weight"].T.reshape(*heads, width)
        layer(f"block_{n}_attention").set_weights([*parts, out, own["attention.out_proj.bias"]])
        for theirs, ours in (("mlp.0", "dense1"), ("mlp.2", "dense2")):
            layer(f"block_{n}_{ours}").set_weights([own[f"{theirs}.weight"].T, own[f"{theirs}.bias"]])
    layer("norm").set_weights([state["norm.weight"], state["norm.bias"]])
    layer("head").set_weights([state["head.weight"].T, state["head.bias"]])
