"""LeGrad beside a transformer written out in NumPy, whose attention is nudged number by number."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy.special import erf
from small_networks import small_transformer

from utils import gradcam

SIZE, WIDTH, HEADS, DEPTH = (8, 12), 4, 2, 2  # 2 × 3 patches and a class token
N_TOKENS = 7


@pytest.fixture(scope="module")
def transformer():
    keras.utils.set_random_seed(0)
    network = small_transformer(SIZE, depth=DEPTH, width=WIDTH, heads=HEADS, n_classes=3)
    rng = np.random.default_rng(0)
    network.set_weights([rng.normal(size=weights.shape) for weights in network.get_weights()])
    return network


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(2, *SIZE, 3)).astype(np.float32)


def weights_of(network):
    return {layer.name: [w.astype(np.float64) for w in layer.get_weights()] for layer in network.layers}


def scores(weights, image, nudge):
    """float64 (K,); nudge (depth, heads, T, T) is added to the attention."""
    kernel, bias = weights["patches"]
    cells = image.astype(np.float64).reshape(2, 4, 3, 4, 3).transpose(0, 2, 1, 3, 4).reshape(6, -1)
    token, positions = weights["tokens"]
    x = np.concatenate([token[0], cells @ kernel.reshape(-1, WIDTH) + bias]) + positions[0]

    def norm(x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * weights[name][0] + weights[name][1]

    for n in range(DEPTH):
        y, parts = norm(x, f"block_{n}_norm1"), weights[f"block_{n}_attention"]
        query, key, value = (np.einsum("tc,chd->htd", y, parts[i]) + parts[i + 1][:, None] for i in (0, 2, 4))
        powers = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(WIDTH // HEADS))
        attention = powers / powers.sum(axis=-1, keepdims=True) + nudge[n]
        x = x + np.einsum("htd,hdc->tc", attention @ value, parts[6]) + parts[7]
        y = norm(x, f"block_{n}_norm2") @ weights[f"block_{n}_dense1"][0] + weights[f"block_{n}_dense1"][1]
        y = y * (1 + erf(y / np.sqrt(2))) / 2
        x = x + y @ weights[f"block_{n}_dense2"][0] + weights[f"block_{n}_dense2"][1]
    return norm(x, "norm")[0] @ weights["head"][0] + weights["head"][1]


def by_hand(weights, image, target):
    """(2, 3), before the minimum is subtracted."""
    shape = (DEPTH, HEADS, N_TOKENS, N_TOKENS)
    slopes, step = np.zeros(shape), 1e-5
    for where in np.ndindex(shape):
        nudge = np.zeros(shape)
        nudge[where] = step
        slopes[where] = (scores(weights, image, nudge) - scores(weights, image, -nudge))[target] / (2 * step)
    return np.maximum(slopes, 0).mean(axis=(1, 2)).sum(axis=0)[1:].reshape(2, 3)


def test_numpy_and_keras_are_the_same_network(transformer, images):
    expected = [scores(weights_of(transformer), image, np.zeros((DEPTH, 1, 1, 1))) for image in images]
    np.testing.assert_allclose(transformer(images), expected, rtol=1e-4, atol=1e-4)


def test_legrad(transformer, images):
    raw = gradcam.explain(transformer, images, targets=1, method="legrad", normalise=False)
    for ours, image in zip(raw, images, strict=True):
        expected = by_hand(weights_of(transformer), image, 1)
        np.testing.assert_allclose(ours, expected - expected.min(), atol=1e-4 * expected.max())
    heatmaps = gradcam.explain(transformer, images, targets=1, method="legrad")
    assert heatmaps.shape == (2, *SIZE) and heatmaps.min() >= 0 and 0.5 < heatmaps.max() <= 1
    by_function = gradcam.explain(
        transformer, images, targets=lambda scores: scores[:, 1], method="legrad", normalise=False
    )
    np.testing.assert_allclose(by_function, raw, rtol=1e-4, atol=1e-6)


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """Attention within a layer's own code, as keras-hub has it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(1, 2)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return x + self.attention(x, x)


def test_attention_is_found_within_a_layer_and_a_grid_is_taken(images):
    inputs = keras.Input((*SIZE, 3))
    x = layers.Reshape((32, 9), name="reshape")(inputs)
    x = Block()(x)
    network = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    raw = gradcam.explain(network, images, layer="reshape", targets=0, method="legrad", grid=(4, 8), normalise=False)
    assert raw.shape == (2, 4, 8) and raw.max() > 0


def test_no_attention_is_one_sentence(images):
    inputs = keras.Input((*SIZE, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="maps")(inputs))
    network = keras.Model(inputs, layers.Dense(3, "softmax")(x), name="cnn")
    with pytest.raises(ValueError, match="LeGrad needs a transformer. Received: 'cnn', which has no attention"):
        gradcam.explain(network, images, method="legrad")
