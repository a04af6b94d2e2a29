"""The embedding network: strides, weights, seeds, errors."""

import functools

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from utils import networks
from utils.networks import Spec, embedding

SMALL = {"image_size": 64, "alpha": 0.35, "embedding_size": 8}
LAST_LAYERS = {
    "mobilenet_v2": "out_relu",
    "mobilenet_v3_small": "conv_1_activation",
    "mobilenet_v3_large": "conv_1_activation",
}
every_backbone = pytest.mark.parametrize(
    "backbone", ["mobilenet_v2", *(pytest.param(name, marks=pytest.mark.slow) for name in [*LAST_LAYERS][1:])]
)


@functools.cache
def built(backbone="mobilenet_v2", output_stride=16):
    """A network for the tests that only read it."""
    return networks.embedding_network(Spec(backbone, output_stride=output_stride, **SMALL), seed=1)


def maps(network, layer, images):
    return keras.Model(network.input, network.get_layer(layer).output)(images, training=False)


def batch_norms(network):
    return [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]


@every_backbone
@pytest.mark.parametrize("output_stride, side", [(32, 2), (16, 4), (8, 8)])
def test_output_stride(backbone, output_stride, side, rng):
    network = built(backbone, output_stride)
    sides = [network.get_layer(name).output.shape[1] for name in networks.map_layers(network)]
    default = networks.map_layers(network).index(networks.default_layer(network))
    own = max(4, side)
    assert sides[default] == own and sides[default + 1] > own  # what follows is the padding of the last stride
    assert network.get_layer(LAST_LAYERS[backbone]).output.shape[1:3] == (side, side)
    assert network.output_shape == (None, 8)
    assert np.isfinite(network(rng.integers(0, 255, (3, 64, 64, 3)), training=False)).all()


@pytest.mark.parametrize(
    "backbone, strides, image_size, first",
    [
        ("mobilenet_v2", (32, 16), 96, 1),
        ("mobilenet_v3_small", (16, 8), 96, 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (
            ("mobilenet_v2", (16, 8), 96, 1),
            ("mobilenet_v3_small", (32, 16), 96, 1),
            ("mobilenet_v3_small", (32, 16), 80, 0),
            ("mobilenet_v3_large", (32, 16), 96, 1),
        )),
    ],
)
def test_the_same_weights_see_the_same_at_both_strides(backbone, strides, image_size, first, rng):
    # A kernel spread by 2 on maps of twice the resolution reads the same neighbours: at every other position both
    # networks agree. (On maps with an odd side, 80 / 16, Keras pads one pixel more in front.)
    spec = SMALL | {"image_size": image_size}
    coarse, fine = (networks.embedding_network(Spec(backbone, output_stride=s, **spec)) for s in strides)
    for layer in coarse.layers:
        if "squeeze_excite_conv" in layer.name:  # the one thing that looks at all positions at once
            layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
    for layer in batch_norms(coarse):
        layer.gamma.assign(np.full(layer.gamma.shape, 2))  # no residual branch is silent
    fine.set_weights(coarse.get_weights())
    images = rng.integers(0, 255, (1, image_size, image_size, 3))
    coarse, fine = (maps(network, LAST_LAYERS[backbone], images).numpy()[0] for network in (coarse, fine))
    scale = abs(coarse).max()
    np.testing.assert_allclose(coarse / scale, fine[first::2, first::2] / scale, atol=1e-4)
    assert np.ptp(coarse / scale, axis=(0, 1)).max() > 0.01  # positions differ: reading the wrong ones would show


@every_backbone
def test_names_and_weight_files_do_not_depend_on_what_was_built_before(backbone, tmp_path, rng):
    first, second = built(backbone), networks.embedding_network(Spec(backbone, **SMALL), seed=2)
    names = [operation.name for operation in first.operations]
    assert names == [operation.name for operation in second.operations] and len(set(names)) == len(names)
    assert not any(embedding.AUTO_NAME.fullmatch(name) for name in names)
    first.save_weights(tmp_path / "first.weights.h5")
    second.load_weights(tmp_path / "first.weights.h5")
    images = rng.integers(0, 255, (2, 64, 64, 3))
    np.testing.assert_array_equal(first(images, training=False), second(images, training=False))


@every_backbone
def test_from_scratch_each_residual_branch_starts_at_zero(backbone):
    norms = batch_norms(built(backbone))
    added = {layer.name.removesuffix("_add") for layer in built(backbone).layers if isinstance(layer, keras.layers.Add)}
    silent = {layer.name for layer in norms if not layer.gamma.numpy().any()}
    assert added and {name.lower().removesuffix("_project_bn") for name in silent} == added
    assert {layer.momentum for layer in norms} == {0.9}


def test_preprocessing_is_inside():
    network = built()
    scaled = keras.Model(network.input, network.get_layer("preprocessing").output)
    extremes = networks.forward(scaled, np.stack([np.zeros((64, 64, 3)), np.full((64, 64, 3), 255)]))
    assert (extremes[0] == -1).all() and (extremes[1] == 1).all()


def even_out(images):
    """What `LocalContrast` says it does, by NumPy and OpenCV; sides that 4 divides."""
    def interpolated(values):
        tiles = values.reshape(len(values), 4, values.shape[1] // 4, 4, -1).mean(axis=(2, 4))
        return np.stack([cv2.resize(one, values.shape[:0:-1]) for one in tiles])

    grey = images @ np.array([0.299, 0.587, 0.114])
    mean = interpolated(grey)
    deviation = np.sqrt(np.maximum(interpolated(grey**2) - mean**2, 1))
    gain = np.clip(50 / deviation, 0.7, 1.7)
    return np.clip((images - mean[..., None]) * gain[..., None] + (mean[..., None] + 127) / 2, 0, 255)


def test_contrast_is_evened_out(rng):
    lowest, range_ = np.array([[90, 0, 200], [60, 255, 1]])[..., None, None, None]  # hazy, full, flat
    images = (lowest + range_ * rng.random((3, 64, 64, 3))).astype(np.float32)
    network, plain = networks.embedding_network(Spec(local_contrast=True, **SMALL), seed=2), built()
    networks.continue_from(network, plain)
    evened = keras.Model(network.input, network.get_layer("preprocessing_contrast").output)(images).numpy()
    np.testing.assert_allclose(evened, even_out(images), atol=0.01)
    assert evened[0].std() > 1.5 * images[0].std()
    assert network.count_params() == plain.count_params()
    np.testing.assert_allclose(network(images), plain(evened), atol=1e-5)


def test_seeded_weights_without_a_global_seed():
    spec = Spec("small_resnet", image_size=32)
    first, again, other = (networks.embedding_network(spec, seed=s).get_weights() for s in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@every_backbone
def test_weights_from_a_file_freeze_batch_norms_and_fine_layers(backbone, tmp_path, rng):
    published = networks.BACKBONES[backbone].build(input_shape=(96, 96, 3), alpha=0.35, include_top=False, weights=None)
    published.save_weights(tmp_path / "mine.weights.h5")
    spec = Spec(backbone, image_size=96, alpha=0.35, output_stride=32)
    network = networks.embedding_network(spec, tmp_path / "mine.weights.h5")
    images = rng.integers(0, 255, (2, 96, 96, 3)).astype(np.float32)
    np.testing.assert_allclose(
        maps(network, LAST_LAYERS[backbone], images), published(images / 127.5 - 1, training=False), atol=1e-4
    )
    assert batch_norms(network) and not any(layer.trainable for layer in batch_norms(network))
    kernels = [layer for layer in network.layers if layer.trainable and layer.weights]
    assert kernels[-1].name == "embedding" and len(kernels) > 10
    assert kernels[0].input.shape[1] > 12 >= kernels[0].output.shape[1]


def test_imagenet_weights_are_looked_for_in_the_folder_first(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGENET_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("FASTER_GRAD_CAM_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="forbids the download"):
        networks.embedding_network(Spec(**SMALL), "imagenet")
    published = keras.applications.MobileNetV2(input_shape=(96, 96, 3), alpha=0.35, include_top=False, weights=None)
    published.save_weights(tmp_path / "mobilenet_v2_0.35_imagenet_no_top.weights.h5")
    network = networks.embedding_network(Spec(**SMALL), "imagenet")
    np.testing.assert_array_equal(
        network.get_layer("Conv1").get_weights()[0], published.get_layer("Conv1").get_weights()[0]
    )
    monkeypatch.setenv("IMAGENET_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"\$IMAGENET_WEIGHTS must name a folder"):
        networks.embedding_network(Spec(**SMALL), "imagenet")


def test_wrong_weights_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="No weights file"):
        networks.embedding_network(Spec(**SMALL), tmp_path / "nowhere.weights.h5")
    (tmp_path / "foreign.weights.h5").write_text("not weights")
    with pytest.raises(ValueError, match="foreign.weights.h5: expected weights of mobilenet_v2"):
        networks.embedding_network(Spec(**SMALL), tmp_path / "foreign.weights.h5")


@pytest.mark.real
def test_the_real_imagenet_weights_load(imagenet_weights):
    network = networks.embedding_network(Spec(), "imagenet")
    assert abs(network.get_layer("Conv1").get_weights()[0]).max() > 0.3


@pytest.mark.parametrize(
    "change", [{"backbone": "lenet"}, {"output_stride": 4}, {"image_size": 8}, {"alpha": 0}, {"embedding_size": 0}]
)
def test_specs_that_cannot_be_built(change):
    with pytest.raises(ValueError, match="Received: "):
        Spec(**change)


def test_forward_is_compiled_once_and_keeps_the_order(rng):
    network = built()
    images = rng.integers(0, 255, (5, 64, 64, 3)).astype(np.uint8)
    whole = networks.forward(network, images)
    np.testing.assert_allclose(networks.forward(network, images, batch_size=2), whole, atol=1e-5)
    both = networks.forward(
        keras.Model(network.input, [network.get_layer("out_relu").output, network.output]), images, batch_size=2
    )
    assert [part.shape for part in both] == [(5, 4, 4, 1280), (5, 8)]


def test_receptive_fields_by_hand():
    x = inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="a")(x)  # 3 pixels, 2 apart
    y = keras.layers.Conv2D(4, 3, dilation_rate=2, padding="same", name="b")(x)  # 3 + 2 * 2 * 2
    y = keras.layers.MaxPooling2D(2, strides=1, padding="same", name="c")(y)  # + 1 * 2
    z = keras.layers.Add(name="d")([x, y])
    z = keras.layers.Multiply(name="e")([z, keras.layers.GlobalAveragePooling2D(keepdims=True, name="f")(z)])
    fields = networks.receptive_fields(keras.Model(inputs, z))
    assert fields == {
        "a": (3, 2), "b": (11, 2), "c": (13, 2), "d": (13, 2), "f": (float("inf"), 2), "e": (float("inf"), 2)
    }


def test_receptive_field_is_where_the_gradient_is_not_zero():
    network = networks.embedding_network(networks.Spec(image_size=160, alpha=0.35, embedding_size=4))
    size, stride = networks.receptive_fields(network)["block_3_expand_relu"]
    maps = keras.Model(network.input, network.get_layer("block_3_expand_BN").output)
    with tf.GradientTape() as tape:
        images = tf.constant(np.random.default_rng(0).uniform(0, 255, (1, 160, 160, 3)).astype(np.float32))
        tape.watch(images)
        score = tf.reduce_sum(maps(images, training=False)[0, 20, 20])
    rows = np.flatnonzero(np.abs(tape.gradient(score, images)[0]).sum(axis=(1, 2)))
    assert stride == 4 and rows.max() - rows.min() + 1 <= size


def test_a_backbone_that_ends_early(rng):
    spec = Spec(image_size=64, alpha=0.35, embedding_size=8, output_stride=8, last_layer="block_13_expand_relu")
    network = networks.embedding_network(spec, seed=1)
    assert networks.default_layer(network) == networks.map_layers(network)[-1] == "block_13_expand_relu"
    assert network.get_layer("block_13_expand_relu").output.shape[1:3] == (8, 8)
    with pytest.raises(ValueError, match="No layer of that name"):
        networks.embedding_network(Spec(image_size=64, alpha=0.35, last_layer="block_17_add"))


@pytest.mark.parametrize("backbone", networks.BACKBONES)
def test_finer_layers_are_the_last_of_their_resolution(backbone):
    network = networks.embedding_network(networks.Spec(backbone, image_size=96))
    sides = {layer.name: layer.output.shape[1] for layer in network.layers if len(layer.output.shape) == 4}
    last = {side: name for name, side in sides.items()}
    assert networks.BACKBONES[backbone].finer_layers == (last[96 // 8], last[96 // 4])


def test_a_training_goes_on_with_the_weights_and_the_frozen_layers_of_the_one_before(tmp_path):
    published = networks.BACKBONES["mobilenet_v2"].build(
        input_shape=(96, 96, 3), alpha=0.35, include_top=False, weights=None
    )
    published.save_weights(tmp_path / "mine.weights.h5")
    spec = Spec(**SMALL, output_stride=8)
    first = networks.embedding_network(spec, tmp_path / "mine.weights.h5", seed=5)
    second = networks.embedding_network(spec, seed=6)
    networks.continue_from(second, first)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [layer.trainable for layer in first.layers] == [layer.trainable for layer in second.layers]
    with pytest.raises(ValueError, match="Expected a trained network of"):
        networks.continue_from(second, built())
