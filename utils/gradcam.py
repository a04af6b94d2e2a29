"""Everything that needs a gradient: exact Grad-CAM, and the harvest of its channel weights.

Grad-CAM (arXiv 1610.02391): with feature maps A (h, w, C) of a layer and the score s of a class,

    channel weights  α_c = 1/(h·w) Σ_ij ∂s/∂A_ijc          heat map  ReLU(Σ_c α_c · A_c)

The score is the cosine similarity to the class prototype where the network ends in ArcFace (without its margin), and
the logit where it ends in a softmax classifier.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from utils import heatmap, imaging, networks

METHODS = ("gradcam",)
BATCH_SIZE = 32


class Harvest(NamedTuple):
    """Of N images: channel_weights float32 (N, C), embeddings float32 (N, D), scores float32 (N, K)."""

    channel_weights: np.ndarray
    embeddings: np.ndarray
    scores: np.ndarray


def harvest(
    network: keras.Model, batches: Iterable, layer: str | None = None, progress=lambda n_images: None
) -> Harvest:
    """Channel weights of the class score, image by image, streamed: memory holds one batch and the results.

    Args:
        network: images → scores (N, K). It is used as it is and not changed.
        batches: iterable of (images, labels): images (n, H, W, 3) as the network takes them (any n), labels int (n,)
            whose score is differentiated.
        layer: name of the layer that gives the feature maps; None: `networks.default_layer`.
        progress: called after each batch with its number of images.

    Returns:
        Harvest. Its embeddings are what the network's last layer receives, not normalised.
    """
    step, (n_classes, shape) = _gradient_function(network, layer), _sizes(network)
    parts = []
    for images, labels in batches:
        if not len(images) or not tf.TensorShape((None, *shape)).is_compatible_with(np.shape(images)):
            raise ValueError(
                f"The network takes images of shape {(None, *shape)}, at least one. Received: {np.shape(images)}"
            )
        labels = _check_targets(labels, len(images), n_classes)
        _, *result = step(tf.cast(images, tf.float32), tf.constant(labels))
        parts.append([array.numpy() for array in result])
        progress(len(images))
    if not parts:
        raise ValueError("Expected at least one batch of images. Received: an empty iterable")
    return Harvest(*map(np.concatenate, zip(*parts, strict=True)))


def explain(
    network: keras.Model,
    images: np.ndarray,
    layer: str | None = None,
    targets: int | np.ndarray | None = None,
    method: str = "gradcam",
) -> np.ndarray:
    """Exact Grad-CAM of each image.

    Args:
        network: images → scores (N, K). It is used as it is and not changed.
        images: (N, H, W, 3) or (H, W, 3); another size than the network's is resized.
        layer: name of the layer that gives the feature maps; None: `networks.default_layer`.
        targets: class id of all images, or one id an image, int (N,); None: the class of the highest score.
        method: "gradcam".

    Returns:
        Heat maps float32 (N, H, W) in [0, 1], of the size of the images.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method; choose one of {METHODS}. Received: {method!r}")
    images = np.asarray(images)
    images = images[None] if images.ndim == 3 else images
    images = images if images.dtype == np.uint8 else images.astype(np.float32)
    step, (n_classes, shape) = _gradient_function(network, layer), _sizes(network)
    if images.ndim != 4 or not len(images) or images.shape[-1] != shape[-1] or not np.isfinite(images).all():
        raise ValueError(
            f"Expected images of shape (N, H, W, {shape[-1]}), N >= 1, without NaN. "
            f"Received: {images.dtype} of shape {images.shape}"
        )
    n_images, height, width = images.shape[:3]
    size = tuple(side or given for side, given in zip(shape[:2], (height, width), strict=True))
    resized = images if size == (height, width) else imaging.resize(images, *size)
    best = np.full(n_images, -1, np.int32)
    targets = best if targets is None else _check_targets(targets, n_images, n_classes)
    raw_maps = []
    for i in range(0, n_images, BATCH_SIZE):
        batch = slice(i, i + BATCH_SIZE)
        maps, weights, *_ = step(tf.cast(resized[batch], tf.float32), tf.constant(targets[batch]))
        raw_maps.append(np.einsum("nhwc,nc->nhw", maps, weights))
    return imaging.resize(heatmap.finish(np.concatenate(raw_maps), *size), height, width)


def _sizes(network):
    """Number of classes, and shape of one image."""
    return network.outputs[0].shape[-1], network.inputs[0].shape[1:]


@functools.lru_cache(maxsize=8)
def _gradient_function(network, layer_name):
    """images, targets (-1: the best class) → feature maps, channel weights, embeddings, scores. One trace in all."""
    networks.check_network(network)
    layer = networks.get_layer(network, layer_name or networks.default_layer(network))
    embedding = network.layers[-1].input
    model = keras.Model(network.inputs[0], [layer.output, embedding, networks.score_output(network)])

    @tf.function
    def step(images, targets):
        with tf.GradientTape() as tape:
            tape.watch(images)  # a network whose layers are all frozen would leave the tape empty
            maps, embeddings, scores = model(images, training=False)
            best = tf.argmax(scores, axis=1, output_type=tf.int32)
            score = tf.gather(scores, tf.where(targets < 0, best, targets), axis=1, batch_dims=1)
        gradients = tape.gradient(score, maps, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return maps, tf.reduce_mean(gradients, axis=(1, 2)), embeddings, scores

    images = tf.TensorSpec((None, *network.inputs[0].shape[1:]), tf.float32)
    return step.get_concrete_function(images, tf.TensorSpec((None,), tf.int32))


def _check_targets(targets, n_images, n_classes):
    targets = np.asarray(targets)
    if not np.issubdtype(targets.dtype, np.integer) or targets.shape not in ((), (n_images,)):
        raise ValueError(
            f"Expected one class id, or one for each of the {n_images} images, as integers. "
            f"Received: shape {targets.shape}, dtype {targets.dtype}"
        )
    if targets.size and (targets.min() < 0 or targets.max() >= n_classes):
        raise ValueError(f"Class ids must lie in 0..{n_classes - 1}. Received: {targets.min()}..{targets.max()}")
    return np.broadcast_to(targets, (n_images,)).astype(np.int32)
