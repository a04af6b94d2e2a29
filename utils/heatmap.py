"""From a raw map to what a person sees: normalised heat map, overlay, segmented image, boxes."""

import re
from dataclasses import dataclass

import cv2
import numpy as np

from utils import imaging

Corners = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, half open
ALIKE = 0.6  # of the first region's heat and peak: what has as much is another object. 0.5 to 0.8 do as well
COLORMAP = cv2.COLORMAP_TURBO  # the one colour map of the project; matplotlib knows it as "turbo"
CONCEPT_COLOURS = (  # Paul Tol's bright ones, which colour-blind people tell apart, and two more
    (238, 102, 119), (34, 136, 51), (68, 119, 170), (204, 187, 68), (102, 204, 238), (170, 51, 119), (238, 119, 51),
    (187, 187, 187),
)


def normalise_and_resize(
    raw_maps: np.ndarray, height: int, width: int, *, window: tuple[float, float, float, float] = imaging.WHOLE
) -> np.ndarray:
    """ReLU, division by each map's own maximum, resize: raw maps (N, h, w) → float32 (N, height, width) in [0, 1].

    A map without positive evidence becomes all zeros, never NaN. Where the maps show a part of the image, its
    ``window`` (see `networks.Window`), all around it is 0.

    Raises:
        ValueError: a raw map holds NaN or infinity, because the network's weights or feature maps do.

    Example:
        >>> normalise_and_resize([[[-1, 2], [1, 4]]], 2, 2).tolist()
        [[[0.0, 0.5], [0.25, 1.0]]]
    """
    raw_maps = np.asarray(raw_maps, np.float32)
    if not np.isfinite(raw_maps).all():
        bad = np.flatnonzero(~np.isfinite(raw_maps).all(axis=(1, 2))).tolist()
        raise ValueError(f"NaN or infinity in the weights or feature maps of the network: no heat map of images {bad}.")
    positive = np.maximum(raw_maps, 0.0)
    if tuple(window) == imaging.WHOLE:
        peak = positive.max(axis=(1, 2), keepdims=True)
        return imaging.resize(positive / np.maximum(peak, 1e-12), height, width)
    rows, columns = imaging.placing(positive.shape[1:], (height, width), window)
    peak = positive[:, rows.any(axis=0)][:, :, columns.any(axis=0)].max(axis=(1, 2), keepdims=True, initial=0)
    return rows @ (positive / np.maximum(peak, 1e-12)) @ columns.T


def grey(heatmap: np.ndarray) -> np.ndarray:
    """The heat map as a grey picture, uint8 (H, W)."""
    return np.round(heatmap * 255).astype(np.uint8)


def overlay(
    image: np.ndarray, heatmap: np.ndarray, opacity: float = 0.5, *, colormap: str = "turbo"
) -> np.ndarray:
    """Lay the coloured heat map (H, W) over the image: uint8 RGB (H, W, 3); colormap: a name that OpenCV knows."""
    code = getattr(cv2, f"COLORMAP_{colormap.upper()}", None)
    if code is None or not 0 <= opacity <= 1:
        raise ValueError(
            f"Expected an opacity in 0..1 and a colour map of OpenCV, such as turbo. Received: {opacity}, {colormap!r}"
        )
    colours = cv2.applyColorMap(grey(heatmap), code)[..., ::-1]
    return cv2.addWeighted(image, 1 - opacity, np.ascontiguousarray(colours), opacity, 0)


def paint(image: np.ndarray, maps: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """Lay several maps float (K, H, W) in [0, 1] over the image, each in a colour of its own: uint8 RGB (H, W, 3).

    A pixel gets the colour of its strongest map, `CONCEPT_COLOURS`, as opaque as that is strong.
    """
    maps = np.asarray(maps, np.float32)
    if maps.ndim != 3 or maps.shape[1:] != image.shape[:2] or not 1 <= len(maps) <= len(CONCEPT_COLOURS):
        size, most = f"(K, {image.shape[0]}, {image.shape[1]})", len(CONCEPT_COLOURS)
        raise ValueError(f"Expected maps {size} of at most {most} concepts. Received: {maps.shape}")
    colours = np.array(CONCEPT_COLOURS, np.float32)[maps.argmax(axis=0)]
    share = opacity * maps.max(axis=0)[..., None]
    return np.round((1 - share) * image + share * colours).astype(np.uint8)


def segment(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) times its heat map (H, W), dark where it is cold: uint8 RGB."""
    return np.round(image * heatmap[..., None]).astype(np.uint8)


@dataclass(frozen=True, eq=False)  # == of arrays has no single answer
class Box:
    """Where a heat map is hot.

    Attributes:
        corners: (x0, y0, x1, y1) in pixels, half open.
        score: share of the map's heat that lies in the region, in (0, 1].
        region: bool (H, W), the connected hot pixels that the box stands for.
    """

    corners: Corners
    score: float
    region: np.ndarray


def hot(heatmap: np.ndarray, threshold: float | str = "otsu") -> np.ndarray:
    """The map in black and white: True where it is hotter than the threshold, bool (H, W); never where it is 0.

    Args:
        heatmap: float (H, W), at least 0.
        threshold: a share of the map's maximum, in [0, 1); or "otsu", which splits the heat where its two parts differ
            most (Otsu 1979), of the heat's power 0.4, because it fades over orders of magnitude; or "p75", the 75th
            percentile: the hottest quarter. Otsu's rule gave the best boxes on rendered hands that no test uses.

    Raises:
        ValueError: no such threshold, or no such map.
    """
    heatmap = np.asarray(heatmap, np.float32)
    if heatmap.ndim != 2 or not heatmap.size or not (heatmap >= 0).all() or not np.isfinite(heatmap).all():
        raise ValueError(f"Expected one finite heat map (H, W), nowhere below 0. Received: shape {heatmap.shape}")
    return heatmap > _level(heatmap, threshold)


def _level(heatmap, threshold):
    """The heat that a threshold stands for."""
    peak = float(heatmap.max())
    if threshold == "otsu":
        powers = grey((heatmap / max(peak, 1e-12)) ** 0.4)
        if powers.min() == powers.max():  # no two parts
            return 0
        level, _ = cv2.threshold(powers, 0, 255, cv2.THRESH_OTSU)
        return peak * ((level + 0.5) / 255) ** 2.5  # grey values are rounded
    if isinstance(threshold, str) and re.fullmatch(r"p\d{1,2}", threshold):
        return np.percentile(heatmap, int(threshold[1:]))
    if not isinstance(threshold, str) and 0 <= threshold < 1:
        return threshold * peak
    raise ValueError(f'A threshold must be a number in [0, 1), "otsu" or "p0" to "p99". Received: {threshold!r}')


def boxes(
    heatmap: np.ndarray, threshold: float | str = "otsu", *, n_boxes: int | str = 1, min_area: float = 0.0
) -> list[Box]:
    """Boxes around the connected hot regions (8 neighbours), the one with the most heat first.

    Args:
        heatmap: float (H, W), at least 0.
        threshold: as in `hot`.
        n_boxes: maximum number of boxes; or "auto", all regions with at least `ALIKE` of the first one's heat and peak.
        min_area: share of the map that a region must cover.

    Returns:
        An empty list where nothing is hot, as in the map of a *none* image.
    """
    is_auto = n_boxes == "auto"
    if not (is_auto or isinstance(n_boxes, int) and n_boxes >= 1) or not 0 <= min_area < 1:
        expected = 'Expected n_boxes >= 1 or "auto", and min_area in [0, 1).'
        raise ValueError(f"{expected} Received: {n_boxes!r} and {min_area!r}")
    n_regions, labels, stats, _ = cv2.connectedComponentsWithStats(hot(heatmap, threshold).astype(np.uint8))
    heat = np.bincount(labels.ravel(), np.ravel(heatmap), n_regions)
    found = []
    for k in 1 + np.argsort(-heat[1:], kind="stable"):  # region 0 is the background
        x, y, width, height, area = stats[k].tolist()
        if area >= min_area * labels.size and (is_auto or len(found) < n_boxes):
            found.append(Box((x, y, x + width, y + height), float(heat[k] / heat.sum()), labels == k))
    return [one for one in found if _is_like(one, found[0], heatmap)] if is_auto else found


def _is_like(box, first, heatmap):
    """Whether a box has about as much heat as the first one, and is about as hot."""
    peak, highest = (np.asarray(heatmap)[own.region].max() for own in (box, first))
    return box.score >= ALIKE * first.score and peak >= ALIKE * highest


def box(heatmap: np.ndarray, threshold: float | str = "otsu") -> Corners | None:
    """Corners of the first of the `boxes`; None where nothing is hot.

    Example:
        >>> heat = np.zeros((4, 6), np.float32)
        >>> heat[1:3, 2:5] = 1
        >>> box(heat)
        (2, 1, 5, 3)
    """
    found = boxes(heatmap, threshold)
    return found[0].corners if found else None


def outline(region: np.ndarray) -> np.ndarray:
    """The border of a connected region along the edges of its pixels, float32 (P, 2), x and y; holes are filled.

    Corners are in pixels, as of a box: that of the whole image goes from (0, 0) to (W, H). Steps of one pixel are
    smoothed.
    """
    height, width = region.shape
    corners = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)  # at even places the corners, at odd ones the pixels
    corners[1::2, 1::2] = region
    closed = cv2.dilate(corners, np.ones((3, 3), np.uint8))
    (border,), _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.approxPolyDP(border, 1.0, closed=True)[:, 0].astype(np.float32) / 2
