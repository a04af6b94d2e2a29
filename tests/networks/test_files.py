"""Files are tried before they take their place: models that cannot be read back, and what LiteRT cannot run."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from utils import export, gradcam, networks
from utils.faster_gradcam import FasterGradCAM


class Mine(layers.Layer):
    """Nobody knows it but this file."""

    def call(self, x):
        return 2 * x


def model(extra=None, policy="float32"):
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((32, 32, 3))
        x = layers.Conv2D(4, 3, name="maps", activation="relu")(layers.Rescaling(1 / 255)(inputs))
        x = layers.GlobalAveragePooling2D()(extra(x) if extra else x)
        network = keras.Model(inputs, layers.Dense(4)(x))
    finally:
        keras.config.set_dtype_policy("float32")
    images = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3)).astype(np.uint8)
    return FasterGradCAM.fit(network, images, np.arange(6) % 2, layer="maps", n_clusters=1)


@pytest.mark.parametrize(
    "layer, kind",
    [
        (layers.Lambda(lambda x: 2 * x, name="bad"), "Lambda"), (Mine(name="bad"), "Mine"),
        (keras.Sequential([layers.Lambda(lambda x: tf.abs(x), name="bad")]), "Lambda"),
        (layers.Activation(lambda x: tf.nn.relu(x), name="bad"), "Activation"),
    ],
)
def test_a_layer_that_cannot_be_read_back_is_named(layer, kind, tmp_path):
    with pytest.raises(ValueError, match=f"cannot be read back from a file.*To blame is 'bad', a {kind}"):
        model(layer).save(tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())


@pytest.mark.parametrize("policy", [
    "mixed_float16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixed_bfloat16", "float64")),
])
def test_a_network_in_another_precision_is_saved_but_not_exported(policy, tmp_path):
    made = model(policy=policy)
    made.save(tmp_path)
    images = np.random.default_rng(1).integers(0, 255, (3, 32, 32, 3)).astype(np.uint8)
    loaded = FasterGradCAM.load(tmp_path)
    np.testing.assert_allclose(loaded.explain(images).heatmaps, made.explain(images).heatmaps, atol=0.01)
    with pytest.raises(ValueError, match="to blame is 'rescaling.*', a Rescaling that computes in .*float"):
        export.export_float(made, tmp_path / "explainer.tflite")
    assert not (tmp_path / "explainer.tflite").exists()


@pytest.mark.parametrize("function", [tf.math.erfinv, lambda x: tf.math.digamma(1 + x)])
def test_an_operation_that_litert_lacks_is_named(function, tmp_path):
    made = model(layers.Lambda(lambda x: function(tf.minimum(x, 0.5)), name="rare"))
    with pytest.raises(ValueError, match="to blame is 'rare', a Lambda"):
        export.export_float(made, tmp_path / "explainer.tflite")
    assert not list(tmp_path.iterdir())


def small(shape):
    inputs = keras.Input(shape)
    x = layers.Conv2D(4, 3, activation="relu", name="maps")(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("n_channels", [1, 2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_of_any_number_of_channels_are_resized(n_channels, dtype, rng):
    network = small((12, 12, n_channels))
    flat = np.full((2, 20, 30, n_channels), 7, dtype)  # of a flat image resizing changes nothing but the size
    got, same = (gradcam.explain(network, images, normalise=False) for images in (flat, flat[:, :12, :12]))
    np.testing.assert_allclose(got, same, rtol=1e-5)
    assert gradcam.explain(network, rng.random((2, 20, 30, n_channels))).shape == (2, 20, 30)
    assert gradcam.guided_backprop(network, flat).shape == flat.shape


@pytest.mark.parametrize("shape", [(12, 12, 1), (12, 12, 4), (None, None, 3), (None, 12, 3)])
def test_a_model_needs_rgb_images_of_one_size(shape):
    with pytest.raises(ValueError, match="RGB images of one size"):
        FasterGradCAM.fit(small(shape), np.zeros((4, 12, 12, 3), np.uint8), np.array([0, 1, 0, 1]))


@pytest.mark.parametrize(
    "layer", [layers.Conv2D(4, 3, data_format="channels_first", name="first"),
              layers.AveragePooling2D(2, data_format="channels_first", name="first"),
              layers.ZeroPadding2D(data_format="channels_first", name="first")],
)
def test_channels_first_is_refused(layer):
    inputs = keras.Input((3, 12, 12))
    network = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layer(inputs))))
    with pytest.raises(ValueError, match="Expected layers with channels last.* Received: 'first' with channels first"):
        gradcam.explain(network, np.ones((1, 3, 12, 12)))
    with pytest.raises(ValueError, match="channels last"):
        networks.map_layers(keras.Sequential([keras.Input((3, 12, 12)), network]))
