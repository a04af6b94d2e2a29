"""Grad-CAM, its family and harvesting against closed forms, hand-computed values and an independent computation."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from utils import gradcam, heatmap, networks
from utils.arcface import ArcFace
from utils.networks import passes, perturbing


def trunk(size=12, channels=6):
    x = inputs = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu", name="early")(x)
    x = keras.layers.Conv2D(channels, 3, activation="relu", name="late")(x)
    return inputs, x


def embedding_classifier(dense=True):
    keras.utils.set_random_seed(0)
    inputs, x = trunk()
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(5, name="embedding", use_bias=False)(x) if dense else x
    return keras.Model(inputs, ArcFace(3, name="arcface")(x))


def gap_classifier(activation=None):
    keras.utils.set_random_seed(0)
    inputs, x = trunk()
    return keras.Model(inputs, keras.layers.Dense(4, activation=activation, name="head")(
        keras.layers.GlobalAveragePooling2D()(x)))


@pytest.fixture
def images(rng):
    return rng.random((7, 12, 12, 3)).astype(np.float32)


def feature_maps(network, images, layer="late"):
    return keras.Model(network.input, network.get_layer(layer).output)(images).numpy()


@pytest.mark.parametrize("dense", [True, False])
def test_channel_weights_before_pooling_equal_the_closed_form_of_the_cosine(images, dense):
    # ∂cos/∂e = (ŵ − cos θ · ê) / ‖e‖, ∂e/∂A = K / (h·w): K = identity if the embedding is the pooled maps themselves.
    network = embedding_classifier(dense)
    labels = np.arange(7) % 3
    harvest = gradcam.harvest(network, [(images, labels)], layer="late")
    maps = feature_maps(network, images)
    kernel = network.get_layer("embedding").kernel.numpy() if dense else np.eye(6)
    prototypes = network.get_layer("arcface").kernel.numpy()
    prototypes = (prototypes / np.linalg.norm(prototypes, axis=0)).T[labels]
    embedding = maps.mean(axis=(1, 2)) @ kernel
    norm = np.linalg.norm(embedding, axis=1, keepdims=True)
    cosine = (prototypes * embedding / norm).sum(axis=1, keepdims=True)
    expected = (prototypes - cosine * embedding / norm) / norm @ kernel.T / maps[0, ..., 0].size
    np.testing.assert_allclose(harvest.channel_weights, expected, atol=1e-6)
    np.testing.assert_allclose(harvest.embeddings, embedding, atol=1e-5)
    np.testing.assert_allclose(harvest.scores[np.arange(7), labels], cosine[:, 0], atol=1e-5)
    raw = np.einsum("nhwc,nc->nhw", maps, expected)
    got = gradcam.explain(network, images, layer="late", targets=labels)
    np.testing.assert_allclose(got, heatmap.normalise_and_resize(raw, 12, 12), atol=1e-4)


def test_classic_cam_on_a_pooling_classifier(images):
    # CAM (arXiv 1512.04150): the class's weights behind global average pooling combine the maps.
    network = gap_classifier()
    raw = feature_maps(network, images) @ network.get_layer("head").kernel.numpy()[:, 2]
    expected = heatmap.normalise_and_resize(raw, 12, 12)
    np.testing.assert_allclose(gradcam.explain(network, images, targets=2), expected, atol=1e-5)


def test_an_earlier_layer_agrees_with_finite_differences(images):
    # d score / d bias of a channel = sum over its active positions: an independent road to a gradient of "early".
    network = embedding_classifier()
    maps = tf.constant(feature_maps(network, images[:1], "early"))
    rest_in = keras.Input(maps.shape[1:])
    x = rest_in
    for layer in network.layers[network.layers.index(network.get_layer("early")) + 1 :]:
        x = layer(x)
    rest = keras.Model(rest_in, x)
    weights = gradcam.harvest(network, [(images[:1], np.array([1]))], layer="early").channel_weights[0]
    step = 1e-2
    for c in range(4):
        shift = np.zeros(4, np.float32)
        shift[c] = step
        slope = (rest(maps + shift)[0, 1] - rest(maps - shift)[0, 1]) / (2 * step)
        assert weights[c] == pytest.approx(float(slope) / (5 * 5), abs=2e-4)


def test_a_softmax_at_the_end_is_looked_through(images):
    logits, softmax = gap_classifier(), gap_classifier("softmax")
    np.testing.assert_allclose(gradcam.explain(logits, images), gradcam.explain(softmax, images), atol=1e-5)
    inputs, x = trunk()
    for end in (keras.layers.Softmax(), keras.layers.Activation("softmax")):
        stacked = keras.Model(logits.input, end(logits.output))
        np.testing.assert_allclose(gradcam.explain(logits, images), gradcam.explain(stacked, images), atol=1e-5)


def test_one_trace_whatever_the_batch_size_and_the_network_stays_as_it_was(images, rng):
    network = embedding_classifier()
    calls = []
    network.get_layer("late").call = _counting(network.get_layer("late").call, calls)
    before, n_layers = network.get_weights(), len(network.layers)
    calls.clear()
    for n in (1, 7, 3, 40):
        gradcam.explain(network, rng.random((n, 12, 12, 3)).astype(np.float32))
    gradcam.harvest(network, [(images, 0), (images[:2], 1)])
    assert len(calls) == 1  # Python code of a layer runs while tracing only
    assert len(network.layers) == n_layers
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def _counting(call, calls):
    def counted(*args, **kwargs):
        if not keras.backend.is_keras_tensor(args[0]):
            calls.append(args[0].shape)
        return call(*args, **kwargs)

    return counted


def test_batches_give_what_one_batch_gives(images):
    network, labels = embedding_classifier(), np.arange(7) % 3
    whole = gradcam.harvest(network, [(images, labels)])
    parts = gradcam.harvest(network, ((images[i : i + 2], labels[i : i + 2]) for i in range(0, 7, 2)))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_frozen_network_gives_the_same_maps(images):
    network = embedding_classifier()
    expected = gradcam.explain(network, images)
    passes.gradient_function.cache_clear()
    network.trainable = False
    np.testing.assert_array_equal(gradcam.explain(network, images), expected)


def test_targets(images):
    network = embedding_classifier()
    best = network(images).numpy().argmax(axis=1)
    np.testing.assert_array_equal(gradcam.explain(network, images), gradcam.explain(network, images, targets=best))
    one = gradcam.explain(network, images[3], targets=1)
    np.testing.assert_allclose(one[0], gradcam.explain(network, images, targets=1)[3], atol=1e-5)


def test_images_of_another_size_are_resized_and_maps_come_back_in_it(rng):
    maps = gradcam.explain(embedding_classifier(), rng.integers(0, 255, (2, 30, 20, 3)).astype(np.uint8))
    assert maps.shape == (2, 30, 20) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"layer": "missing"}, r"choose one of \['early', 'late'\]. Received: 'missing'"),
        ({"layer": "embedding"}, "No layer of that name gives feature maps"),
        ({"method": "magic"}, "Unknown method; choose one of .*gradcam.* Received: 'magic'"),
        ({"targets": 3}, r"0\.\.2. Received: 3\.\.3"),
        ({"targets": -1}, r"0\.\.2. Received: -1\.\.-1"),
        ({"targets": [0, 1]}, "one for each of the 7 images"),
        ({"targets": 0.5}, "as integers"),
        ({"targets": [[0, 1]]}, r"or \(N, T\), as integers. Received: shape \(1, 2\)"),
        ({"targets": [[0], [1, 2]]}, "the same number of class ids for every image"),
        ({"targets": np.zeros((7, 0), int)}, r"Received: shape \(7, 0\)"),
        ({"targets": lambda scores: tf.reduce_sum(scores)}, r"a tensor of shape \(n,\)"),
        ({"targets": lambda scores: scores}, r"a tensor of shape \(n,\)"),
    ],
)
def test_wrong_arguments(images, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        gradcam.explain(embedding_classifier(), images, **arguments)


def test_nothing_to_explain_and_nothing_to_harvest(images):
    with pytest.raises(ValueError, match="N >= 1"):
        gradcam.explain(embedding_classifier(), images[:0])
    with pytest.raises(ValueError, match="at least one batch"):
        gradcam.harvest(embedding_classifier(), [])


def test_a_network_without_maps():
    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match="no layer that gives feature maps"):
        networks.default_layer(keras.Model(inputs, keras.layers.Dense(2)(inputs)))


def test_a_sequential_model_is_a_network_like_any_other(images):
    functional = gap_classifier()
    copies = [layer.__class__.from_config(layer.get_config()) for layer in functional.layers[1:]]
    sequential = keras.Sequential([keras.Input((12, 12, 3)), *copies])
    sequential.set_weights(functional.get_weights())
    np.testing.assert_allclose(gradcam.explain(sequential, images), gradcam.explain(functional, images), atol=1e-6)
    with pytest.raises(ValueError, match="not built"):
        gradcam.explain(keras.Sequential([keras.layers.Conv2D(2, 3), keras.layers.Flatten()]), images)


def test_one_channel_images_of_the_networks_size(rng):
    inputs = keras.Input((8, 8, 1))
    maps = keras.layers.Conv2D(2, 3, name="maps")(inputs)
    network = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(maps))
    assert gradcam.explain(network, rng.random((2, 8, 8, 1))).shape == (2, 8, 8)


def test_nan_and_batches_of_another_size(images):
    images = images.copy()
    images[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="without NaN"):
        gradcam.explain(embedding_classifier(), images)
    for batch in (images[:, :6], images[:0]):
        with pytest.raises(ValueError, match="The network takes images of shape"):
            gradcam.harvest(embedding_classifier(), [(batch, 0)])


def test_a_network_of_any_image_size_is_harvested(rng):
    inputs = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(inputs))
    network = keras.Model(inputs, keras.layers.Dense(3)(pooled))
    batches = [(rng.random((n, side, side, 3)).astype(np.float32), 0) for n, side in ((2, 8), (3, 11))]
    assert gradcam.harvest(network, batches).channel_weights.shape == (5, 2)


# --- the family, on values written out by hand -------------------------------------------------------------------

MAPS = np.array([[[1, 0], [2, 1]], [[0, 1], [1, 0]]], np.float32)  # (h,w,C): channels [[1,2],[0,1]] and [[0,1],[1,0]]
GRADIENTS = np.array([[[1, -1], [-1, 3]], [[2, 0], [0, 2]]], np.float32)  # [[1,-1],[2,0]] and [[-1,3],[0,2]]
BY_HAND = {
    "gradcam": [[0.5, 2], [1, 0.5]],  # weights 2/4 and 4/4
    "gradcam++": [[11 / 30, 173 / 120], [17 / 24, 11 / 30]],  # 1/6 + 2/10 and 3/8 + 2/6
    "layercam": [[1, 3], [0, 0]],
    "hirescam": [[1, 3 - 2], [0, 0]],
    "xgradcam": [[-0.25, 1], [1.5, -0.25]],  # weights -1/4 and 3/2
    # AᵀA = [[6, 2], [2, 2]]: first vector (cos 22.5°, sin 22.5°)
    "eigencam": [[0.9238795, 2.2304425], [0.3826834, 0.9238795]],
    # Scores behind the masks [[.5, 1], [0, .5]] and [[0, 1], [1, 0]]: -1.5 + 3 and -2 + 3
    "scorecam": [[0.6224593, 1.6224593], [0.3775407, 0.6224593]],
    "iscam": [[0.5683202, 1.5683202], [0.4316798, 0.5683202]],  # the scores, times the mean of 0.1, 0.2, ..., 1
    "ablationcam": [[-0.5, 0.5], [1.5, -0.5]],  # of the score 2 stay 3 and -1
    "elementwise": [[1, 3], [0, 0]],
    "cam": [[2, 8], [4, 2]],  # weights 2 and 4
    "shapleycam": [[0.5, 2], [1, 0.5]],  # no curvature: Grad-CAM
    "smoothgradcam++": [[11 / 30, 173 / 120], [17 / 24, 11 / 30]],  # the same gradients whatever the noise: Grad-CAM++
    # Centred (5, -3), (-7, 9), (1, -3), (1, -3) quarters, times the vector (-5.25, 6.3443901) / 8.2349936
    "eigengradcam": [[-1.3747202, 2.8491106], [-0.7371952, -0.7371952]],
}
IN_TEST_METHODS = {"finercam", "kpcacam", "sscam", "fullgrad"}  # computed in networks/test_methods.py


def linear_network(gradients=GRADIENTS):
    """Its maps are the image; its score, Σ gradients·image, has these gradients whatever the image."""
    inputs = keras.Input(gradients.shape)
    maps = keras.layers.Conv2D(gradients.shape[-1], 1, use_bias=False, name="maps")(inputs)
    network = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(keras.layers.Flatten()(maps)))
    network.set_weights([np.eye(gradients.shape[-1])[None, None], gradients.reshape(-1, 1)])
    return network


def test_methods_are_all_computed_by_hand():
    assert isinstance(gradcam.METHODS, tuple) and set(gradcam.METHODS) == set(BY_HAND) | IN_TEST_METHODS


@pytest.mark.parametrize("method", BY_HAND)
def test_written_out_values(method):
    network, expected = linear_network(), np.array(BY_HAND[method], np.float32)
    raw = gradcam.explain(network, MAPS, method=method, normalise=False)
    np.testing.assert_allclose(raw, expected[None], rtol=1e-5)
    assert raw.dtype == np.float32
    np.testing.assert_allclose(
        gradcam.explain(network, MAPS, method=method), np.maximum(expected, 0)[None] / expected.max(), rtol=1e-5
    )


def test_an_image_and_its_batch_agree_on_wide_and_on_flat_maps(rng):
    # More channels than positions, and fewer: Eigen-CAM takes the smaller Gram matrix.
    for shape in ((2, 3, 9), (5, 4, 3)):
        network = linear_network(rng.normal(size=shape).astype(np.float32))
        images = rng.normal(size=(3, *shape)).astype(np.float32)
        raw = gradcam.explain(network, images, method="eigencam", normalise=False)
        for image, own in zip(images, raw, strict=True):
            u, sigma, _ = np.linalg.svd(image.reshape(-1, shape[-1]), full_matrices=False)
            expected = (sigma[0] * u[:, 0]).reshape(shape[:2])
            np.testing.assert_allclose(own, expected * np.sign(expected.sum()), atol=1e-4)
            assert own.sum() >= 0


def independent(method, maps, gradients):
    """The papers' formulas in NumPy; maps and gradients (h, w, C) float64."""
    if method == "gradcam":
        return maps @ gradients.mean(axis=(0, 1))
    if method == "gradcam++":
        g2, g3 = gradients**2, gradients**3
        denominator = 2 * g2 + maps.sum(axis=(0, 1)) * g3
        alphas = np.divide(g2, denominator, where=denominator != 0, out=np.zeros_like(g2))
        return maps @ (alphas * np.maximum(gradients, 0)).sum(axis=(0, 1))
    if method == "layercam":
        return (np.maximum(gradients, 0) * maps).sum(axis=2)
    if method == "hirescam":
        return (gradients * maps).sum(axis=2)
    total = maps.sum(axis=(0, 1))
    weights = np.divide((maps * gradients).sum(axis=(0, 1)), total, where=total != 0, out=np.zeros_like(total))
    return maps @ weights


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "hirescam", "xgradcam"])
@pytest.mark.parametrize("layer", ["early", "late"])
def test_against_numpy_on_gradients_of_an_eager_tape(method, layer, images):
    network = embedding_classifier()
    front = keras.Model(network.input, network.get_layer(layer).output)
    behind = network.layers[network.layers.index(network.get_layer(layer)) + 1 :]
    maps = front(images)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        x = maps
        for later in behind:
            x = later(x)
        score = x[:, 2]
    gradients = tape.gradient(score, maps).numpy().astype(np.float64)
    expected = [independent(method, *pair) for pair in zip(maps.numpy().astype(np.float64), gradients, strict=True)]
    got = gradcam.explain(network, images, layer=layer, targets=2, method=method, normalise=False)
    np.testing.assert_allclose(got, expected, atol=1e-6, rtol=1e-4)


def test_score_cam_against_one_masked_image_at_a_time(images):
    network = gap_classifier("softmax")
    logits = keras.Model(network.input, keras.layers.Dense(4)(network.layers[-2].output))
    logits.layers[-1].set_weights(network.layers[-1].get_weights())
    maps = feature_maps(network, images[:2])
    black = logits(np.zeros((1, 12, 12, 3)))[0, 3]
    for image, own, got in zip(
        images, maps, gradcam.explain(network, images[:2], targets=3, method="scorecam", normalise=False), strict=False
    ):
        increases = []
        for c in range(own.shape[-1]):
            mask = tf.image.resize(own[..., c, None], (12, 12)).numpy()
            mask = (mask - mask.min()) / np.ptp(mask) if np.ptp(mask) else np.zeros_like(mask)
            increases.append(logits((image * mask)[None])[0, 3] - black)
        np.testing.assert_allclose(got, own @ tf.nn.softmax(increases).numpy(), atol=1e-5)


def test_score_cam_sees_a_bounded_number_of_masked_images_at_a_time(images, monkeypatch):
    network = gap_classifier()
    whole = gradcam.explain(network, images, method="scorecam")
    monkeypatch.setattr(perturbing, "BATCH_SIZE", 4)  # 6 channels: two parts
    np.testing.assert_allclose(gradcam.explain(network, images, method="scorecam"), whole, atol=1e-5)


# --- invariants ----------------------------------------------------------------------------------------------------

EXTREMES = np.stack([np.full((12, 12, 3), 128), np.zeros((12, 12, 3)), np.full((12, 12, 3), 255)]).astype(np.uint8)


@pytest.mark.parametrize("method", gradcam.METHODS)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_flat_black_white_and_noise_images_give_finite_maps(method, policy, rng):
    images = np.concatenate([EXTREMES, rng.integers(0, 256, (1, 12, 12, 3)).astype(np.uint8)])
    keras.config.set_dtype_policy(policy)
    try:
        network = embedding_classifier()
    finally:
        keras.config.set_dtype_policy("float32")
    maps = gradcam.explain(network, images, method=method)
    assert maps.shape == (4, 12, 12) and maps.dtype == np.float32
    assert np.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "hirescam", "xgradcam"])
def test_half_precision_agrees_even_where_gradients_are_below_its_reach(method, images):
    networks_ = {}
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        try:
            networks_[policy] = gap_classifier()
        finally:
            keras.config.set_dtype_policy("float32")
    # Gradients near 1e-7, where float16 keeps one or two digits at most.
    weights = networks_["float32"].get_weights()
    weights[-2] = weights[-2] * 1e-5
    for network in networks_.values():
        network.set_weights(weights)
    full, half = (gradcam.explain(n, images, layer="late", targets=1, method=method) for n in networks_.values())
    assert full.max() == 1
    np.testing.assert_allclose(half, full, atol=0.03)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "hirescam", "xgradcam"])
def test_evidence_against_only_gives_zeros(method):
    maps = gradcam.explain(linear_network(-abs(GRADIENTS)), MAPS, method=method)
    assert not maps.any()


@pytest.mark.parametrize("method", ["gradcam", "layercam", "hirescam", "xgradcam"])
def test_a_score_of_twice_the_size_gives_twice_the_raw_map(method):
    once, twice = (gradcam.explain(linear_network(f * GRADIENTS), MAPS, method=method, normalise=False) for f in (1, 2))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_one_trace_a_method_and_layer(method, rng):
    network = embedding_classifier()
    calls = []
    network.get_layer("early").call = _counting(network.get_layer("early").call, calls)
    for n in (1, 5, 2, 35):
        gradcam.explain(network, rng.random((n, 12, 12, 3)).astype(np.float32), layer="late", method=method)
    assert len(calls) == (2 if method in ("scorecam", "sscam", "iscam", "ablationcam") else 1)


# --- targets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradcam", "scorecam"])
def test_several_targets_an_image(method, images):
    network = gap_classifier()
    ids = np.stack([np.arange(7) % 4, np.full(7, 2), np.arange(7) % 3], axis=1)
    several = gradcam.explain(network, images, targets=ids.tolist(), method=method)
    assert several.shape == (7, 3, 12, 12) and several.dtype == np.float32
    for t in range(3):
        one = gradcam.explain(network, images, targets=ids[:, t], method=method)
        np.testing.assert_allclose(several[:, t], one, atol=1e-5)
    raw = gradcam.explain(network, images, targets=ids, method=method, normalise=False)
    assert raw.shape == (7, 3, 3, 3)
    assert gradcam.explain(network, images[0], targets=[[3, 0]], method=method).shape == (1, 2, 12, 12)


@pytest.mark.parametrize("method", [method for method in gradcam.METHODS if method != "finercam"])
def test_a_function_of_the_scores_as_target(method, images):
    network = gap_classifier("softmax")
    got = gradcam.explain(network, images, targets=lambda scores: scores[:, 2], method=method)
    np.testing.assert_allclose(got, gradcam.explain(network, images, targets=2, method=method), atol=1e-5)


def test_a_contrast_of_two_classes_is_the_difference_of_their_raw_maps(images):
    network = gap_classifier()
    raw = functools.partial(gradcam.explain, network, images, normalise=False)
    got = raw(targets=lambda scores: scores[:, 3] - scores[:, 0])
    np.testing.assert_allclose(got, raw(targets=3) - raw(targets=0), atol=1e-6)


def test_an_embedding_is_explained_by_its_similarity_to_another(images):
    inputs, x = trunk()
    network = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    other = network(images[:1])[0]
    maps = gradcam.explain(network, images, targets=lambda embeddings: tf.linalg.matvec(embeddings, other))
    assert maps.shape == (7, 12, 12) and maps.max() == 1


def test_class_ids_need_a_score_for_each_class():
    inputs = keras.Input((8, 8, 3))
    network = keras.Model(inputs, keras.layers.Conv2D(2, 3, name="masks")(keras.layers.Conv2D(3, 3)(inputs)))
    with pytest.raises(ValueError, match=r"scores \(N, K\); pass a function"):
        gradcam.explain(network, np.ones((1, 8, 8, 3)))
    maps = gradcam.explain(network, np.ones((1, 8, 8, 3)), targets=lambda masks: tf.reduce_sum(masks[..., 1], (1, 2)))
    assert maps.shape == (1, 8, 8)


# --- several layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_several_layers_at_once_are_what_they_are_one_by_one(method, images):
    network = embedding_classifier()
    for chosen, names in ((None, ["early", "late"]), (["late", "early"], ["late", "early"]), (["early"], ["early"])):
        maps = gradcam.explain_layers(network, images, layers=chosen, targets=1, method=method)
        assert list(maps) == names
        for name in names:
            single = gradcam.explain(network, images, layer=name, targets=1, method=method)
            np.testing.assert_allclose(maps[name], single, atol=1e-5)


def test_several_layers_and_targets(images):
    maps = gradcam.explain_layers(gap_classifier(), images, targets=[[0, 1]] * 7)
    assert {name: array.shape for name, array in maps.items()} == {n: (7, 2, 12, 12) for n in ("early", "late")}


def test_several_layers_need_one_pass(images):
    network, calls = embedding_classifier(), []
    network.get_layer("early").call = _counting(network.get_layer("early").call, calls)
    gradcam.explain_layers(network, images)
    gradcam.explain_layers(network, images[:2])
    assert len(calls) == 1


@pytest.mark.parametrize("layers", [[], ["early", "missing"], "early"])
def test_wrong_layers(images, layers):
    with pytest.raises(ValueError, match="Received: "):
        gradcam.explain_layers(embedding_classifier(), images, layers=layers)


# --- nested models -------------------------------------------------------------------------------------------------


def transfer(backbone, *front, sequential=False, activation=None):
    """The transfer-learning model of every tutorial: layers in front, the backbone as one layer, a new head."""
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4, activation=activation, name="head")]
    if sequential:
        return keras.Sequential([keras.Input((12, 12, 3)), *front, backbone, *head])
    x = inputs = keras.Input((12, 12, 3))
    for layer in (*front, backbone, *head):
        x = layer(x)
    return keras.Model(inputs, x)


def backbone(name="backbone"):
    keras.utils.set_random_seed(0)
    return keras.Model(*trunk(), name=name)


def state(network):
    flat = [call.operation for call in networks.trace(network)[1].values()]
    return [(layer.name, getattr(layer, "trainable", None), len(layer._inbound_nodes)) for layer in flat]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_nested_models_are_explained_like_flat_ones(sequential, levels, activation, images):
    inner, prefix = backbone(), "backbone/"
    for level in range(1, levels):
        inner = keras.Sequential([keras.Input((12, 12, 3)), inner], name=f"level{level}")
        prefix = f"level{level}/{prefix}"
    front = [keras.layers.RandomFlip(), keras.layers.Rescaling(2.0, offset=-1.0)]
    network = transfer(inner, *front, sequential=sequential, activation=activation)
    x = inputs = keras.Input((12, 12, 3))
    for layer in (front[1], *backbone().layers[1:], keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)):
        x = layer(x)
    flat = keras.Model(inputs, x)
    flat.set_weights([weight for weight in network.get_weights() if weight.dtype == np.float32])
    assert networks.map_layers(network) == [prefix + "early", prefix + "late"]
    assert networks.default_layer(network) == prefix + "late"
    assert networks.get_layer(network, prefix + "early").name == "early"
    before, weights, as_it_was = network(images, training=False).numpy(), network.get_weights(), state(network)
    for method in ("gradcam", "scorecam"):
        got = gradcam.explain(network, images[:3], layer=prefix + "early", targets=1, method=method)
        expected = gradcam.explain(flat, images[:3], layer="early", targets=1, method=method)
        np.testing.assert_allclose(got, expected, atol=1e-4)
    np.testing.assert_array_equal(network(images, training=False).numpy(), before)
    assert state(network) == as_it_was
    for a, b in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_backbone_used_before_in_another_model(images):
    shared = backbone()
    first, second = transfer(shared), transfer(shared, keras.layers.Rescaling(3.0))
    second.get_layer("head").set_weights(first.get_layer("head").get_weights())
    np.testing.assert_allclose(gradcam.explain(second, images), gradcam.explain(first, 3 * images), atol=1e-5)


def test_each_use_of_a_model_called_twice_has_its_name(images):
    # Image and mirror image through the same backbone: its second use sees the mirror image, and its maps are mirrored
    # back, so that the heat lies where the image has what is hot.
    shared, inputs = backbone(), keras.Input((12, 12, 3))
    mirrored = keras.ops.flip(inputs, axis=2)
    pooled = [keras.layers.GlobalAveragePooling2D()(shared(x)) for x in (inputs, mirrored)]
    network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Add()(pooled)))
    names = networks.map_layers(network)
    assert sorted(names) == ["backbone#2/early", "backbone#2/late", "backbone/early", "backbone/late"]
    maps, flipped = (gradcam.explain_layers(network, x, layers=names, targets=0) for x in (images, images[:, :, ::-1]))
    a, b = "backbone/late", "backbone#2/late"
    np.testing.assert_allclose(maps[a], flipped[b][:, :, ::-1], atol=1e-5)
    np.testing.assert_allclose(maps[b], flipped[a][:, :, ::-1], atol=1e-5)


@pytest.mark.slow
def test_a_nested_application_of_keras(rng):
    inner = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None, name="mobile")
    network = keras.Sequential([
        keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 127.5, offset=-1), inner,
        keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.5), keras.layers.Dense(3, activation="softmax"),
    ])
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    assert networks.default_layer(network) == "mobile/block_13_expand_relu"  # the last that is larger than 1 x 1
    names = [name for name in networks.map_layers(network) if name.endswith("expand_relu")]
    assert len(names) == 16
    maps = gradcam.explain_layers(network, images, layers=names)
    assert all(array.shape == (2, 32, 32) and np.isfinite(array).all() for array in maps.values())
    assert gradcam.guided_gradcam(network, images).shape == (2, 32, 32, 3)


def test_a_model_whose_last_layer_is_a_classifier_with_softmax(images):
    logits, softmax = (transfer(backbone(), activation=a) for a in (None, "softmax"))
    softmax.set_weights(logits.get_weights())
    inputs = keras.Input((12, 12, 3))
    outer = keras.Model(inputs, softmax(inputs))
    raw = [gradcam.explain(n, images, layer=name, targets=2, normalise=False) for n, name in (
        (logits, "backbone/late"), (outer, f"{softmax.name}/backbone/late"))]
    np.testing.assert_allclose(*raw, atol=1e-6)
    assert networks.find_logits(logits) is None
    assert networks.find_logits(outer) == (f"{softmax.name}/head", True)


@pytest.mark.parametrize("end", [keras.ops.softmax, keras.layers.Softmax(), keras.layers.Activation("log_softmax"),
                                 keras.ops.sigmoid, keras.layers.Activation("sigmoid")])
def test_the_logit_is_explained_whatever_squashes_it(end, images):
    logits = gap_classifier()
    network = keras.Model(logits.input, end(1000 * logits.output))  # saturated: its own gradient would be zero
    how = {"layer": "late", "targets": 2, "normalise": False}
    raw, expected = gradcam.explain(network, images, **how), 1000 * gradcam.explain(logits, images, **how)
    np.testing.assert_allclose(raw, expected, rtol=1e-4)


def test_a_subclassed_network_is_refused(images):
    class Code(keras.Model):
        def call(self, x):
            return x

    network = Code()
    network(images)
    with pytest.raises(ValueError, match="Expected a built functional or Sequential network"):
        gradcam.explain(network, images)
