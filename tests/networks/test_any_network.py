"""Random small networks, in random words, against a computation step by step on an eager tape.

A network is a list of steps. Chained on a symbolic image they are the network; applied one after the other to numbers,
with the guided rule written out by hand, they are what it is compared with. So nothing of `networks` takes part there.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers, ops

from utils import gradcam, networks

K = 3  # classes
RELUS = {
    "layer": layers.ReLU, "activation": lambda: layers.Activation("relu"), "ops": lambda: ops.relu,
    "tf": lambda: layers.Activation(tf.nn.relu), "lambda": lambda: layers.Lambda(lambda x: tf.nn.relu(x)),
    "maximum": lambda: functools.partial(ops.maximum, 0.0), "clip": lambda: lambda x: ops.clip(x, 0.0, 1e9),
    "by hand": lambda: layers.Lambda(lambda x: x * tf.cast(x > 0, x.dtype)),
}
OTHERS = {
    "swish": lambda: layers.Activation("swish"), "tanh": lambda: layers.Activation(tf.tanh),
    "leaky": lambda: layers.LeakyReLU(0.2), "leaky, by hand": lambda: layers.Lambda(lambda x: tf.maximum(x, 0.2 * x)),
}
SQUASHES = {
    "none": lambda: lambda x: x, "layer": layers.Softmax, "activation": lambda: layers.Activation("softmax"),
    "tf": lambda: layers.Activation(tf.nn.softmax), "lambda": lambda: layers.Lambda(lambda x: tf.nn.softmax(x)),
    "ops": lambda: ops.softmax, "log": lambda: layers.Activation("log_softmax"),
    "sigmoid": lambda: layers.Lambda(lambda x: 1 / (1 + tf.exp(-x))),
    "reshaped": lambda: lambda x: ops.reshape(ops.softmax(ops.reshape(x, (-1, 1, K))), (-1, K)),
    "by hand": lambda: lambda x: ops.exp(x) / ops.sum(ops.exp(x), axis=-1, keepdims=True),
}


class Step:
    """A function of tensors, symbolic or not; a rectifier has a rule of its own on the way back."""

    def __init__(self, function, rectifies=False):
        self.function, self.rectifies = function, rectifies

    def guided(self, x):
        return guided_relu(x) if self.rectifies else self.function(x)


class Sum(Step):
    """x + branch(x), with an operator or a layer."""

    def __init__(self, branch, operator):
        self.branch = branch
        self.add = (lambda a, b: a + b) if operator else lambda a, b: layers.Add()([a, b])

    def function(self, x):
        return self.add(x, run(self.branch, x))

    def guided(self, x):
        return self.add(x, run(self.branch, x, guided=True))

    rectifies = False


@tf.custom_gradient
def guided_relu(x):
    return tf.nn.relu(x), lambda g: tf.where((x > 0) & (g > 0), g, 0.0)


def run(steps, x, guided=False):
    for step in steps:
        x = step.guided(x) if guided else step.function(x)
    return x


@st.composite
def recipes(draw):
    """Steps up to the last maps, from there to the logits, and what squashes them; the shape and type of images."""
    n_channels, side = draw(st.sampled_from([1, 3, 4])), draw(st.integers(7, 10))
    seed = draw(st.integers(0, 2**16))
    initial = iter(range(seed, seed + 100))

    def conv(channels, kernel=3, **how):
        kernel_initializer = keras.initializers.HeNormal(next(initial))
        return layers.Conv2D(channels, kernel, padding="same", kernel_initializer=kernel_initializer, **how)

    def activation():
        words = draw(st.sampled_from([*RELUS, *OTHERS]))
        return Step(RELUS[words](), True) if words in RELUS else Step(OTHERS[words]())

    scalings = [layers.Rescaling(1 / 255), lambda x: x / 255.0, layers.Lambda(lambda x: x / 255)]
    first = [Step(draw(st.sampled_from(scalings)))]
    for channels in draw(st.lists(st.sampled_from([3, 4, 5]), min_size=1, max_size=3)):
        first += [Step(conv(channels)), activation()]
        more = draw(st.sampled_from(["nothing", "sum", "norm", "pool"]))
        if more == "sum":
            first.append(Sum([Step(conv(channels)), activation()], draw(st.booleans())))
        if more == "norm":
            norm = layers.BatchNormalization()
            first.append(Step(lambda x, norm=norm: norm(x, training=False)))
        if more == "pool" and not any(isinstance(step.function, layers.MaxPooling2D) for step in first):
            first.append(Step(layers.MaxPooling2D(2)))
    average, largest, kept = (
        layers.GlobalAveragePooling2D(), layers.GlobalMaxPooling2D(), layers.GlobalAveragePooling2D(keepdims=True)
    )
    heads = {
        "average": [average], "maximum": [largest], "flat": [layers.Flatten()], "kept": [kept, layers.Flatten()],
        "convolution": [kept, conv(4, 1), layers.Flatten()],
        "two": [lambda x: layers.Concatenate()([average(x), largest(x)])],
    }
    last = [Step(layer) for layer in heads[draw(st.sampled_from(sorted(heads)))]]
    if draw(st.booleans()):
        last += [Step(layers.Dense(6, kernel_initializer=keras.initializers.HeNormal(next(initial)))), activation()]
    logits = layers.Dense(K, kernel_initializer=keras.initializers.HeNormal(next(initial)))
    return {
        "first": first, "last": [*last, Step(logits)], "squash": SQUASHES[draw(st.sampled_from(sorted(SQUASHES)))](),
        "shape": (side, side, n_channels), "dtype": draw(st.sampled_from(["float32", "uint8"])),
        "nested": draw(st.sampled_from(["not", "first", "all"])), "fused": draw(st.booleans()), "seed": seed,
    }


def build(recipe):
    """The network; where it is nested the first part, or all, is a model inside."""
    inputs = keras.Input(recipe["shape"], dtype=recipe["dtype"])
    x = ops.cast(inputs, "float32") if recipe["dtype"] == "uint8" else inputs
    first, last = recipe["first"], recipe["last"]
    if recipe["nested"] == "not":
        x = run(last, run(first, x))
    else:
        inner_input = keras.Input(recipe["shape"])
        maps = run(first, inner_input)
        inner = keras.Model(inner_input, run(last, maps) if recipe["nested"] == "all" else maps)
        x = inner(x)
        if recipe["nested"] == "first":
            x = run(last, x)
    return keras.Model(inputs, recipe["squash"](x))


def by_hand(recipe, images, class_id):
    """Raw Grad-CAM maps at the last maps, and the guided gradient of the images."""
    images = tf.constant(images, tf.float32)
    maps = run(recipe["first"], images)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        score = run(recipe["last"], maps)[:, class_id]
    weights = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2))
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = run(recipe["last"], run(recipe["first"], images, guided=True), guided=True)[:, class_id]
    return tf.einsum("nhwc,nc->nhw", maps, weights).numpy(), tape.gradient(score, images).numpy()


def check(recipe):
    network = build(recipe)
    rng = np.random.default_rng(recipe["seed"])
    for weight in network.weights:  # Keras starts biases at zero, where rectifiers have no one slope
        weight.assign(weight + rng.normal(0, 0.05, weight.shape) * ("variance" not in weight.path))
    images = rng.integers(0, 256, (2, *recipe["shape"])).astype(np.uint8)
    expected, guided = by_hand(recipe, images, 1)
    scale = max(np.abs(expected).max(), 1e-6)
    got = gradcam.explain(network, images, targets=1, normalise=False)
    np.testing.assert_allclose(got / scale, expected / scale, atol=1e-4)
    steps = [*recipe["first"], *recipe["last"]]
    rectifies = any(s.rectifies or (isinstance(s, Sum) and any(b.rectifies for b in s.branch)) for s in steps)
    if rectifies:
        scale = max(np.abs(guided).max(), 1e-9)
        got = gradcam.guided_backprop(network, images, targets=1)
        np.testing.assert_allclose(got / scale, guided / scale, atol=1e-4)
    else:
        with pytest.raises(ValueError, match="needs a ReLU or ReLU6"):
            gradcam.guided_backprop(network, images, targets=1)
    assert len(networks.map_layers(network)) >= 1


HOW = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=3, **HOW)
@given(recipes())
def test_some_networks(recipe):
    check(recipe)


@pytest.mark.slow
@settings(max_examples=300, **HOW)
@given(recipes())
def test_three_hundred_networks(recipe):
    check(recipe)
