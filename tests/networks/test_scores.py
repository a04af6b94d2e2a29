"""Which tensor is the score: whatever squashes the logits, and in whatever words, they are found."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from utils import gradcam, networks
from utils.faster_gradcam import FasterGradCAM

SURE = 200.0  # the probability of a class is 1 to the last bit, and its gradient 0


def trunk():
    inputs = keras.Input((8, 8, 3))
    maps = layers.Conv2D(4, 3, activation="relu", name="maps")(inputs)
    return inputs, layers.GlobalAveragePooling2D(name="pooled")(maps)


class Squash(layers.Layer):
    """A softmax that nothing tells by its name."""

    def call(self, x):
        powers = tf.exp(x - tf.reduce_max(x, axis=-1, keepdims=True))
        return powers / tf.reduce_sum(powers, axis=-1, keepdims=True)


class CodeDense(layers.Layer):
    """A dense layer that squashes inside its code."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3))

    def call(self, x):
        return tf.nn.softmax(tf.matmul(x, self.kernel))


class MyDense(layers.Dense):
    """A dense layer that does more than a product with its kernel."""

    def call(self, x):
        y = super().call(2 * x)
        return y


def by_hand(x):
    powers = ops.exp(x - ops.max(x, axis=-1, keepdims=True))
    return powers / ops.sum(powers, axis=-1, keepdims=True)


def reshaped(x):
    return layers.Reshape((3,))(layers.Softmax()(layers.Reshape((1, 1, 3))(x)))


ENDS = {
    "Softmax": layers.Softmax(),
    "Activation": layers.Activation("softmax"),
    "Activation of tf.nn": layers.Activation(tf.nn.softmax),
    "Activation of a lambda": layers.Activation(lambda x: tf.nn.softmax(x)),
    "Lambda": layers.Lambda(lambda x: tf.nn.softmax(x)),
    "Lambda, sharper": layers.Lambda(lambda x: tf.nn.softmax(10 * x)),
    "keras.ops": ops.softmax,
    "log softmax": layers.Activation(tf.nn.log_softmax),
    "by hand": by_hand,
    "a custom layer": Squash(),
    "sigmoid": layers.Activation(tf.nn.sigmoid),
    "sigmoid by hand": lambda x: 1 / (1 + ops.exp(-x)),
    "hard sigmoid": layers.Activation("hard_sigmoid"),
    "reshaped": reshaped,
    "reshaped behind": lambda x: layers.Reshape((3,))(layers.Lambda(lambda y: tf.nn.softmax(y))(x)),
    "dropout behind": lambda x: layers.Dropout(0.5)(layers.Softmax()(x)),
    "cast behind": lambda x: layers.Activation("linear", dtype="float64")(layers.Softmax()(x)),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_layer_of_its_own_is_looked_behind(end, rng):
    inputs, pooled = trunk()
    logits = layers.Dense(3, name="logits")(pooled)
    bare = keras.Model(inputs, logits)
    kernel = bare.get_layer("logits").kernel
    kernel.assign(SURE * kernel)
    network = keras.Model(inputs, ENDS[end](logits))
    assert networks.find_logits(network).name == "logits" or end == "reshaped"
    images = rng.random((2, 8, 8, 3)).astype(np.float32)
    how = {"layer": "maps", "targets": 2, "normalise": False}
    np.testing.assert_allclose(gradcam.explain(network, images, **how), gradcam.explain(bare, images, **how), rtol=1e-4)


@pytest.mark.parametrize("activation", ["softmax", tf.nn.softmax, lambda x: tf.nn.softmax(x), tf.nn.sigmoid, Squash()])
@pytest.mark.parametrize("dense", [layers.Dense, MyDense, "lora", "int8", "convolution"])
def test_a_layers_own_activation_is_left_out(activation, dense, rng):
    inputs, pooled = trunk()
    if dense == "convolution":
        output = layers.Flatten()(layers.Conv2D(3, 1, activation=activation, name="last")(
            layers.Reshape((1, 1, 4))(pooled)))
    else:
        kind = layers.Dense if isinstance(dense, str) else dense
        output = kind(3, activation=activation, name="last")(pooled)
    network = keras.Model(inputs, output)
    last = network.get_layer("last")
    if dense == "lora":
        last.enable_lora(2)
        last.lora_kernel_b.assign(rng.normal(size=last.lora_kernel_b.shape))
    if dense == "int8":
        last.quantize("int8")
    images = rng.random((2, 8, 8, 3)).astype(np.float32)
    maps_model = keras.Model(inputs, network.get_layer("maps").output)
    maps = tf.constant(maps_model(images))
    with tf.GradientTape() as tape:
        tape.watch(maps)
        pooled = tf.reduce_mean(maps, axis=(1, 2))
        last.activation, kept = (lambda x: x), last.activation
        score = tf.reshape(last(tf.reshape(pooled, (2, 1, 1, 4)) if dense == "convolution" else pooled), (2, 3))[:, 1]
        last.activation = kept
    gradient = tape.gradient(score, maps)
    expected = np.einsum("nhwc,nc->nhw", maps, np.mean(gradient, axis=(1, 2)))
    got = gradcam.explain(network, images, layer="maps", targets=1, normalise=False)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_decided_is_said():
    inputs, pooled = trunk()
    mean = layers.Average()([layers.Dense(3, activation="softmax")(pooled) for _ in range(2)])
    p = layers.Dense(1, activation="sigmoid")(pooled)
    for output in (CodeDense()(pooled), mean, layers.Concatenate()([1 - p, p])):
        with pytest.raises(ValueError, match="Cannot look behind the softmax or sigmoid at the network's end"):
            gradcam.explain(keras.Model(inputs, output), np.ones((1, 8, 8, 3)))


@pytest.mark.parametrize(
    "end",
    [
        layers.Dense(3), layers.Dense(3, "relu"), layers.Dense(3, "tanh"), layers.UnitNormalization(),
        layers.LayerNormalization(), lambda x: 0.5 * x, layers.Lambda(lambda x: tf.abs(x)),
    ],
)
def test_what_does_not_squash_is_the_score_itself(end):
    inputs, pooled = trunk()
    assert networks.find_logits(keras.Model(inputs, end(pooled))) is None


@pytest.mark.parametrize("end", ["Activation of tf.nn", "Lambda", "by hand", "reshaped", "sigmoid"])
def test_a_classifier_is_not_taken_for_an_embedding(end):
    inputs, pooled = trunk()
    network = keras.Model(inputs, ENDS[end](layers.Dense(3)(pooled)))
    with pytest.raises(ValueError, match="ends in a softmax or sigmoid"):
        FasterGradCAM.fit(network, np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 2, 0]))


def test_what_changes_between_two_calls_changes_the_maps(rng):
    images = rng.random((2, 8, 8, 3)).astype(np.float32)
    network = keras.Sequential([
        keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="maps"), layers.GlobalAveragePooling2D(),
        layers.Dense(3, activation="softmax", name="last"),
    ])
    how = {"layer": "maps", "targets": 1, "normalise": False}

    def fresh():
        copy = keras.models.clone_model(network)
        copy.set_weights(network.get_weights())
        return gradcam.explain(copy, images, **how)

    def changes(change):
        before = gradcam.explain(network, images, **how)
        change()
        after = gradcam.explain(network, images, **how)
        assert np.abs(after - before).max() > 1e-3
        np.testing.assert_allclose(after, fresh(), rtol=1e-4, atol=1e-6)

    changes(lambda: (network.pop(), network.add(layers.Dense(2, name="other"))))
    changes(lambda: setattr(network.get_layer("maps"), "activation", keras.activations.relu))
    changes(lambda: network.set_weights([2 * x for x in network.get_weights()]))
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="maps")], name="inner")
    outer = keras.Sequential([keras.Input((8, 8, 3)), inner, layers.GlobalAveragePooling2D(), layers.Dense(2)])
    how |= {"layer": "inner/maps"}
    before = gradcam.explain(outer, images, **how)
    inner.add(layers.Activation("tanh"))
    assert np.abs(gradcam.explain(outer, images, **how) - before).max() > 1e-4


@pytest.mark.parametrize("method", ["gradcam", "layercam", "scorecam", "guided"])
def test_what_a_function_of_the_scores_refers_to_may_change(method, rng):
    inputs, pooled = trunk()
    network, images = keras.Model(inputs, layers.Dense(3)(pooled)), rng.random((2, 8, 8, 3)).astype(np.float32)
    chosen = {"class": 0}

    def target(scores):
        return scores[:, chosen["class"]]

    for chosen["class"] in range(3):
        if method == "guided":
            got, expected = (gradcam.guided_backprop(network, images, targets=t) for t in (target, chosen["class"]))
        else:
            how = {"layer": "maps", "method": method, "normalise": False}
            got, expected = (gradcam.explain(network, images, targets=t, **how) for t in (target, chosen["class"]))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
