"""The harvest: what the gradients of the class score say of each channel, image by image, before it is averaged."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from utils.networks import passes, replicas
from utils.networks.spatial import default_layer
from utils.repro import keras, tf
from utils.storage import store


class Harvest(NamedTuple):
    """Of N images: channel_weights float32 (N, C), embeddings float32 (N, D), scores float32 (N, K)."""

    channel_weights: np.ndarray
    embeddings: np.ndarray
    scores: np.ndarray


def harvest(
    network: keras.Model, batches: Iterable, *, layer: str | None = None,
    progress: Callable[[dict], None] = lambda entry: None,
) -> Harvest:
    """Channel weights of the class score, image by image, streamed: memory holds one batch and what `store.keep` does.

    Args:
        network: images → scores (N, K); it is not changed.
        batches: of images (n, H, W, 3), any n, as the network takes them, and labels int (n,) to differentiate.
        layer: name of the layer that gives the feature maps; None: `default_layer`.
        progress: called after each batch with {"done": number of images so far, "total": None}.

    Returns:
        Harvest. Its embeddings are what the network's last layer receives, not normalised.
    """
    arrays = store.keep_each(_harvested(network, batches, layer or default_layer(network), progress=progress))
    if not arrays:
        raise ValueError("Expected at least one batch of images. Received: an empty iterable")
    return Harvest(*arrays)


def _harvested(network, batches, layer, *, progress):
    """The three arrays of a `Harvest` for each batch; several machines share the batches."""
    step = passes.gradient_function(network, (layer,), "gradcam", None)
    shape, done = (None, *network.inputs[0].shape[1:]), 0

    def of_batch(batch):
        images, labels = batch
        if not len(images) or not tf.TensorShape(shape).is_compatible_with(np.shape(images)):
            raise ValueError(f"The network takes images of shape {shape}, at least one. Received: {np.shape(images)}")
        labels = check_targets(labels, len(images), network, several=False)
        result = step(tf.cast(images, tf.float32), tf.constant(labels))
        arrays = [result[name].numpy() for name in Harvest._fields]
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("NaN or infinity in the weights or feature maps of the network: nothing to harvest.")
        return arrays

    for arrays in replicas.in_shares(of_batch, batches):
        done += len(arrays[0])
        progress({"done": done, "total": None})
        yield arrays


def check_targets(targets, n_images: int, network: keras.Model, *, several: bool = True) -> np.ndarray:
    """Class ids int32 (N,), or (N, T) where ``several`` of an image are allowed; ValueError if they are none."""
    try:
        targets = np.asarray(targets)
    except ValueError:
        raise ValueError(f"Expected the same number of class ids for every image. Received: {targets!r}") from None
    is_table = several and targets.ndim == 2 and len(targets) == n_images
    fits = targets.shape in ((), (n_images,)) or is_table
    if not np.issubdtype(targets.dtype, np.integer) or not fits or not targets.size:
        table = ", or (N, T)" if several else ""
        raise ValueError(
            f"Expected one class id, or one for each of the {n_images} images{table}, as integers. "
            f"Received: shape {targets.shape}, dtype {targets.dtype}"
        )
    n_classes = network.outputs[0].shape[-1]
    if targets.min() < 0 or targets.max() >= n_classes:
        raise ValueError(f"Class ids must lie in 0..{n_classes - 1}. Received: {targets.min()}..{targets.max()}")
    return (targets if targets.ndim else np.full(n_images, targets)).astype(np.int32)
