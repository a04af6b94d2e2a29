"""LeGrad (arXiv 2404.03214): which patches of a transformer should get more attention for the score to rise.

    E_j = Σ_layers mean over heads and queries i of ReLU(∂s/∂A_ij)

with the attention A (heads, T, T) of a layer, behind its softmax. E is reshaped to the patches; its minimum is
subtracted. The paper differentiates in each layer the score of a classifier that reads that layer. A network has one
classifier, so here it is the network's own score in all of them.
"""

from collections.abc import Callable

import numpy as np

from utils.networks import passes
from utils.networks.tokens import Grid, find_grid, grid_of
from utils.repro import keras, tf


def saliency(
    network: keras.Model, images: np.ndarray, class_ids: np.ndarray, *, layer: str, grid: Grid = None,
    score_function: Callable | None = None,
) -> np.ndarray:
    """E of each image, float32 (N, h, w), at least 0.

    Args:
        images: (N, H, W, C) of the network's size.
        class_ids: int (N,), or score_function: scores (n, K) → (n,) in their place.
        layer: of tokens, whose grid is taken where ``grid`` states none.

    Raises:
        ValueError: the network has no attention among all its tokens, or attends within windows only.
    """
    step = passes.attention_function(network, score_function=score_function)
    slopes = [x.numpy() for x in step(tf.cast(images, tf.float32), tf.cast(class_ids, tf.int32))]
    n_tokens = slopes[-1].shape[-1]
    if any(len(x) != len(images) or x.shape[-1] != n_tokens for x in slopes):
        shapes = [x.shape for x in slopes]
        raise ValueError(f"LeGrad needs attention among the same tokens in all layers. Received: {shapes}")
    rows, columns = grid_of(n_tokens, find_grid(network, layer, grid))
    total = sum(np.maximum(x, 0).reshape(len(images), -1, n_tokens).mean(axis=1) for x in slopes)
    patches = total[:, n_tokens - rows * columns :]
    return (patches - patches.min(axis=1, keepdims=True)).reshape(-1, rows, columns)
