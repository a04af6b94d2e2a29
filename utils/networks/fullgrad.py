"""FullGrad (arXiv 1905.00780): what the image and each layer's bias add to the score, position by position.

    s(x) = Σ x ∘ ∂s/∂x + Σ_layers Σ b ∘ ∂s/∂y

holds exactly, whatever the layers compute, with b = y − J·x of a layer y = L(x): see `passes.full_gradient_function`.
"""

from collections.abc import Callable

import numpy as np

from utils import imaging, networks
from utils.networks import passes
from utils.repro import keras, tf


def shares(
    network: keras.Model, images: np.ndarray, class_ids: np.ndarray, *, score_function: Callable | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Score float32 (N,); the image's share of it, float32 (N, H, W, C); the share of each layer's bias, (N, ...).

    The sum over all shares of an image is its score.

    Args:
        images: (N, H, W, C) of the network's size.
        class_ids: int (N,), or score_function: scores (n, K) → (n,) in their place.

    Example:
        >>> network = networks.embedding_network(networks.Spec("small_resnet", image_size=32, embedding_size=4))
        >>> score, image, biases = shares(network, np.full((1, 32, 32, 3), 99.0), np.zeros(1, int))
        >>> bool(abs(image.sum() + sum(share.sum() for share in biases.values()) - score[0]) < 1e-3 * abs(score[0]))
        True
    """
    step = passes.full_gradient_function(network, score_function=score_function)
    result = step(tf.cast(images, tf.float32), tf.cast(class_ids, tf.int32))
    return result["score"].numpy(), result["image"].numpy(), {n: x.numpy() for n, x in result["biases"].items()}


def saliency(
    network: keras.Model, images: np.ndarray, class_ids: np.ndarray, *, score_function: Callable | None = None
) -> np.ndarray:
    """ψ(x ∘ ∂s/∂x) + Σ over layers and channels of ψ(b ∘ ∂s/∂y), float32 (N, H, W), at least 0.

    ψ takes the absolute value, scales it to [0, 1] by its minimum and maximum and resizes it to the image. Biases of
    layers that only prepare the image and of those without maps take no part, as in the paper.
    """
    _, image, biases = shares(network, images, class_ids, score_function=score_function)
    total, size = _drawn(image, image.shape[1:3]), image.shape[1:3]
    for name in networks.map_layers(network):
        if name in biases and biases[name].any():
            total += _drawn(biases[name], size)
    return total


def _drawn(share, size):
    """Σ over channels of ψ: (N, h, w, C) → (N, H, W)."""
    share = np.abs(share)
    low, high = (reduce(axis=(1, 2), keepdims=True) for reduce in (share.min, share.max))
    scaled = np.divide(share - low, high - low, out=np.zeros_like(share), where=high > low)
    return imaging.resize(scaled.sum(axis=3), *size)  # resizing is linear
