"""Deep feature factorisation (arXiv 1806.10206): the concepts that feature maps are made of, and what each speaks for.

    A (N·h·w, C) ≈ W (N·h·w, K) · H (K, C),  all three at least 0

The rows of H are concepts, W says how much of each is in a cell. The factors of several images share their concepts, so
the same part gets the same colour in all of them.
"""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from utils import imaging, networks
from utils.networks.tokens import as_map, find_grid
from utils.repro import keras, tf

BATCH_SIZE, MAX_STEPS = 32, 500


class Concepts(NamedTuple):
    """Of N images and K concepts, the largest first.

    Attributes:
        heatmaps: float32 (N, K, H, W) in [0, 1], 1 where a concept is strongest in all images.
        vectors: float32 (K, C), each of length 1.
        evidence: float32 (K, n_classes): how much the score of each class grows when a concept, as strong as it gets,
            fills the maps, over the scores of empty maps.
        explained: share of the feature maps' squares that the concepts hold, in [0, 1].
    """

    heatmaps: np.ndarray
    vectors: np.ndarray
    evidence: np.ndarray
    explained: float

    def names(self, class_names, n_best: int = 1) -> list[str]:
        """Of each concept the classes it speaks for most, such as "cat, dog"."""
        best = np.argsort(-self.evidence, axis=1, kind="stable")[:, :n_best]
        return [", ".join(class_names[k] for k in row) for row in best]


def factorise(
    network: keras.Model, images: np.ndarray, *, layer: str | None = None, n_concepts: int = 3, seed: int = 0
) -> Concepts:
    """The concepts in the maps of a layer. What is negative in them counts as 0.

    Args:
        network: images → scores (N, n_classes).
        images: (N, H, W, 3); resized to the network's size.
        layer: None: `networks.default_layer`.

    Raises:
        ValueError: more concepts than channels or cells, or maps that are all zero.

    Example:
        >>> network = networks.embedding_network(networks.Spec("small_resnet", image_size=32, embedding_size=4))
        >>> concepts = factorise(network, np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)), n_concepts=2)
        >>> concepts.heatmaps.shape, concepts.evidence.shape
        ((2, 2, 32, 32), (2, 4))
    """
    networks.check_network(network)
    layer = layer or networks.default_layer(network)
    networks.check_layers(network, [layer])
    images, size = np.asarray(images, np.float32), network.inputs[0].shape[1:3]
    given = images.shape[1:3]
    resized = imaging.resize(images, *(side or own for side, own in zip(size, given, strict=True)))
    maps = np.maximum(_maps(network, resized, layer), 0)
    matrix = maps.reshape(-1, maps.shape[-1])
    if not 1 <= n_concepts <= min(matrix.shape):
        raise ValueError(f"Expected 1 to {min(matrix.shape)} concepts. Received: {n_concepts}")
    if not matrix.any():
        raise ValueError(f"Expected maps that are not all zero. Received: those of {layer!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after so many steps it is close enough
        model = NMF(n_concepts, init="nndsvd", max_iter=MAX_STEPS, random_state=seed)
        amounts = model.fit_transform(matrix)
    lengths = np.linalg.norm(model.components_, axis=1)
    order = np.argsort(-(amounts**2).sum(axis=0) * lengths**2, kind="stable")
    vectors = (model.components_ / np.maximum(lengths, 1e-12)[:, None])[order]
    amounts = (amounts * lengths)[:, order]
    peaks = np.maximum(amounts.max(axis=0), 1e-12)
    cells = (amounts / peaks).reshape(*maps.shape[:3], -1).transpose(0, 3, 1, 2).astype(np.float32)
    flat = imaging.resize(cells.reshape(-1, *maps.shape[1:3]), *given)
    error = ((matrix - amounts @ vectors) ** 2).sum() / (matrix**2).sum()
    evidence = _evidence(network, resized[:1], layer, peaks[:, None] * vectors)
    return Concepts(flat.reshape(len(images), -1, *given), vectors.astype(np.float32), evidence, float(1 - error))


def _maps(network, images, layer):
    """Maps of the layer, float32 (N, h, w, C)."""
    grid, parts = find_grid(network, layer), []
    for start in range(0, len(images), BATCH_SIZE):
        _, calls = networks.run_layer_by_layer(network, tf.constant(images[start : start + BATCH_SIZE]))
        parts.append(tf.cast(as_map(calls[layer].output, grid), tf.float32).numpy())
    return np.concatenate(parts)


def _evidence(network, image, layer, vectors):
    """Scores of maps filled with each vector (K, C), less those of maps of zeros: float32 (K, n_classes)."""
    fillings = np.concatenate([np.zeros((1, vectors.shape[1])), vectors])

    def call(name, operation, *args, **kwargs):
        output = networks.call_layer(name, operation, *args, **kwargs)
        if name != layer:
            return output
        filling = tf.cast(fillings, output.dtype)[:, None]
        return tf.zeros_like(output) + (filling if output.shape.rank == 3 else filling[:, None])

    black = np.zeros((len(fillings), *image.shape[1:]), np.float32)
    output, calls = networks.run_layer_by_layer(network, tf.constant(black), call=call)
    scores = tf.cast(networks.scores(network, output, calls), tf.float32).numpy()
    return scores[1:] - scores[:1]
