"""Exact Grad-CAM and harvesting against closed forms, hand-computed values and an independent computation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from utils import gradcam, heatmap, networks
from utils.arcface import ArcFace


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
        keras.layers.GlobalAveragePooling2D()(x)))  # fmt: skip


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
    np.testing.assert_allclose(got, heatmap.finish(raw, 12, 12), atol=1e-4)


def test_classic_cam_on_a_pooling_classifier(images):
    # CAM (arXiv 1512.04150): the class's weights behind global average pooling combine the maps.
    network = gap_classifier()
    raw = feature_maps(network, images) @ network.get_layer("head").kernel.numpy()[:, 2]
    np.testing.assert_allclose(gradcam.explain(network, images, targets=2), heatmap.finish(raw, 12, 12), atol=1e-5)


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
    gradcam._gradient_function.cache_clear()
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


def test_maps_inside_a_nested_model_are_asked_for_in_vain(images):
    inner, inputs = gap_classifier(), keras.Input((12, 12, 3))
    outer = keras.Model(inputs, inner(keras.layers.Rescaling(2.0)(inputs)))
    with pytest.raises(ValueError, match="no layer that gives feature maps"):
        gradcam.explain(outer, images)


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
