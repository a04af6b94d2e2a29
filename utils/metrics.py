"""How good is a heat map: localisation against a mask, agreement with another map.

Every function takes heat maps float (N, H, W) and returns one value an image, float (N,), so that the caller can
look at the distribution as well as at the mean. An image whose value is not defined (an empty mask) gets NaN.
"""

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score


def heat_in_mask(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of the heat that lies inside the mask, in [0, 1] (energy-based pointing game, arXiv 1910.01279).

    A map of zeros scores 0: it points at nothing.
    """
    total = heatmaps.sum(axis=(1, 2), dtype=np.float64)
    inside = np.where(masks, heatmaps, 0).sum(axis=(1, 2), dtype=np.float64)
    share = np.divide(inside, total, out=np.zeros_like(total), where=total > 0)
    return np.where(masks.any(axis=(1, 2)), share, np.nan)


def pointing_game(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """1 where the hottest pixel lies inside the mask, else 0 (arXiv 1608.00507). A map of zeros scores 0."""
    flat = heatmaps.reshape(len(heatmaps), -1)
    hottest = flat.argmax(axis=1)
    hit = masks.reshape(len(masks), -1)[np.arange(len(flat)), hottest] & (flat.max(axis=1) > 0)
    return np.where(masks.any(axis=(1, 2)), hit.astype(float), np.nan)


def pixel_ap(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Average precision of the heat as a detector of the mask's pixels, in [0, 1]."""
    return np.array([average_precision_score(m.ravel(), h.ravel()) if m.any() else np.nan
                     for h, m in zip(heatmaps, masks, strict=True)])  # fmt: skip


def pearson(heatmaps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Linear correlation of two sets of maps, pixel by pixel, in [-1, 1]. NaN where a map is constant."""
    a, b = (m.reshape(len(m), -1).astype(np.float64) for m in (heatmaps, others))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.full(len(a), np.nan), where=norm > 1e-12)


def spearman(heatmaps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Rank correlation of two sets of maps, pixel by pixel, in [-1, 1]. NaN where a map is constant."""
    return pearson(*(rankdata(m.reshape(len(m), -1), axis=1) for m in (heatmaps, others)))


def centre_gaussian(height: int, width: int) -> np.ndarray:
    """The baseline that knows nothing of the image: a centred Gaussian, σ = side / 4. Float32 (height, width)."""
    y, x = ((np.arange(side) - (side - 1) / 2) / (side / 4) for side in (height, width))
    return np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / 2).astype(np.float32)
