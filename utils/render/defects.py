"""Artificial defects, made from normal images alone, to train a network that finds real ones.

A drawn line, a stain, a patch or a thin scar of another place (CutPaste, arXiv 2104.04015), a piece erased or shifted a
little. The mask marks the pixels that really changed: paper pasted on paper is no defect. Lengths are in shares of the
side S.
"""

import math

import cv2
import numpy as np

KINDS = ("line", "stain", "patch", "scar", "erased", "shifted")
SMALLEST_CHANGE = 12.0  # of any channel, in grey levels: less is hardly visible
SMALLEST_AREA = 1e-3  # of the image
TRIALS = 8  # to make a visible change


def add_defect(
    image: np.ndarray, other: np.ndarray, *, kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A copy of a normal image, uint8 RGB (S, S, 3), with a defect of one of `KINDS`, and the mask, bool (S, S).

    Pasted pieces come from the other image, of that size or the same one. Where no trial changes anything visibly, as
    in an image of one colour, the image stays and the mask is empty.

    Example:
        >>> from utils.render import defects
        >>> rng = np.random.default_rng(0)
        >>> image = rng.integers(0, 255, (64, 64, 3), np.uint8)
        >>> changed, mask = defects.add_defect(image, image, kind="stain", rng=rng)
        >>> bool(mask.any()), bool((changed[mask] != image[mask]).any())
        (True, True)
    """
    for _ in range(TRIALS):
        changed = _DEFECTS[kind](image.astype(np.float32), other.astype(np.float32), rng)
        changed = np.clip(np.round(changed), 0, 255).astype(np.uint8)
        change = cv2.blur(cv2.absdiff(changed, image).max(axis=-1), (3, 3))  # makes areas of single pixels
        mask = change >= SMALLEST_CHANGE
        if mask.mean() >= SMALLEST_AREA:
            return changed, mask
    return image, np.zeros(image.shape[:2], bool)


def _line(image, other, rng):
    """One to three bent strokes of one colour."""
    side = len(image)
    fill, plane = _colour(image, other, rng), np.zeros(image.shape[:2], np.float32)
    width = max(1, round(side * rng.uniform(0.006, 0.04)))
    for _ in range(rng.integers(1, 4)):
        length, angle, bend = rng.uniform(0.03, 0.5), rng.uniform(0, 2 * math.pi), rng.normal(0, 1.0)
        steps = np.linspace(0, 1, 24)
        turns = angle + bend * steps + rng.normal(0, rng.choice([0, 0.3])) * np.cumsum(rng.normal(0, 1, 24))
        points = rng.uniform(0.05, 0.95, 2) + np.cumsum(np.stack([np.cos(turns), np.sin(turns)], 1), 0) * length / 24
        cv2.polylines(plane, [np.round(points * side * 16).astype(np.int32)], False, 1.0, width, cv2.LINE_8, 4)
    return _blend(image, fill, plane, rng, opacity=(0.4, 1))


def _stain(image, other, rng):
    """A blob of a colour that lets the image through."""
    return _blend(image, _colour(image, other, rng), _blob(len(image), rng, (0.02, 0.25)), rng, opacity=(0.2, 1))


def _patch(image, other, rng):
    """A blob of another place."""
    return _paste(image, other, _blob(len(image), rng, (0.04, 0.25)), rng)


def _scar(image, other, rng):
    """A thin strip of another place."""
    side, plane = len(image), np.zeros(image.shape[:2], np.float32)
    size = side * rng.uniform(0.05, 0.35), side * rng.uniform(0.01, 0.05)
    corners = cv2.boxPoints(((side * rng.random(), side * rng.random()), size, rng.uniform(0, 180)))
    cv2.fillConvexPoly(plane, np.round(corners * 16).astype(np.int32), 1.0, cv2.LINE_8, 4)
    return _paste(image, other, plane, rng)


def _erased(image, other, rng):
    """The surroundings close over a blob: the median of a wide window, with the grain of another place."""
    around, grain = _median(image), other - _median(other)
    grain = np.clip(_moved(grain, rng), -SMALLEST_CHANGE, SMALLEST_CHANGE)  # no lines
    return _blend(image, around + grain, _blob(len(image), rng, (0.04, 0.35)), rng, opacity=(1, 1))


def _shifted(image, other, rng):
    """A blob of the image, moved a little."""
    side, angle = len(image), rng.uniform(0, 2 * math.pi)
    way = np.round(side * rng.uniform(0.02, 0.1) * np.array([math.sin(angle), math.cos(angle)])).astype(int)
    return _blend(image, np.roll(image, way, (0, 1)), _blob(side, rng, (0.05, 0.25)), rng, opacity=(1, 1))


_DEFECTS = dict(zip(KINDS, (_line, _stain, _patch, _scar, _erased, _shifted), strict=True))


def _blend(image, fill, plane, rng, *, opacity):
    """The fill where the plane is 1, with a soft border and a random opacity from that range."""
    soft = rng.uniform(0.2, 0.9) * max(1.0, len(image) / 96)
    plane = rng.uniform(*opacity) * cv2.GaussianBlur(plane, (0, 0), soft)
    return image + plane[..., None] * (fill - image)


def _paste(image, other, plane, rng):
    """Paste a piece of another place, its light brought to that of its new place or, as often, not."""
    moved = _moved(np.concatenate([other, _median(other)], axis=-1), rng)
    fill = moved[..., :3]
    if rng.random() < 0.5:
        fill = fill - moved[..., 3:] + _median(image)
    elif rng.random() < 0.5:
        fill = fill * rng.uniform(0.7, 1.3) + rng.normal(0, 10, 3)
    return _blend(image, fill, plane, rng, opacity=(1, 1))


def _moved(image, rng):
    """Shifted round the edges by any distance, mirrored and turned by right angles at random."""
    turned = np.rot90(image, rng.integers(4))[:, :: rng.choice([-1, 1])]
    return np.roll(turned, rng.integers(0, len(image), 2), (0, 1))


def _median(image):
    """Median of a window a quarter of the side wide, on a smaller copy: uint8 steps are fine enough for it."""
    small = cv2.resize(np.clip(image, 0, 255).astype(np.uint8), (32, 32), interpolation=cv2.INTER_AREA)
    median = cv2.GaussianBlur(cv2.medianBlur(small, 9), (0, 0), 1.0)
    return cv2.resize(median, image.shape[1::-1]).astype(np.float32)


def _colour(image, other, rng):
    """A colour of another place, or any: float32 (3,)."""
    if rng.random() < 0.5:
        return other[tuple(rng.integers(0, len(other), 2))]
    return (rng.uniform(0, 255) + rng.normal(0, rng.choice([5, 40]), 3)).astype(np.float32)


def _blob(side, rng, sizes):
    """An ellipse or a rectangle, turned and with an uneven border: float32 (S, S), 1 inside."""
    plane, n = np.zeros((side, side), np.float32), rng.choice([4, 40])
    turns = np.linspace(0, 2 * math.pi, n, endpoint=False)
    radii = side * rng.uniform(*sizes, (2, 1)) / 2 * (1 + rng.uniform(0, 0.4) * rng.uniform(-1, 1, n // 4).repeat(4))
    x, y = radii * (np.cos(turns), np.sin(turns))
    cos, sin = math.cos(angle := rng.uniform(0, math.pi)), math.sin(angle)
    points = np.stack([cos * x - sin * y, sin * x + cos * y], axis=1) + side * rng.random(2)
    cv2.fillPoly(plane, [np.round(points * 16).astype(np.int32)], 1.0, cv2.LINE_8, 4)
    return plane
