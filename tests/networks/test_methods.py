"""The rarer methods of Grad-CAM's family, each beside an independent computation, and what their papers promise."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.decomposition import KernelPCA

from utils import gradcam, networks
from utils.arcface import ArcFace
from utils.networks import cams, fullgrad, perturbing

SIDE, K = 12, 5


def build(activation="relu", end="softmax", norm=False):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Rescaling(1.5, -0.3)(x)
    x = keras.layers.Conv2D(4, 3, strides=2, activation=activation, name="early")(x)
    x = keras.layers.BatchNormalization()(x) if norm else x
    x = keras.layers.Conv2D(6, 3, activation=activation, name="late")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    network = keras.Model(inputs, ArcFace(K)(x) if end == "arcface" else keras.layers.Dense(K, end, name="head")(x))
    rng = np.random.default_rng(1)
    for weight in network.weights:
        weight.assign(weight + 0.3 * np.abs(rng.normal(size=weight.shape)))
    return network


@pytest.fixture
def images(rng):
    return rng.random((3, SIDE, SIDE, 3)).astype(np.float32)


def logits_of(network, images):
    hidden = keras.Model(network.input, network.layers[-2].output)(images)
    return hidden.numpy() @ network.layers[-1].kernel.numpy() + network.layers[-1].bias.numpy()


def maps_and_gradients(network, images, layer, score):
    """Feature maps, and the gradients of a function of the logits, by an eager tape."""
    maps = keras.Model(network.input, network.get_layer(layer).output)(images)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        x = maps
        for later in network.layers[network.layers.index(network.get_layer(layer)) + 1 : -1]:
            x = later(x)
        value = score(x @ network.layers[-1].kernel + network.layers[-1].bias)
    return maps.numpy(), tape.gradient(value, maps).numpy()


def raw(network, images, method, **how):
    return gradcam.explain(network, images, method=method, normalise=False, **how)


def test_kpca_cam_is_the_kernel_component_of_sklearn(images):
    network = build()
    maps = keras.Model(network.input, network.get_layer("early").output)(images).numpy()
    for own, got in zip(maps, raw(network, images, "kpcacam", layer="early"), strict=True):
        matrix = own.reshape(-1, own.shape[-1]).astype(np.float64)
        expected = KernelPCA(1, kernel="sigmoid").fit_transform(matrix - matrix.mean(axis=0)).reshape(own.shape[:2])
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def test_eigen_grad_cam_is_the_first_principal_component(images):
    network = build()
    maps, gradients = maps_and_gradients(network, images, "early", lambda logits: logits[:, 2])
    found = raw(network, images, "eigengradcam", layer="early", targets=2)
    for product, got in zip(maps * gradients, found, strict=True):
        matrix = product.reshape(-1, product.shape[-1]).astype(np.float64)
        matrix -= matrix.mean(axis=0)
        expected = matrix @ np.linalg.svd(matrix)[2][0]
        expected *= np.sign(expected[np.abs(expected).argmax()])
        np.testing.assert_allclose(got.ravel(), expected, atol=1e-4 * np.abs(expected).max())


def test_shapley_cam_of_a_quadratic_score():
    # s = Σ q·A²/2 has g = q·A and H·A = q·A: of each weight half is left.
    inputs = keras.Input((2, 2, 2))
    maps = keras.layers.Conv2D(2, 1, use_bias=False, name="maps")(inputs)
    squares = keras.layers.Flatten()(keras.layers.Multiply()([maps, maps]))
    network = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(squares))
    image, q = np.array([[[1, 0], [2, 1]], [[0, 1], [1, 0]]], np.float32), np.arange(1.0, 9).reshape(2, 2, 2)
    network.set_weights([np.eye(2)[None, None], q.reshape(-1, 1) / 2])
    weights = (q * image).mean(axis=(0, 1)) / 2
    np.testing.assert_allclose(raw(network, image, "shapleycam", layer="maps")[0], image @ weights, rtol=1e-6)


def test_shapley_cam_of_several_layers_and_of_a_function_of_the_scores(images):
    network = build("swish")
    together = gradcam.explain_layers(network, images, layers=["early", "late"], targets=1, method="shapleycam")
    for name, heat in together.items():
        alone = gradcam.explain(network, images, layer=name, targets=1, method="shapleycam")
        np.testing.assert_allclose(heat, alone, atol=1e-5)
        asked = gradcam.explain(network, images, layer=name, targets=lambda s: s[:, 1], method="shapleycam")
        np.testing.assert_allclose(asked, alone, atol=1e-5)
    assert np.abs(together["early"] - gradcam.explain(network, images, layer="early", targets=1)).max() > 1e-3


def test_finer_cam_explains_what_tells_a_class_from_its_like(images):
    network, logits = build(), logits_of(build(), images)
    for n, image in enumerate(images):
        others = [k for k in np.argsort(np.abs(logits[n] - logits[n, 2]), kind="stable") if k != 2][:3]

        def score(z, others=others):
            p = tf.nn.softmax(z)
            return sum(p[:, k] * (z[:, 2] - z[:, k]) for k in others) / sum(p[:, k] for k in others)

        maps, gradients = maps_and_gradients(network, image[None], "late", score)
        expected = np.einsum("nhwc,nc->nhw", maps, gradients.mean(axis=(1, 2)))
        got = raw(network, image, "finercam", layer="late", targets=2)
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(ValueError, match="pass class ids as targets. Received: a function"):
        raw(network, images, "finercam", targets=lambda scores: scores[:, 0])


def test_ablation_cam_against_a_network_without_the_channel(images):
    network = build()
    maps = keras.Model(network.input, network.get_layer("early").output)(images).numpy()
    whole, without = logits_of(network, images)[:, 1], []
    kernel, bias = network.get_layer("early").get_weights()
    for c in range(4):
        keep = np.arange(4) != c
        network.get_layer("early").set_weights([kernel * keep, bias * keep])
        without.append(logits_of(network, images)[:, 1])
    network.get_layer("early").set_weights([kernel, bias])
    weights = (whole - np.array(without)) / np.abs(whole)  # (C, N)
    expected = np.einsum("nhwc,cn->nhw", maps, weights)
    got = raw(network, images, "ablationcam", layer="early", targets=1)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("method", ["sscam", "iscam"])
def test_masked_methods_against_one_pass_at_a_time(method, images, monkeypatch):
    monkeypatch.setattr(perturbing, "N_NOISES", 3)
    network = build()
    maps = keras.Model(network.input, network.get_layer("late").output)(images).numpy()
    noise = np.random.default_rng(perturbing.SEED).normal(size=(3, SIDE, SIDE))
    for image, own, got in zip(images, maps, raw(network, images, method, layer="late", targets=3), strict=True):
        means = []
        for c in range(own.shape[-1]):
            mask = tf.image.resize(own[..., c, None], (SIDE, SIDE)).numpy()
            passes = [(1, n[..., None] * 0.3 * np.ptp(own)) for n in noise]
            if method == "iscam":
                passes = [(i / 10, 0) for i in range(1, 11)]
            seen = []
            for share, grain in passes:
                noisy = mask + grain
                seen.append(share * image * (noisy - noisy.min()) / max(np.ptp(noisy), 1e-12))
            means.append(logits_of(network, np.array(seen, np.float32))[:, 3].mean())
        np.testing.assert_allclose(got, own @ tf.nn.softmax(means).numpy(), rtol=1e-3)


def test_smooth_grad_cam_plus_plus_against_an_eager_tape(images):
    network, score = build("swish"), lambda logits: logits[:, 2]
    maps = keras.Model(network.input, network.get_layer("early").output)(images).numpy()
    noise = np.random.default_rng(perturbing.SEED).normal(size=(4, 1, SIDE, SIDE, 3))
    level = 0.3 * np.ptp(images, axis=(1, 2, 3), keepdims=True)
    g = np.stack([maps_and_gradients(network, np.float32(images + level * n), "early", score)[1] for n in noise])
    g = g.astype(np.float64)
    alphas = (g**2).mean(0) / (2 * (g**2).mean(0) + maps.sum(axis=(1, 2), keepdims=True) * (g**3).mean(0))
    expected = np.einsum("nhwc,nc->nhw", maps, (alphas * np.maximum(g.mean(0), 0)).sum(axis=(1, 2)))
    got = raw(network, images, "smoothgradcam++", layer="early", targets=2)
    np.testing.assert_allclose(got, expected, rtol=1e-3)


# --- FullGrad ------------------------------------------------------------------------------------------------------

NETWORKS = {
    "relu": build, "batch norm": functools.partial(build, norm=True), "swish": functools.partial(build, "swish"),
    "linear end": functools.partial(build, end=None), "cosine": functools.partial(build, end="arcface"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_shares_of_full_grad_sum_to_the_score(name, images):
    network = NETWORKS[name]()
    score, image, biases = fullgrad.shares(network, images, np.full(3, 2))
    total = image.sum(axis=(1, 2, 3)) + sum(share.reshape(3, -1).sum(axis=1) for share in biases.values())
    np.testing.assert_allclose(total, score, rtol=1e-4)
    if name != "cosine":
        np.testing.assert_allclose(score, logits_of(network, images)[:, 2], rtol=1e-4)


def test_full_grad_on_values_written_out():
    # s = 2·(x + 1) at one pixel and -(x + 1) at the other: x ∘ g = (6, -4), b ∘ g = (2, -1).
    inputs = keras.Input((1, 2, 1))
    maps = keras.layers.Conv2D(1, 1, name="maps")(inputs)
    network = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(maps)))
    network.set_weights([np.array(w) for w in ([[[[1.0]]]], [1.0], [[2.0], [-1.0]], [0.5])])
    image = np.array([[[3.0], [4.0]]], np.float32)
    score, of_image, biases = fullgrad.shares(network, image[None], np.zeros(1, int))
    assert score.tolist() == [3.5] and of_image.ravel().tolist() == [6, -4]
    assert biases["maps"].ravel().tolist() == [2, -1] and sum(share.sum() for share in biases.values()) == 1.5
    np.testing.assert_allclose(raw(network, image, "fullgrad"), [[[2, 0]]])  # (6, 4) and (2, 1), each scaled to (1, 0)


def test_full_grad_is_the_same_whatever_the_layer(images):
    maps = gradcam.explain_layers(build(), images, method="fullgrad")
    assert len(maps) == 2 and (maps["early"] == maps["late"]).all() and maps["late"].shape == (3, SIDE, SIDE)


# --- views and layers ----------------------------------------------------------------------------------------------


def test_smooth_is_the_mean_over_six_views(images):
    network = build()
    expected = 0
    for share in (0.9, 1, 1.1):
        expected += gradcam.explain(network, np.float32(share) * images, targets=1)
        expected += gradcam.explain(network, np.float32(share) * images[:, :, ::-1], targets=1)[..., ::-1]
    got = gradcam.explain(network, images, targets=1, smooth=True)
    np.testing.assert_allclose(got, expected / 6, atol=1e-5)
    mirrored = gradcam.explain(network, images[:, :, ::-1], targets=1, smooth=True)
    np.testing.assert_allclose(mirrored[..., ::-1], got, atol=1e-5)


def test_layers_are_joined_by_product_or_maximum():
    heat = {"early": np.array([[[1.0, 0.25]]]), "late": np.array([[[0.0, 1.0]]])}
    np.testing.assert_allclose(cams.joined(heat), [[[0, 0.5]]])
    np.testing.assert_allclose(cams.joined(heat, "maximum"), [[[1, 1]]], rtol=1e-6)
    low = cams.joined([0.5 * heat["early"], 0.5 * heat["late"]], "maximum")
    np.testing.assert_allclose(low, np.tanh([[[1, 1]]]) / np.tanh(2), rtol=1e-6)
    for wrong, how in (({}, "product"), (heat, "sum"), ([np.ones((1, 2, 2)), np.ones((1, 3, 3))], "product")):
        with pytest.raises(ValueError, match='Expected heat maps of one shape, and "product" or "maximum". Received: '):
            cams.joined(wrong, how)


def test_the_network_stays_as_it_was(images):
    network = build()
    before = network.get_weights()
    for method in perturbing.METHODS:
        gradcam.explain(network, images, method=method)
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert networks.map_layers(network) == ["early", "late"]
