"""The registry of ImageNet classifiers: names, shapes, weights of keras.applications and of torchvision, errors."""

import json
import sys

import keras
import numpy as np
import pytest
from benchmarks import references

from utils import gradcam, networks
from utils.networks import classifiers, embedding, torchvision_nets
from utils.networks.classifiers import NETWORKS

FROM_KERAS = [name for name, entry in NETWORKS.items() if not entry.from_torchvision]
FROM_TORCHVISION = [name for name in NETWORKS if name not in FROM_KERAS]
DEEP = {"vgg19", "resnet50", "resnet101", "densenet121", "inception_v3", "efficientnet"}


def all_but_slow(names, slow):
    """A parameter of tests: the names, those that take long marked so."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]
    )


def write_safetensors(path, tensors):
    header, values = {"__metadata__": {"format": "np"}}, b""
    for name, array in tensors.items():
        place = [len(values), len(values) + array.nbytes]
        header[name] = {"dtype": {"f": "F", "i": "I"}[array.dtype.kind] + str(8 * array.itemsize), "shape": array.shape}
        header[name]["data_offsets"] = place
        values += array.tobytes()
    header = json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + values)


@all_but_slow(NETWORKS, slow=DEEP)
def test_smallest_images_give_finite_logits(name, rng):
    side = NETWORKS[name].smallest
    network = classifiers.build(name, image_size=side)
    assert network.name == name and network.input_shape == (None, side, side, 3)
    logits = network(rng.integers(0, 256, (2, side, side, 3)), training=False).numpy()
    assert logits.shape == (2, 1000) and np.isfinite(logits).all() and np.ptp(logits) > 0
    layer = networks.get_layer(network, networks.default_layer(network))
    assert layer.name == NETWORKS[name].default_layer
    assert layer.output.shape[1:3] == ((14, 14) if name in ("vgg16", "vgg19") else (1, 1))
    # Whatever this process built before.
    names = [operation.name for operation in network.operations]
    assert len(set(names)) == len(names)
    counted = [match.groups("0") for n in names if (match := embedding.AUTO_NAME.fullmatch(n))]
    assert all((kind, "0") in counted for kind, _ in counted)


@pytest.mark.slow
def test_names_are_those_of_a_new_process():
    keras.layers.Conv2D(1, 1), keras.layers.Activation("relu")  # Keras counts them
    names = [layer.name for layer in classifiers.build("inception_v3", image_size=75).layers]
    assert {"conv2d", "conv2d_93", "activation_93", "mixed10"} <= set(names) and "conv2d_94" not in names


def test_seeded_weights_without_a_global_seed():
    first, again, other = (classifiers.build("resnet18", image_size=32, seed=s).get_weights() for s in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("mode", ["caffe", "torch", "tf"])
def test_preprocessing_is_that_of_keras(mode, rng):
    images = rng.integers(0, 256, (2, 5, 4, 3)).astype(np.float32)
    expected = keras.applications.imagenet_utils.preprocess_input(images.copy(), mode=mode)
    np.testing.assert_allclose(classifiers.PREPROCESSING[mode]()(images), expected, atol=1e-4)


@all_but_slow(FROM_KERAS, slow=set(FROM_KERAS) - {"mobilenet_v3"})
def test_weights_of_keras_applications(name, tmp_path, rng):
    entry = NETWORKS[name]
    side = entry.image_size
    published = entry.build(weights=None, classifier_activation=None, input_shape=(side, side, 3))
    for layer in published.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
        if isinstance(layer, keras.layers.Normalization):  # EfficientNet's statistics, which are not adapted here
            mean, variance = classifiers.MEAN, classifiers.DEVIATION**2
            layer.set_weights([mean, variance, layer.get_weights()[2]])
            layer.finalize_state()
    published.save_weights(tmp_path / "mine.weights.h5")
    images = rng.integers(0, 256, (1, side, side, 3)).astype(np.float32)
    keras_prepares = entry.preprocessing is None
    scaled = images if keras_prepares else classifiers.PREPROCESSING[entry.preprocessing]()(images)
    expected = published(scaled, training=False).numpy()
    logits = classifiers.build(name, tmp_path / "mine.weights.h5", image_size=(None, None))(images, training=False)
    # Random networks hardly heed their input: a looser bound would let wrong preprocessing pass.
    np.testing.assert_allclose(logits, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.slow
def test_vgg_averages_the_logits_of_all_places(rng):
    network = classifiers.build("vgg16", image_size=(None, None))
    image = rng.integers(0, 256, (1, 224, 256, 3)).astype(np.float32)
    places = keras.Model(network.input, network.get_layer("predictions").output)(image, training=False).numpy()
    assert places.shape == (1, 1, 2, 1000)
    np.testing.assert_allclose(network(image, training=False), places.mean(axis=(1, 2)), rtol=1e-4)
    assert gradcam.explain(network, image, layer=NETWORKS["vgg16"].default_layer).shape == (1, 224, 256)
    dense = classifiers.build("vgg16")  # of the same seed
    image = image[:, :, :224]
    expected = dense(image, training=False).numpy()
    np.testing.assert_allclose(network(image, training=False), expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_weights_of_torchvision_on_images_of_any_size(name, tmp_path):
    write_safetensors(tmp_path / "w.safetensors", references.state_dict(name))
    network = classifiers.build(name, tmp_path / "w.safetensors", image_size=(None, None))
    logits, expected = network(references.images(name), training=False), references.expected()[f"{name}/logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-5 * abs(expected).max())
    network.save_weights(tmp_path / "w.weights.h5")
    again = classifiers.build(name, tmp_path / "w.weights.h5", image_size=64)
    assert all((a == b).all() for a, b in zip(network.get_weights(), again.get_weights(), strict=True))


@pytest.mark.slow
def test_a_network_of_our_layers_is_saved_and_explained(tmp_path, rng):
    network = classifiers.build("shufflenet_v2", image_size=(None, 64))
    network.save(tmp_path / "network.keras")
    images = rng.integers(0, 256, (2, 48, 64, 3), np.uint8)
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded(images, training=False), network(images, training=False))
    for layer in ("conv5_relu", "stage2_0_shuffle"):
        assert gradcam.explain(network, images, layer=layer).shape == (2, 48, 64)
    bgr = keras.Sequential([keras.Input((4, 4, 3)), classifiers.PREPROCESSING["caffe"]()])
    bgr.save(tmp_path / "bgr.keras")
    loaded = keras.saving.load_model(tmp_path / "bgr.keras")
    np.testing.assert_array_equal(loaded(images[:, :4, :4]), bgr(images[:, :4, :4]))


def test_state_dicts_that_do_not_fit():
    network = classifiers.build("resnet18", image_size=32)
    state, before = references.state_dict("resnet18"), network.get_weights()
    state["bn1.num_batches_tracked"] = np.array(7)
    state["fc.weight"] = state["fc.weight"][:10]
    state["head.weight"] = state.pop("layer4.1.conv2.weight")
    with pytest.raises(ValueError, match="layer4.1.conv2.weight is missing; head.weight is unexpected; fc.weight has"):
        torchvision_nets.assign_state_dict(network, state)
    assert all((a == b).all() for a, b in zip(before, network.get_weights(), strict=True))
    with pytest.raises(ValueError, match="; and 97 more"):
        torchvision_nets.assign_state_dict(network, {})


def test_weights_files_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"fc.bias": np.zeros(1000, np.float32), "n": np.zeros((), np.int64)})
    assert {k: v.shape for k, v in torchvision_nets.read_state_dict(path).items()} == {"fc.bias": (1000,), "n": ()}
    whole = path.read_bytes()
    for damaged in (b"", b"no weights", whole[:-1], whole.replace(b"F32", b"F99"), (2).to_bytes(8, "little") + b"[]"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="Expected a whole safetensors file .* Received: "):
            torchvision_nets.read_state_dict(path)
    (tmp_path / "w.pth").write_bytes(b"no weights")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="pip install torch"):
        torchvision_nets.read_state_dict(tmp_path / "w.pth")
    for name in ("resnet18", "mobilenet_v2"):
        (tmp_path / "w.weights.h5").write_text("no weights")
        with pytest.raises(ValueError, match=f"Cannot load .* as weights of {name}"):
            classifiers.build(name, tmp_path / "w.weights.h5", image_size=32)
    with pytest.raises(FileNotFoundError, match="No weights file"):
        classifiers.build("resnet18", tmp_path / "nowhere.pth")


def test_imagenet_weights_are_looked_for_in_the_folder_first(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGENET_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("FASTER_GRAD_CAM_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="forbids the download"):
        classifiers.build("vgg16", "imagenet")
    with pytest.raises(FileNotFoundError, match="Keras publishes no weights of resnet18"):
        classifiers.build("resnet18", "imagenet")
    weights = references.state_dict("resnet18")
    write_safetensors(tmp_path / "resnet18_imagenet.safetensors", weights)
    network = classifiers.build("resnet18", "imagenet", image_size=32)
    np.testing.assert_array_equal(network.get_layer("predictions").bias, weights["fc.bias"])
    monkeypatch.setenv("IMAGENET_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"\$IMAGENET_WEIGHTS must name a folder"):
        classifiers.class_names()


def test_class_names(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("IMAGENET_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("FASTER_GRAD_CAM_OFFLINE", "1")
    assert classifiers.class_names()[243] == "class_243" and len(classifiers.class_names()) == 1000
    (tmp_path / "imagenet_labels.txt").write_text("background\n" + "\n".join(f"thing {i}" for i in range(1000)))
    assert classifiers.class_names()[243] == "thing 243"
    (tmp_path / "imagenet_labels.txt").write_text("tench\ngoldfish\n")
    with pytest.raises(ValueError, match="Received: 1"):
        classifiers.class_names()


def test_keras_own_class_names(tmp_path, monkeypatch):
    monkeypatch.delenv("IMAGENET_WEIGHTS", raising=False)
    monkeypatch.setenv("FASTER_GRAD_CAM_OFFLINE", "0")
    index = {str(i): (f"n{i}", f"odd_thing_{i}") for i in range(1000)}
    monkeypatch.setattr("keras.src.applications.imagenet_utils.CLASS_INDEX", index)
    assert classifiers.class_names() == [f"odd thing {i}" for i in range(1000)]


@pytest.mark.parametrize("name, image_size", [("lenet", None), ("inception_v3", 74), ("vgg16", (224, 32)), *[
    ("resnet18", size) for size in ("64", 64.0, (64,), (64, 64, 3))
]])
def test_what_cannot_be_built(name, image_size):
    with pytest.raises(ValueError, match="Received: "):
        classifiers.build(name, image_size=image_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_explained_by_each_kind_of_pass(name, rng):
    """A second derivative, masked channels: the other methods need the gradient of Grad-CAM, or forward passes."""
    side = max(NETWORKS[name].smallest, 75)
    image = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
    network = classifiers.build(name, image_size=side)
    heatmaps = gradcam.explain(network, image)
    assert heatmaps.shape == (1, side, side) and heatmaps.min() >= 0 and heatmaps.max() <= 1
    for method in ("shapleycam", "ablationcam"):
        raw = gradcam.explain(network, image, method=method, normalise=False)
        assert raw.shape == (1, *networks.get_layer(network, network.default_layer).output.shape[1:3])
        assert np.isfinite(raw).all() and raw.any()
