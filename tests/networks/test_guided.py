"""Guided backpropagation: exact values by hand, every way to write a ReLU, and an independent NumPy computation."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from utils import gradcam
from utils.networks import guided

KERNEL_IN = np.array([[1.0, -1.0, 2.0], [0.0, 1.0, 1.0], [1.0, 1.0, -1.0]], np.float32)  # colours → three units
KERNEL_OUT = np.array([[1.0], [-2.0], [3.0]], np.float32)


def dense_network(activation=None, after=()):
    """image (1, 1, 3) → three units with a rectifier → one score."""
    x = inputs = keras.Input((1, 1, 3))
    x = layers.Dense(3, use_bias=False, activation=activation)(layers.Reshape((3,))(x))
    for layer in after:
        x = layer(x)
    network = keras.Model(inputs, layers.Dense(1, use_bias=False)(x))
    network.set_weights([KERNEL_IN, KERNEL_OUT])
    return network


def by_hand(image, upper):
    units = image @ KERNEL_IN
    gradient = KERNEL_OUT[:, 0] * (units > 0) * (units < upper) * (KERNEL_OUT[:, 0] > 0)
    return KERNEL_IN @ gradient


def image(*values):
    return np.array(values, np.float32).reshape(1, 1, 1, 3)


def plain_gradient(network, images, class_id=0):
    images = tf.constant(images, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = network(images, training=False)[:, class_id]
    return tape.gradient(score, images).numpy()


def test_written_out_values():
    # Units 1·1+0·2+1·1 = 2, −1+2+1 = 2, 2+2−1 = 3, all active; the second hands back −2: it is stopped.
    # So the gradient is 1·(1, 0, 1) + 3·(2, 1, −1) = (7, 3, −2), without the rule (9, 1, −4).
    network = dense_network("relu")
    np.testing.assert_allclose(gradcam.guided_backprop(network, image(1, 2, 1)).ravel(), [7, 3, -2])
    np.testing.assert_allclose(plain_gradient(network, image(1, 2, 1)).ravel(), [9, 1, -4])


def test_relu6_stops_above_six():
    # Units 4, 1, 7: the third is beyond 6 and passes nothing, only the first is left.
    network = dense_network("relu6")
    np.testing.assert_allclose(gradcam.guided_backprop(network, image(4, 2, 0)).ravel(), by_hand([4, 2, 0], 6))
    np.testing.assert_allclose(gradcam.guided_backprop(network, image(4, 2, 0)).ravel(), [1, 0, 1])
    np.testing.assert_allclose(gradcam.guided_backprop(dense_network("relu"), image(4, 2, 0)).ravel(), [7, 3, -2])




@pytest.mark.parametrize(
    "activation, after, upper",
    [
        ("relu", (), np.inf),
        ("relu6", (), 6),
        (layers.ReLU(6.0), (), 6),
        (tf.nn.relu6, (), 6),
        (None, (layers.ReLU(),), np.inf),
        (None, (layers.ReLU(max_value=6),), 6),
        (None, (layers.ReLU(max_value=3.0),), 3),
        (None, (layers.Activation("relu"),), np.inf),
        (None, (layers.Activation("relu6"),), 6),
        (None, (layers.Activation(keras.activations.relu6),), 6),
        (None, (keras.ops.relu,), np.inf),
        (None, (keras.ops.relu6,), 6),
    ],
)
def test_every_way_to_write_a_relu(activation, after, upper, rng):
    network = dense_network(activation, after)
    for values in rng.normal(0, 4, (20, 3)):
        np.testing.assert_allclose(
            gradcam.guided_backprop(network, image(*values)).ravel(), by_hand(values, upper), atol=1e-5
        )


@pytest.mark.parametrize(
    "after",
    [layers.Activation("swish"), layers.Activation("gelu"), layers.LeakyReLU(0.2), layers.ReLU(negative_slope=0.1)],
)
def test_a_network_without_relu_is_refused(after):
    x = inputs = keras.Input((4, 4, 3))
    network = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(after(layers.Conv2D(2, 3)(x)))))
    with pytest.raises(ValueError, match="needs a ReLU or ReLU6; .* which has none"):
        gradcam.guided_backprop(network, np.ones((1, 4, 4, 3)))


class Block(layers.Layer):
    """A layer whose forward pass is somebody's code."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


RELUS = [
    lambda x: tf.nn.relu(x), lambda x: tf.maximum(x, 0.0), lambda x: keras.ops.maximum(0.0, x),
    lambda x: x * tf.cast(x > 0, x.dtype), lambda x: (x + tf.abs(x)) / 2, lambda x: tf.where(x > 0, x, 0.0),
]


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("wrap", [layers.Lambda, Block, layers.Activation, lambda f: f])
def test_a_relu_in_any_words(relu, wrap, rng):
    if wrap(relu) is relu and relu not in RELUS[2:3]:
        pytest.skip("tf functions take no symbolic tensors")
    network = dense_network(None, (wrap(relu),))
    for values in rng.normal(0, 4, (5, 3)):
        got = gradcam.guided_backprop(network, image(*values)).ravel()
        np.testing.assert_allclose(got, by_hand(values, np.inf), atol=1e-5)


@pytest.mark.parametrize(
    "after, lower, upper",
    [
        (layers.ReLU(max_value=3.0, threshold=1.0), 1, 3),
        (layers.Lambda(lambda x: keras.activations.relu(x, threshold=0.5)), 0.5, np.inf),
        (layers.Lambda(lambda x: tf.clip_by_value(x, 0.0, 2.0)), 0, 2),
        (lambda x: keras.ops.clip(x, 0.0, 2.0), 0, 2),
        (layers.Activation(lambda x: keras.ops.minimum(keras.ops.relu(x), 4.0)), 0, 4),
    ],
)
def test_thresholds_and_limits(after, lower, upper, rng):
    network = dense_network(None, (after,))
    for values in rng.normal(0, 4, (10, 3)):
        units = values @ KERNEL_IN
        gradient = KERNEL_OUT[:, 0] * (units > lower) * (units < upper) * (KERNEL_OUT[:, 0] > 0)
        got = gradcam.guided_backprop(network, image(*values)).ravel()
        np.testing.assert_allclose(got, KERNEL_IN @ gradient, atol=1e-5)


@pytest.mark.parametrize(
    "slope",
    [
        layers.LeakyReLU(0.2), layers.ReLU(negative_slope=0.2), layers.Activation(lambda x: tf.nn.leaky_relu(x, 0.2)),
        layers.Lambda(lambda x: tf.nn.relu(x) - 0.2 * tf.nn.relu(-x)), Block(lambda x: tf.maximum(x, 0.2 * x)),
    ],
)
def test_a_slope_keeps_its_gradient_in_any_words(slope, rng):
    network = dense_network("relu", (slope,))
    for values in rng.normal(0, 4, (5, 3)):
        units = values @ KERNEL_IN
        gradient = KERNEL_OUT[:, 0] * (units > 0) * (KERNEL_OUT[:, 0] > 0)
        got = gradcam.guided_backprop(network, image(*values)).ravel()
        np.testing.assert_allclose(got, KERNEL_IN @ gradient, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_a_network_that_takes_integers(dtype):
    inputs = keras.Input((1, 1, 3), dtype=dtype)
    inner = dense_network("relu")
    network = keras.Model(inputs, inner(keras.ops.cast(inputs, "float32")))
    np.testing.assert_allclose(gradcam.guided_backprop(network, image(1, 2, 1).astype(np.uint8)).ravel(), [7, 3, -2])


@pytest.mark.parametrize(
    "block",
    [
        Block(lambda x: 2 * tf.nn.relu(x), name="block"),
        layers.Lambda(lambda x: tf.cumsum(tf.nn.relu(x), 1), name="block"),
        Block(lambda x: tf.reverse(tf.maximum(x, 0), [1]), name="block"),
    ],
)
def test_a_relu_out_of_reach_is_refused(block):
    with pytest.raises(ValueError, match="cannot reach a ReLU .* Received: 'block'"):
        gradcam.guided_backprop(dense_network("relu", (block,)), image(1, 2, 3))


def test_a_relu_in_several_operations_is_refused():
    inputs = keras.Input((1, 1, 3))
    x = layers.Dense(3, activation="relu")(inputs)
    network = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(x * keras.ops.cast(x > 0, "float32"))))
    with pytest.raises(ValueError, match="nor one written out in several operations"):
        gradcam.guided_backprop(network, image(1, 2, 3))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_flat_black_white_and_noise_images_give_finite_gradients(policy, rng):
    flat = np.repeat(np.array([128, 0, 255]), 8 * 8 * 3).reshape(3, 8, 8, 3)
    images = np.concatenate([flat, rng.integers(0, 256, (1, 8, 8, 3))]).astype(np.uint8)
    keras.config.set_dtype_policy(policy)
    try:
        network = conv_network()
    finally:
        keras.config.set_dtype_policy("float32")
    for gradients in (gradcam.guided_backprop(network, images), gradcam.guided_gradcam(network, images)):
        assert gradients.shape == images.shape and gradients.dtype == np.float32 and np.isfinite(gradients).all()


def test_one_trace_whatever_the_batch_size(rng, monkeypatch):
    network, traced, call_layer = conv_network(), [], guided.call_layer
    monkeypatch.setattr(guided, "call_layer", lambda replaced: traced.append("first") or call_layer(replaced))
    for n in (1, 5, 2, 35):
        gradcam.guided_backprop(network, rng.random((n, 8, 8, 3)))
    assert traced.count("first") == 1


def conv_network(nested=False):
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="first")(x)
    x = layers.ReLU(6.0, name="second")(layers.Conv2D(5, 3)(x))
    trunk = keras.Model(inputs, x, name="trunk")
    if nested:
        outside = keras.Input((8, 8, 3))
        inputs, x = outside, trunk(outside)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def guided_by_numpy(network, images, class_id):
    """Backwards through the small network, step by step, with no automatic gradient but that of the convolutions."""
    trunk = network.get_layer("trunk")
    first, conv, _ = trunk.layers[1:]
    dense = network.layers[-1]
    a = tf.nn.conv2d(images, first.kernel, 1, "VALID") + first.bias
    hidden = tf.nn.relu(a)
    b = tf.nn.conv2d(hidden, conv.kernel, 1, "VALID") + conv.bias
    gradient = np.broadcast_to(dense.kernel.numpy()[:, class_id] / 16, b.shape)
    gradient = np.where((b > 0) & (b < 6) & (gradient > 0), gradient, 0).astype(np.float32)
    gradient = tf.nn.conv2d_transpose(gradient, conv.kernel, tf.shape(hidden), 1, "VALID")
    gradient = np.where((a > 0) & (gradient > 0), gradient, 0).astype(np.float32)
    return tf.nn.conv2d_transpose(gradient, first.kernel, tf.shape(images), 1, "VALID").numpy()


def test_nested_networks_against_a_step_by_step_computation(rng):
    network, flat = conv_network(nested=True), conv_network()
    images = rng.normal(0, 2, (3, 8, 8, 3)).astype(np.float32)
    got = gradcam.guided_backprop(network, images, targets=1)
    np.testing.assert_allclose(got, guided_by_numpy(network, images, 1), atol=1e-5)
    np.testing.assert_allclose(got, gradcam.guided_backprop(flat, images, targets=1), atol=1e-6)
    assert got.dtype == np.float32 and got.shape == images.shape


@pytest.mark.slow
def test_mobilenet_differs_from_the_plain_gradient_and_stays_as_it_was(rng):
    keras.utils.set_random_seed(0)
    head = {"classes": 4, "classifier_activation": None}
    network = keras.applications.MobileNetV2((64, 64, 3), alpha=0.35, weights=None, **head)
    images = rng.random((2, 64, 64, 3)).astype(np.float32)
    before, weights = network(images).numpy(), network.get_weights()
    nodes = [len(layer._inbound_nodes) for layer in network.layers]
    got, plain = gradcam.guided_backprop(network, images, targets=2), plain_gradient(network, images, 2)
    assert np.isfinite(got).all() and np.corrcoef(got.ravel(), plain.ravel())[0, 1] < 0.9
    np.testing.assert_array_equal(network(images).numpy(), before)
    np.testing.assert_allclose(plain_gradient(network, images, 2), plain, rtol=1e-6)
    assert nodes == [len(layer._inbound_nodes) for layer in network.layers]
    for a, b in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(layer.call.__self__ is layer for layer in network.layers)


def test_guided_gradcam_is_the_product(rng):
    network = conv_network()
    images = rng.normal(0, 2, (2, 10, 12, 3)).astype(np.float32)
    got = gradcam.guided_gradcam(network, images, layer="second", targets=1)
    heat = gradcam.explain(network, images, layer="second", targets=1)
    expected = gradcam.guided_backprop(network, images, targets=1) * heat[..., None]
    np.testing.assert_array_equal(got, expected)
    assert got.shape == (2, 10, 12, 3) and got.dtype == np.float32


def test_several_targets_and_functions(rng):
    network = conv_network()
    images = rng.normal(0, 2, (2, 8, 8, 3)).astype(np.float32)
    both = gradcam.guided_backprop(network, images, targets=[[0, 2], [1, 0]])
    assert both.shape == (2, 2, 8, 8, 3)
    np.testing.assert_allclose(both[:, 1], gradcam.guided_backprop(network, images, targets=[2, 0]), atol=1e-6)
    np.testing.assert_allclose(
        gradcam.guided_backprop(network, images, targets=lambda scores: scores[:, 1]),
        gradcam.guided_backprop(network, images, targets=1),
    )
    assert gradcam.guided_gradcam(network, images, targets=[[0, 2], [1, 0]]).shape == (2, 2, 8, 8, 3)
