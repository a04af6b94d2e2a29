"""How much a map changes when the image hardly does, and how few pixels hold its heat."""

from collections.abc import Callable

import numpy as np

from utils.metrics.maps import check_heatmaps

RADIUS, N_SAMPLES = 5.1, 4  # of grey levels: 0.02 of their range; noisy copies


def max_sensitivity(
    explain: Callable[[np.ndarray], np.ndarray], images: np.ndarray, *, heatmaps: np.ndarray | None = None,
    radius: float = RADIUS, n_samples: int = N_SAMPLES, seed: int = 0,
) -> np.ndarray:
    """Max-sensitivity (arXiv 1901.09392): max over noisy copies x' of ‖Φ(x') − Φ(x)‖ / ‖Φ(x)‖; low is robust.

    A map that ignores the image scores 0: look at a measure of faithfulness, too.

    Args:
        explain: Φ, images → heat maps (..., N, H, W); so maps of several kinds can come together.
        images: uint8 or float (N, H, W, 3).
        heatmaps: Φ(x), where it is at hand.
        radius: of the cube from which the noise is drawn, in the images' units.

    Returns:
        float (..., N); NaN where the map of the image is zero.

    Example:
        >>> images = np.full((2, 4, 4, 3), 100.0)
        >>> max_sensitivity(lambda x: np.ones(x.shape[:3]), images).tolist()
        [0.0, 0.0]
    """
    if radius <= 0 or n_samples < 1:
        raise ValueError(f"Expected a radius above 0 and at least one sample. Received: {radius} and {n_samples}")
    images, rng = np.asarray(images), np.random.default_rng(seed)
    before = np.asarray(explain(images) if heatmaps is None else heatmaps, np.float64)
    norms, worst = np.linalg.norm(before, axis=(-2, -1)), 0.0
    for _ in range(n_samples):
        noisy = images + rng.uniform(-radius, radius, images.shape)
        if images.dtype == np.uint8:
            noisy = noisy.round().clip(0, 255)
        after = np.asarray(explain(noisy.astype(images.dtype)), np.float64)
        if after.shape != before.shape:
            raise ValueError(f"Expected explain to give maps of shape {before.shape}. Received: {after.shape}")
        worst = np.maximum(worst, np.linalg.norm(after - before, axis=(-2, -1)))
    return np.divide(worst, norms, out=np.full(norms.shape, np.nan), where=norms > 0)


def sparseness(heatmaps: np.ndarray) -> np.ndarray:
    """Gini index of the heat (arXiv 1810.06583), (N,): 0 where it is the same everywhere, 1 - 1/(H·W) in one pixel.

    NaN of a map of zeros.

    Example:
        >>> sparseness(np.array([[[1.0, 1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0, 5.0]]])).tolist()
        [0.0, 0.75]
    """
    heat = np.sort(check_heatmaps(heatmaps).reshape(len(heatmaps), -1).astype(np.float64), axis=1)
    n = heat.shape[1]
    total, weighted = heat.sum(axis=1), heat @ (2 * np.arange(1, n + 1) - n - 1)
    return np.divide(weighted, n * total, out=np.full(len(heat), np.nan), where=total > 0)
