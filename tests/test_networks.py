"""The embedding network: strides, weights, seeds, errors."""

import keras
import numpy as np
import pytest

from utils import networks
from utils.networks import Spec

SMALL = {"image_size": 64, "alpha": 0.35, "embedding_size": 8}


@pytest.mark.parametrize("output_stride, side", [(32, 2), (16, 4)])
def test_output_stride(output_stride, side, rng):
    network = networks.embedding_network(Spec(output_stride=output_stride, **SMALL))
    assert network.get_layer("out_relu").output.shape[1:3] == (side, side)
    assert network.get_layer(networks.DEFAULT_LAYER).output.shape[1:3] == (4, 4)
    assert network.output_shape == (None, 8)
    assert np.isfinite(networks.forward(network, rng.integers(0, 255, (3, 64, 64, 3)))).all()


def test_the_same_weights_see_the_same_at_both_strides(rng):
    # A kernel spread by 2 on maps of twice the resolution reads the same neighbours: at every other position,
    # away from the border, both networks agree.
    coarse, fine = (
        networks.embedding_network(Spec(**SMALL | {"image_size": 224, "output_stride": s})) for s in (32, 16)
    )
    for network in (coarse, fine):
        network.set_weights(coarse.get_weights())
    images = rng.integers(0, 255, (1, 224, 224, 3))
    coarse, fine = (
        networks.forward(keras.Model(n.input, n.get_layer("block_14_depthwise").output), images)[0]
        for n in (coarse, fine)
    )
    np.testing.assert_allclose(coarse[2:5, 2:5], fine[5:11:2, 5:11:2], atol=1e-4)


def test_preprocessing_is_inside():
    network = networks.embedding_network(Spec(**SMALL))
    scaled = keras.Model(network.input, network.get_layer("preprocessing").output)
    extremes = networks.forward(scaled, np.stack([np.zeros((64, 64, 3)), np.full((64, 64, 3), 255)]))
    assert (extremes[0] == -1).all() and (extremes[1] == 1).all()


def test_seeded_weights_without_a_global_seed():
    first, again, other = (networks.embedding_network(Spec(**SMALL), seed=s).get_weights() for s in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_weights_from_a_file_freeze_the_batch_norms(tmp_path, rng):
    published = keras.applications.MobileNetV2(input_shape=(96, 96, 3), alpha=0.35, include_top=False, weights=None)
    published.save_weights(tmp_path / "mine.weights.h5")
    network = networks.embedding_network(
        Spec(image_size=96, alpha=0.35, output_stride=32), tmp_path / "mine.weights.h5"
    )
    images = rng.integers(0, 255, (2, 96, 96, 3)).astype(np.float32)
    maps = networks.forward(keras.Model(network.input, network.get_layer("out_relu").output), images)
    np.testing.assert_allclose(maps, published(images / 127.5 - 1, training=False), atol=1e-4)
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms and not any(layer.trainable for layer in norms)


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
    "change",
    [{"backbone": "lenet"}, {"output_stride": 8}, {"image_size": 8}, {"alpha": 0}, {"embedding_size": 0}],
)
def test_specs_that_cannot_be_built(change):
    with pytest.raises(ValueError, match="Received: "):
        Spec(**change)


def test_forward_is_compiled_once_and_keeps_the_order(rng):
    network = networks.embedding_network(Spec(**SMALL))
    images = rng.integers(0, 255, (5, 64, 64, 3)).astype(np.uint8)
    whole = networks.forward(network, images)
    np.testing.assert_allclose(networks.forward(network, images, batch_size=2), whole, atol=1e-5)
    both = networks.forward(
        keras.Model(network.input, [network.get_layer("out_relu").output, network.output]), images, 2
    )
    assert [part.shape for part in both] == [(5, 4, 4, 1280), (5, 8)]
