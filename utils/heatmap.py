"""From a raw map to what a person sees: normalised heat map, overlay, segmented image, box."""

import cv2
import numpy as np

from utils import imaging

COLORMAP = cv2.COLORMAP_TURBO  # the one colour map of the project; matplotlib knows it as "turbo"


def finish(raw_maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """ReLU, division by each map's own maximum, resize: raw maps (N, h, w) → float32 (N, height, width) in [0, 1].

    A map without positive evidence becomes all zeros, never NaN.
    """
    positive = np.maximum(np.asarray(raw_maps, np.float32), 0.0)
    peak = positive.max(axis=(1, 2), keepdims=True)
    return imaging.resize(positive / np.maximum(peak, 1e-12), height, width)


def grey(heatmap: np.ndarray) -> np.ndarray:
    """The heat map as a grey picture, uint8 (H, W)."""
    return np.round(heatmap * 255).astype(np.uint8)


def overlay(image: np.ndarray, heatmap: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Lay the coloured heat map (H, W) over the image: uint8 RGB (H, W, 3)."""
    colours = cv2.applyColorMap(grey(heatmap), COLORMAP)[..., ::-1]
    return cv2.addWeighted(image, 1 - opacity, np.ascontiguousarray(colours), opacity, 0)


def segment(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) times its heat map (H, W), dark where it is cold: uint8 RGB."""
    return np.round(image * heatmap[..., None]).astype(np.uint8)


def box(heatmap: np.ndarray, threshold: float = 0.5) -> tuple[int, int, int, int] | None:
    """Box ``(x0, y0, x1, y1)`` in pixels, half open, round the largest connected region hotter than the threshold.

    Args:
        heatmap: float (H, W) in [0, 1].
        threshold: heat, in [0, 1).

    Returns:
        None where nothing is hotter than the threshold, as in the map of a *none* image.
    """
    hot = (heatmap > threshold).astype(np.uint8)
    n_regions, _, stats, _ = cv2.connectedComponentsWithStats(hot, connectivity=8)
    if n_regions == 1:  # region 0 is the background
        return None
    x, y, width, height, _ = stats[1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])]
    return int(x), int(y), int(x + width), int(y + height)
