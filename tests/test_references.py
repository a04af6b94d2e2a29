"""Ours beside torchvision, pytorch-grad-cam and captum on the same weights; `benchmarks.references` asked them."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from benchmarks import references
from keras import layers

from utils import gradcam
from utils.networks import cams, classifiers, torchvision_nets

# Of the largest value. What they add to the denominator of Grad-CAM++, we do not: see `references.SCALE`.
CLOSE, CLOSE_PLUS_PLUS = 1e-4, 0.05

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


def assert_close(got, expected, tolerance):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * abs(expected).max())


@every_network
def test_logits(name):
    logits = network(name)(references.images(name), training=False)
    np.testing.assert_allclose(logits, references.expected()[f"{name}/logits"], rtol=0, atol=1e-4)


@every_network
def test_raw_maps(name, monkeypatch):
    # All methods as if they were one: the network is traced once.
    def all_methods(*maps_and_gradients):
        return tf.stack([cams.RAW_MAPS[method](*maps_and_gradients) for method in references.METHODS], axis=1)

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
                assert_close(ours, theirs, CLOSE_PLUS_PLUS if method == "gradcam++" else CLOSE)


@every_network
def test_guided_backpropagation(name):
    guided = gradcam.guided_backprop(network(name), references.images(name), targets=references.TARGET)
    thinned = guided[:, :: references.THINNING, :: references.THINNING]
    assert_close(thinned, references.expected()[f"{name}/guided"], CLOSE)
