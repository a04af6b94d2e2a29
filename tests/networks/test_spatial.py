"""Where the feature maps are, which is the last, and what part of the image each of them shows."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from utils import export, gradcam, heatmap, networks
from utils.faster_gradcam import FasterGradCAM
from utils.runtime import Explainer


def conv(x, channels=4, **how):
    return layers.Conv2D(channels, 3, padding="same", **how)(x)


def classify(maps):
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(maps))


def squeeze_and_excite(x):
    share = layers.Conv2D(4, 1, activation="sigmoid", name="share")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return layers.Multiply(name="excited")([x, share])


def attention(x):
    tokens = layers.Reshape((-1, 4))(x)
    weights = ops.softmax(ops.matmul(tokens, ops.transpose(tokens, (0, 2, 1))))  # (N, hw, hw): no map
    weights, tokens = (ops.reshape(x, (-1, 1, *x.shape[1:])) for x in (weights, tokens))
    mixed = ops.matmul(weights, tokens)
    return layers.Dense(3)(layers.Flatten()(mixed))


ENDS = {  # what follows the layer "maps", and the layer that is the last with maps
    "pooling": (classify, "maps"),
    "a pooled head of 1 x 1": (
        lambda x: layers.Flatten()(layers.Conv2D(3, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x))), "maps"),
    "averaged over everything": (
        lambda x: layers.Dense(3)(layers.Flatten()(layers.Conv2D(5, 1)(layers.AveragePooling2D(8)(x)))), "maps"),
    "squeeze and excitation": (lambda x: classify(squeeze_and_excite(x)), "excited"),
    "channels first": (
        lambda x: layers.Dense(3)(layers.Flatten()(layers.Permute((3, 1, 2))(x))), "maps"),
    "transposed": (lambda x: layers.Dense(3)(layers.Flatten()(layers.Permute((2, 1, 3))(x))), "maps"),
    "attention": (attention, "maps"),
    "an operator": (lambda x: classify(x + conv(x, name="branch")), "add"),
    "several operators": (lambda x: classify(ops.relu(x - 0.5 * conv(x, name="branch"))), "relu"),
    "an operation of keras": (lambda x: classify(ops.maximum(x, conv(x, name="branch"))), "maximum"),
    "flattened": (lambda x: layers.Dense(3)(layers.Flatten()(x)), "maps"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("sides", [(8, 8), (8, 6)])
def test_the_last_place_where_there_is_height_and_width(end, sides, rng):
    inputs = keras.Input((*sides, 3))
    if end == "averaged over everything" and sides != (8, 8):
        pytest.skip("made for a square")
    behind, last = ENDS[end]
    network = keras.Model(inputs, behind(conv(inputs, name="maps")))
    default = networks.default_layer(network)
    assert default == last or default.rsplit("_", 1)[0] == last  # Keras counts the operations of a process
    maps = gradcam.explain(network, rng.random((2, *sides, 3)).astype(np.float32), targets=0, normalise=False)
    assert maps.shape == (2, *sides) and np.ptp(maps, axis=(1, 2)).all()


@pytest.mark.parametrize("build", [keras.applications.MobileNet, keras.applications.MobileNetV3Small])
def test_networks_of_keras_with_their_top(build, rng):
    network = build((64, 64, 3), weights=None)
    shape = networks.get_layer(network, networks.default_layer(network)).output.shape
    assert shape[1:3] == (2, 2)
    assert np.ptp(gradcam.explain(network, rng.integers(0, 255, (1, 64, 64, 3)).astype(np.uint8), normalise=False)) > 0


def test_in_doubt_the_candidates_are_named():
    inputs = keras.Input((8, 8, 3))
    tokens = layers.Reshape((64, 4))(conv(inputs, name="early"))
    grid = layers.Reshape((8, 8, 4), name="grid")(layers.Dense(4)(tokens))
    network = keras.Model(inputs, classify(grid))
    with pytest.raises(ValueError, match=r"choose one of \['early', 'grid'\] as layer"):
        gradcam.explain(network, np.ones((1, 8, 8, 3)))
    assert gradcam.explain(network, np.ones((1, 8, 8, 3)), layer="grid").shape == (1, 8, 8)


def test_a_resized_image_is_an_image_still():
    inputs = keras.Input((None, None, 3))
    network = keras.Model(inputs, classify(conv(layers.Resizing(16, 16)(inputs), name="maps")))
    assert networks.default_layer(network) == "maps"
    assert gradcam.explain(network, np.ones((1, 20, 30, 3))).shape == (1, 20, 30)


# Each takes an image 24 x 32 to a part of it: (rows, columns) in pixels; what is outside was padded.
PARTS = {
    "Cropping2D": (layers.Cropping2D(((2, 6), (8, 4))), (2, 18), (8, 28)),
    "CenterCrop": (layers.CenterCrop(16, 16), (4, 20), (8, 24)),
    "a slice": (lambda x: x[:, 4:20, 8:], (4, 20), (8, 32)),
    "ops.slice": (lambda x: ops.slice(x, (0, 3, 5, 0), (1, 12, 20, 3)), (3, 15), (5, 25)),
    "tf.image in a Lambda": (layers.Lambda(lambda x: tf.image.central_crop(x, 0.5)), (6, 18), (8, 24)),
    "crop and resize": (layers.Resizing(16, 16, crop_to_aspect_ratio=True), (0, 24), (4, 28)),
    "pad and resize": (layers.Resizing(16, 16, pad_to_aspect_ratio=True), (-4, 28), (0, 32)),
    "padded": (layers.ZeroPadding2D(((8, 0), (0, 0))), (-8, 24), (0, 32)),
    "cropped and resized in code": (
        layers.Lambda(lambda x: tf.image.resize(x[:, :12], (24, 32))), (0, 12), (0, 32)),
    "scaled and cropped": (lambda x: layers.Cropping2D(4)(layers.Rescaling(1 / 255)(x)), (4, 20), (4, 28)),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("nested", [False, True])
def test_the_heat_lies_where_the_network_looked(part, nested):
    crop, rows, columns = PARTS[part]
    inputs = keras.Input((24, 32, 3), batch_size=1)
    maps = layers.Conv2D(1, 1, use_bias=False, name="maps", kernel_initializer="ones")
    if nested:
        inner_input = keras.Input((24, 32, 3), batch_size=1)
        inner = keras.Model(inner_input, maps(crop(inner_input)), name="inner")
        x = inner(inputs)
    else:
        x = maps(crop(inputs))
    pooled = layers.GlobalAveragePooling2D()(x)
    network = keras.Model(inputs, layers.Dense(1, use_bias=False, kernel_initializer="ones")(pooled))
    layer = "inner/maps" if nested else "maps"
    window = networks.window(network, layer, 24, 32)
    np.testing.assert_allclose(np.multiply(window, (24, 24, 32, 32)), (*rows, *columns), atol=0.3)
    # A bright square inside the part is what the network sees, and so the place of the heat.
    top, left = max(rows[0], 0) + 3, max(columns[0], 0) + 3
    image = np.zeros((1, 24, 32, 3), np.uint8)
    image[:, top : top + 5, left : left + 6] = 255
    heat = gradcam.explain(network, image, layer=layer)[0]
    y, x = np.average(np.argwhere(heat > 0.4), axis=0)
    assert abs(y - (top + 2)) < 1.1 and abs(x - (left + 2.5)) < 1.1
    outside = np.ones((24, 32), bool)
    outside[max(rows[0], 0) : rows[1], max(columns[0], 0) : columns[1]] = False
    assert not heat[outside].any()


@pytest.mark.parametrize("build", [keras.applications.ResNet50, keras.applications.InceptionV3])
def test_padding_that_belongs_to_convolutions_moves_nothing(build):
    network = build(input_shape=(96, 96, 3), weights=None, include_top=False)
    assert networks.window(network, networks.default_layer(network), 96, 96) == (0, 1, 0, 1)


def test_a_crop_of_the_maps_themselves():
    inputs = keras.Input((16, 16, 3))
    x = layers.AveragePooling2D(2)(conv(inputs, name="early"))
    network = keras.Model(inputs, classify(conv(layers.Cropping2D(2)(x), name="late")))
    assert networks.window(network, "early", 16, 16) == (0, 1, 0, 1)
    np.testing.assert_allclose(networks.window(network, "late", 16, 16), (0.25, 0.75, 0.25, 0.75), atol=1e-6)


def test_a_window_by_hand():
    raw = np.array([[[1, 2], [0, 4]]], np.float32)
    heat = heatmap.normalise_and_resize(raw, 4, 4, window=(0.25, 0.75, 0.5, 1.0))
    np.testing.assert_allclose(heat[0], [[0, 0, 0, 0], [0, 0, 0.25, 0.5], [0, 0, 0, 1], [0, 0, 0, 0]])
    padded = heatmap.normalise_and_resize(raw, 1, 1, window=(-1.0, 1.0, -1.0, 1.0))  # the last cell is all that is seen
    np.testing.assert_allclose(padded, [[[1]]])


def test_a_model_of_a_network_that_crops(rng, tmp_path):
    inputs = keras.Input((32, 32, 3))
    x = conv(layers.Cropping2D(((0, 0), (0, 16)))(layers.Rescaling(1 / 255)(inputs)), name="maps", activation="relu")
    network = keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    images = rng.integers(0, 255, (6, 32, 32, 3)).astype(np.uint8)
    model = FasterGradCAM.fit(network, images, np.arange(6) % 2, layer="maps", n_clusters=1)
    heat = model.explain(images).heatmaps
    assert heat[:, :, :16].any() and not heat[:, :, 16:].any()
    exported = Explainer(export.export_float(model, tmp_path / "explainer.tflite")).explain(images)
    np.testing.assert_allclose(exported.heatmaps, heat, atol=1e-4)


@pytest.mark.parametrize("where", ["a kernel", "a bias", "the images' scale"])
def test_what_is_not_finite_is_said(where):
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(np.inf if where == "the images' scale" else 1.0)(inputs)
    network = keras.Model(inputs, classify(conv(x, name="maps")))
    if where != "the images' scale":
        weight = network.get_layer("maps").weights[where == "a bias"]
        weight.assign(np.full(weight.shape, np.nan))
    for explain in (gradcam.explain, gradcam.explain_layers):
        with pytest.raises(ValueError, match="NaN or infinity in the weights or feature maps"):
            explain(network, np.ones((2, 8, 8, 3)))
    with pytest.raises(ValueError, match="nothing to harvest"):
        gradcam.harvest(network, [(np.ones((2, 8, 8, 3)), 0)])
