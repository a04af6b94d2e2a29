"""What tells hot cells from cold ones: a linear discriminant per layer, learnt from one's own photos without a mask.

On the photos that a model is fitted to, the heat of the class says roughly where the object is. That makes each cell
hot to a degree q of 0 to 1; at the rim, which objects seldom fill, q is set to 0. From the cells a of a layer Fisher's
discriminant (1936, doi 10.1111/j.1469-1809.1936.tb02137.x) learns what the hot ones have in common on all photos,

    z = w·a + b     w ∝ S⁻¹·(μ_hot − μ_cold)     S = covariance within hot and cold, a tenth of it replaced by mean·I

with z = 0 half way between the two means and variance 1. The layers' z add up, the coarse ones resized to the finest
grid, and F = log(1 + exp Σ z) is the weight of a place: about Σ z where that is positive, about 0 where it is not.

The contrast does the same channel by channel: it weighs those of a heat map by how much more they respond to objects.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from utils import imaging
from utils.networks.graph import in_batches
from utils.networks.spatial import get_layer
from utils.repro import keras
from utils.storage import store

SHRINKAGE = 0.1  # of the covariance to a multiple of the identity: a few hundred channels, some thousand cells


@dataclass(frozen=True, eq=False)
class Discriminant:
    """Called with feature maps it gives F.

    Attributes:
        weights: of each layer float32 (C,).
        bias: float, the sum of all layers' b.
    """

    weights: tuple[np.ndarray, ...]
    bias: float

    @classmethod
    def fit(cls, batches: Iterable[tuple[Sequence[np.ndarray], np.ndarray]]) -> "Discriminant":
        """Learn from photos, a batch at a time.

        Args:
            batches: pairs of the layers' feature maps, float32 (N, h, w, C) each, and of heat float32 (N, h', w') ≥ 0.
        """
        moments = []
        for layers, heat in batches:
            moments = moments or [_Moments(maps.shape[-1]) for maps in layers]
            hot = heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12)
            hot[:, rim(*hot.shape[1:])] = 0
            for moment, maps in zip(moments, layers, strict=True):
                moment.add(maps, imaging.resize(hot, *maps.shape[1:3]))
        weights, biases = zip(*(moment.discriminant() for moment in moments), strict=True)
        return cls(weights, float(sum(biases)))

    def __call__(self, layers: Sequence[np.ndarray]) -> np.ndarray:
        """F of every cell, float32 (N, h, w) on the finest grid, > 0; layers: feature maps float32 (N, h, w, C)."""
        grid = max(maps.shape[1:3] for maps in layers)
        parts = [imaging.resize(maps @ weights, *grid) for maps, weights in zip(layers, self.weights, strict=True)]
        return np.logaddexp(0, sum(parts) + np.float32(self.bias)).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """As named arrays, of which `of` makes it again."""
        return {f"object_weights_{i}": weights for i, weights in enumerate(self.weights)} | {
            "object_bias": np.float32(self.bias)
        }

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> "Discriminant | None":
        """The one in these `arrays`; None where there is none."""
        n_layers = sum(name.startswith("object_weights_") for name in arrays)
        weights = tuple(arrays[f"object_weights_{i}"] for i in range(n_layers))
        return cls(weights, float(arrays["object_bias"])) if weights else None


def rim(height: int, width: int) -> np.ndarray:
    """The outermost eighth of a grid, at least one cell: bool (height, width)."""
    return _outside(height, width, share=1 / 8)


def contrasts(
    network: keras.Model, layers: Sequence[str], images: np.ndarray, backgrounds: np.ndarray | None
) -> dict[str, np.ndarray]:
    """How much more each channel responds to objects than to their surroundings, relative to both variances.

    max((mean of objects − mean of backgrounds) / (both variances), 0): of the channels' means over each image; without
    backgrounds of the cells inside the images, a quarter of the side from the edge, against those at the `rim`.

    Args:
        network: its layers' feature maps are looked at.
        images, backgrounds: uint8 (N, H, W, 3), images of the network's size.

    Returns:
        {layer: float32 (C,)}.
    """
    maps = {name: get_layer(network, name).output for name in layers}
    if backgrounds is None:
        return {name: _to_the_rim(keras.Model(network.inputs[0], output), images) for name, output in maps.items()}
    backgrounds = imaging.resize(imaging.check_images(backgrounds), *images.shape[1:3])
    pooled = [keras.layers.GlobalAveragePooling2D()(output) for output in maps.values()]
    pooling = keras.Model(network.inputs[0], keras.ops.concatenate(pooled, axis=-1))
    means = [store.keep(in_batches(pooling, shown)) for shown in (images, backgrounds)]
    contrast = _contrast(means[0].mean(axis=0) - means[1].mean(axis=0), means[0].var(axis=0) + means[1].var(axis=0))
    return dict(zip(layers, np.split(contrast, [pooled[0].shape[-1]]), strict=False))


def weigh(mean_weights, contrast, weighting, top_channels):
    """Channel weights (M, C) of one of `WEIGHTINGS`, the largest of each row only if top_channels is given."""
    if weighting == "contrast" and contrast is None:
        raise ValueError("weighting='contrast' needs a model that was fitted with backgrounds.")
    if weighting == "contrast":
        weights = np.maximum(mean_weights + mean_weights.mean(axis=0), 0) / 2 * contrast
    else:
        weights = mean_weights if weighting == "all" else np.maximum(mean_weights, 0)
    return weights if top_channels is None else keep_largest(weights, top_channels)


def keep_largest(channel_weights, n_channels):
    """Zero all but the n largest (signed) weights of each row."""
    n_channels = min(n_channels, channel_weights.shape[1])
    kept = np.argpartition(-channel_weights, n_channels - 1, axis=1)[:, :n_channels]
    result = np.zeros_like(channel_weights)
    np.put_along_axis(result, kept, np.take_along_axis(channel_weights, kept, axis=1), axis=1)
    return result


def _to_the_rim(network, images):
    """The contrast of one layer's cells inside the images to those at the rim; network: images → maps of the layer."""
    grid = network.output_shape[1:3]
    if min(grid) < 3:
        raise ValueError(f"Contrast to the rim of the images needs maps of at least 3 x 3 cells. Received: {grid}")
    maps, moments = network.outputs[0], []
    for place in (~_outside(*grid, share=1 / 4), rim(*grid)):
        share = (place / place.sum()).astype(np.float32)
        moments += [keras.ops.einsum("nhwc,hw->nc", maps**power, share) for power in (1, 2)]
    inside, inside_squares, at_rim, rim_squares = (
        moment.mean(axis=0, dtype=np.float64)
        for moment in store.keep_each(in_batches(keras.Model(network.inputs[0], moments), images))
    )
    return _contrast(inside - at_rim, inside_squares - inside**2 + rim_squares - at_rim**2)


def _contrast(difference, spread):
    return np.maximum(difference / np.maximum(spread, 1e-6), 0).astype(np.float32)


def _outside(height, width, *, share):
    """The cells in the outermost share of a grid, at least one: bool (height, width)."""
    place = np.ones((height, width), bool)
    y, x = (max(1, int(side * share)) for side in (height, width))
    place[y : height - y, x : width - x] = False
    return place


class _Moments:
    """Weighted sums over the cells of a layer, of which its discriminant is made."""

    def __init__(self, n_channels):
        self.count = np.zeros(2)  # hot, cold
        self.sums = np.zeros((2, n_channels))
        self.products = np.zeros((n_channels, n_channels))

    def add(self, maps, hot):
        cells, hot = maps.reshape(-1, maps.shape[-1]), hot.ravel()
        shares = np.stack([hot, 1 - hot])  # (2, n)
        self.count += shares.sum(axis=1)
        self.sums += shares @ cells
        self.products += cells.T @ cells

    def discriminant(self):
        """w float32 (C,) and b."""
        means = self.sums / np.maximum(self.count, 1e-12)[:, None]
        within = (self.products - self.sums.T @ means) / self.count.sum()
        ridge = SHRINKAGE * np.trace(within) / len(within) + 1e-12
        weights = np.linalg.solve((1 - SHRINKAGE) * within + ridge * np.eye(len(within)), means[0] - means[1])
        share = self.count / self.count.sum()
        between = share.prod() * (weights @ (means[0] - means[1])) ** 2
        weights /= np.sqrt(weights @ within @ weights + between + 1e-12)
        return weights.astype(np.float32), -weights @ means.sum(axis=0) / 2
