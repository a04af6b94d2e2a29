"""Rings drawn free-hand with a marker on paper, and the defects an inspector would look for, each with an exact mask.

A ring is a closed stroke: an ellipse with a slow wobble whose end does not quite meet its beginning. Strokes are drawn
on a finer canvas and averaged down; then come paper, vignette, specks, blur and noise. Coordinates are in image
sides, x to the right and y down, angles in radians. No photo is read.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from utils.render.backgrounds import noise
from utils.render.camera import gauss
from utils.render.many import check, render_many

NORMAL = "normal"
DEFECTS = ("extra stroke", "cross", "dot", "extra arc", "missing piece", "broken line")
SIZE_RANGE = (32, 1024)  # pixels
CANVAS_SIDE = 384  # smaller images are drawn at least this large and averaged down
FRACTION_BITS = 4  # of a pixel, in OpenCV's coordinates
N_POINTS = 240  # of a ring


def render_ring(
    kind: str, rng: np.random.Generator, *, image_size: int = 96, difficulty: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """One ring on paper. ValueError for a bad kind or setting.

    Args:
        kind: `NORMAL` or one of `DEFECTS`.
        image_size: S, side in pixels, 32..1024.
        difficulty: 0..1; from large and black defects on steady rings to small and pale ones on shaky rings.

    Returns:
        The image, uint8 RGB (S, S, 3), and the mask, bool (S, S): pixels that the defect, or the missing line, covers
        at least half before any blur; where none reaches one half, the most covered pixels. All False if normal.
    """
    _check((kind,), image_size, difficulty)
    side = image_size * math.ceil(CANVAS_SIDE / image_size)
    ring, width = _sample_ring(rng, difficulty)
    widths = width * (1 + 0.15 * _smooth(rng, len(ring), 9))
    extra, missing = _sample_defect(kind, rng, ring, width=width, difficulty=difficulty)
    ink, mark = np.zeros((2, side, side), np.uint8)
    for first, last in zip((0, *missing[1::2]), (*missing[::2], N_POINTS - 1), strict=True):
        _draw(ink, ring[first : last + 1], widths[first : last + 1])
    if missing:
        _draw(mark, ring, widths)
        mark -= ink
    for points in extra:
        _draw(mark, points, width * (1 + 0.15 * _smooth(rng, len(points), 3)))
    pale = 1 - 0.5 * difficulty * rng.random() if extra else 0.0
    cover, covered = (cv2.resize(plane, (image_size,) * 2, interpolation=cv2.INTER_AREA) for plane in (ink, mark))
    ink = np.maximum(cover, pale * covered.astype(np.float32)) / 255
    return _photograph(ink, rng), covered >= np.clip(covered.max(), 1, 128)


def render_rings(
    kinds: Sequence[str], image_size: int = 96, *, seed: int = 0, difficulty: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Many rings, one per kind: images, uint8 RGB (N, S, S, 3), and masks, bool (N, S, S).

    Settings and errors as in `render_ring`. Image i depends on them, seed, i and kinds[i] alone.

    Example:
        >>> from utils.render import rings
        >>> images, masks = rings.render_rings(["normal", "cross"], image_size=64, seed=1)
        >>> images.shape, masks.any(axis=(1, 2)).tolist()
        ((2, 64, 64, 3), [False, True])
    """
    kinds = list(kinds)
    _check(kinds, image_size, difficulty)
    return render_many(render_ring, kinds, seed=seed, image_size=image_size, difficulty=difficulty)


def _check(kinds, image_size, difficulty):
    check("kind", kinds, (NORMAL, *DEFECTS), image_size=image_size, sizes=SIZE_RANGE)
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty must lie in [0, 1]. Received: {difficulty!r}")


def _smooth(rng, n, cells):
    """A slow random curve in about ±1: float (n,)."""
    return np.interp(np.linspace(0, cells, n), np.arange(cells + 1), rng.uniform(-1, 1, cells + 1))


def _sample_ring(rng, difficulty):
    """Points of the stroke, float (N_POINTS, 2), and the width of its line."""
    radius = rng.uniform(0.2, 0.42)
    start, overlap = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.2)  # it ends a little behind its beginning
    angles = start + np.linspace(0, 2 * math.pi + overlap, N_POINTS)
    shake = 0.3 + difficulty
    wobble = sum(rng.normal(0, 0.008 * shake) * np.cos(k * angles + rng.uniform(0, 2 * math.pi)) for k in (2, 3, 4, 5))
    r = radius * (1 + wobble + rng.normal(0, 0.012 * shake) * np.linspace(-1, 1, N_POINTS))
    lean, flat = rng.uniform(0, math.pi), rng.uniform(0.85, 1)
    x, y = r * np.cos(angles), flat * r * np.sin(angles)
    points = np.stack([math.cos(lean) * x - math.sin(lean) * y, math.sin(lean) * x + math.cos(lean) * y], axis=1)
    room = max(0.0, 0.46 - np.abs(points).max())
    return points + 0.5 + rng.uniform(-1, 1, 2) * min(room, 0.08), rng.uniform(0.02, 0.03)


def _sample_defect(kind, rng, ring, *, width, difficulty):
    """Extra strokes, each float (n, 2), and where the ring's line ends and begins anew: numbers of its points."""

    def between(easy, hard):
        """A random size between ranges that move from the easy to the hard one."""
        low, high = (a + difficulty * (b - a) for a, b in zip(easy, hard, strict=True))
        return rng.uniform(low, high)

    centre = ring.mean(axis=0)
    arms, radii = ring - centre, np.linalg.norm(ring - centre, axis=1, keepdims=True)
    place = ring[rng.integers(N_POINTS // 8, N_POINTS - N_POINTS // 8)]  # away from where the ends meet
    if kind == "extra stroke":
        x, y = place - centre
        half, angle = between((0.2, 0.3), (0.08, 0.16)), math.atan2(y, x) + rng.uniform(-0.9, 0.9)
        return [_line(place + rng.normal(0, 0.02, 2), half, angle, rng.normal(0, 0.02))], []
    if kind == "cross":
        half, angle = between((0.05, 0.08), (0.03, 0.045)), rng.uniform(0, math.pi)
        return [_line(place, half, angle + turn, 0) for turn in (0, math.pi / 2 + rng.normal(0, 0.15))], []
    if kind == "dot":
        away = between((0.08, 0.13), (0.05, 0.08))
        turn, size = np.linspace(0, 2 * math.pi, 13), between((0.4, 0.7), (0, 0.3)) * width  # a tiny scribble
        middles = ring + away * arms / radii
        middle = rng.choice(middles[(np.abs(middles - 0.5) < 0.45).all(axis=1)])
        return [middle + size * np.stack([np.cos(turn), np.sin(turn)], axis=1)], []
    if kind == "extra arc":
        n = round(N_POINTS * between((0.25, 0.4), (0.12, 0.2)))
        first = rng.integers(0, N_POINTS - n)
        gap = rng.choice([-1, 1]) * between((0.07, 0.1), (0.05, 0.07))
        arc = slice(first, first + n)
        return [centre + arms[arc] * (1 + gap / radii[arc] * np.linspace(1, rng.uniform(0.8, 1.3), n)[:, None])], []
    if kind == "missing piece":
        n = round(N_POINTS * between((0.14, 0.25), (0.05, 0.1)))
        first = int(rng.integers(N_POINTS // 8, N_POINTS - N_POINTS // 8 - n))
        return [], [first, first + n]
    if kind == "broken line":
        # Ends of a line are round: a missing piece shorter than the line's width leaves no gap.
        length = width * between((1.9, 2.4), (1.5, 1.8))
        n = math.ceil(length * N_POINTS / np.linalg.norm(np.diff(ring, axis=0), axis=1).sum())
        firsts = N_POINTS // 6 + np.arange(3) * N_POINTS // 5 + rng.integers(0, N_POINTS // 10, 3)
        return [], [point for first in firsts.tolist() for point in (first, first + n)]
    return [], []


def _line(middle, half, angle, bend):
    """A slightly bent line: float (20, 2)."""
    place = np.linspace(-1, 1, 20)[:, None]
    along, across = (np.array([math.cos(turn), math.sin(turn)]) for turn in (angle, angle + math.pi / 2))
    return middle + half * place * along + bend * (1 - place**2) * across


def _draw(plane, points, widths):
    """Draw a stroke on uint8 (side, side), in place."""
    side = len(plane)
    corners = np.round(points * side * 2**FRACTION_BITS).astype(int).tolist()
    thickness = np.maximum(1, np.round(widths * side)).astype(int).tolist()
    for start, end, line in zip(corners[:-1], corners[1:], thickness[1:], strict=True):
        cv2.line(plane, start, end, 255, line, cv2.LINE_8, FRACTION_BITS)


def _photograph(ink, rng):
    """Paper under the ink, float (S, S) in 0..1, as a camera sees it: uint8 RGB (S, S, 3)."""
    size = len(ink)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    x0, y0 = rng.uniform(-0.3, 0.3, 2)
    light = 1 - rng.uniform(0.05, 0.2) * ((ramp - x0) ** 2 + ((ramp - y0) ** 2)[:, None]) / 2  # a vignette
    light += rng.uniform(0, 0.04) * noise(rng, size, 4, 4)
    paper = rng.uniform(222, 248) + rng.normal(0, 3, 3)
    marker = rng.uniform(18, 48) + rng.normal(0, 4, 3)
    ink = ink * (1 + rng.uniform(0, 0.12) * noise(rng, size, 24, 24))
    specks = np.zeros((size, size), np.float32)
    for _ in range(rng.poisson(3)):  # dust: far smaller and paler than a dot
        specks[tuple(rng.integers(0, size, 2))] = rng.uniform(0.05, 0.25)
    soft = gauss(np.maximum(ink.astype(np.float32), specks), rng.uniform(0.3, 0.6) * size / 96)[..., None]
    picture = (paper + soft * (marker - paper)) * light[..., None]
    picture += rng.normal(0, rng.uniform(0.5, 2.5), picture.shape)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)
