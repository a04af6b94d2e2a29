"""What may lie behind a hand: plain walls, wood, cloth, clutter, rooms. All painted from random numbers.

Pictures are float32 RGB (S, S, 3) of about 0..255, not yet clipped: the camera does that. Most painters work on planes
(S, S) and merge them at the end, because NumPy is slow when the last axis has only three entries.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from utils.render.camera import gauss

BLURRED_SIDE = 112  # pixels: a picture out of focus needs no more
BAR_WIDTH = (0.05, 0.14)  # of the side, as fingers are


def colour(rng: np.random.Generator) -> np.ndarray:
    """A random, rather muted RGB colour: float32 (3,)."""
    return (rng.uniform(25, 235) + rng.normal(0, rng.uniform(2, 24), 3)).astype(np.float32)


def noise(rng: np.random.Generator, size: int, rows: int, columns: int, *, channels: int = 1) -> np.ndarray:
    """Smooth noise in about ±0.5, a random value per cell of rows × columns: float32 (S, S) or (S, S, channels)."""
    cells = rng.random((rows, columns, channels), np.float32) - np.float32(0.5)
    return cv2.resize(cells, (size, size), interpolation=cv2.INTER_CUBIC)


def _ramps(size, angle):
    """Coordinates along and across a direction, about -1..1: two float32 (S, S)."""
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    cos, sin = math.cos(angle) * ramp, math.sin(angle) * ramp
    return cos + sin[:, None], cos[:, None] - sin


# The painters: (rng, size) → picture.
def _wall(rng, size):
    tone, (along, _) = colour(rng).tolist(), _ramps(size, rng.uniform(0, 2 * math.pi))
    light = 1 + rng.uniform(0, 0.4) * along
    stains = rng.uniform(0, 25) * noise(rng, size, 5, 5)
    return cv2.merge([level * light + stains for level in tone])


def _texture(rng, size):
    cells = int(rng.integers(6, size // 2))
    coloured = rng.uniform(0, 50) * noise(rng, size, cells, cells, channels=3) + _wall(rng, size)
    coloured += cv2.merge([rng.uniform(10, 110) * noise(rng, size, cells, cells)] * 3)
    return coloured


def _wood(rng, size):
    rows = np.arange(size, dtype=np.float32)[:, None]
    grain = 30 * noise(rng, size, size // 2, 3) + 36 * noise(rng, size, size // 8, 4)
    grain += 7 * np.sin((rows + size / 5 * noise(rng, size, 3, 3)) * (rng.uniform(20, 70) / size))
    board = ((rows[:, 0] + rng.uniform(0, size)) // (size * rng.uniform(0.18, 0.7))).astype(int)
    grain += rng.normal(0, 9, board[-1] + 1).astype(np.float32)[board][:, None]
    grain[1:][np.diff(board) > 0] -= 35  # the gap between two boards
    tone = np.array([200, 165, 122]) * rng.uniform(0.35, 1.15) + rng.normal(0, 6, 3)
    grain *= rng.uniform(0.4, 1.1)
    if rng.random() > 0.6:
        grain = grain.T
    return cv2.merge([level + share * grain for level, share in zip(tone.tolist(), (1, 0.95, 0.85), strict=True)])


def _cloth(rng, size):
    (along, across), count = _ramps(size, rng.uniform(0, math.pi)), rng.uniform(4, 28)
    folds = noise(rng, size, 3, 6)
    stripes = np.sin((across + 0.25 * folds) * count)
    if rng.random() < 0.5:  # checks
        stripes = 0.5 * (np.sign(stripes) + np.sign(np.sin((along + 0.25 * folds) * count)))
    tone, contrast = colour(rng).tolist(), rng.normal(0, 25, 3).tolist()
    folds *= 50
    return cv2.merge([level + change * stripes + folds for level, change in zip(tone, contrast, strict=True)])


def _scatter(rng, picture, count, choose):
    """Draw boxes, ellipses, rods and polygons into a picture, each in the colour that choose(rng) gives."""
    size = len(picture)
    for _ in range(count):
        fill = choose(rng).tolist()
        x, y = rng.integers(0, size, 2).tolist()
        a, b = (1 + size * rng.uniform(0.04, 0.35, 2)).astype(int).tolist()
        kind = rng.integers(4)
        if kind == 0:
            cv2.rectangle(picture, (x - a, y - b), (x + a, y + b), fill, -1)
        elif kind == 1:
            cv2.ellipse(picture, (x, y), (a, b), rng.uniform(0, 180), 0, 360, fill, -1)
        elif kind == 2:
            cv2.line(picture, (x, y), (x + 2 * a - b, y + a - 2 * b), fill, max(2, min(a, b) // 2))
        else:
            corners = np.int32([x, y]) + rng.integers(-a - b, a + b + 1, (4, 2), np.int32)
            cv2.fillConvexPoly(picture, cv2.convexHull(corners), fill)


def _clutter(rng, size):
    picture = _wall(rng, size)
    _scatter(rng, picture, int(rng.integers(4, 14)), colour)
    return picture


def _room(rng, size):
    """A wall with windows, doors or books, at times a curtain."""
    picture = _wall(rng, size)
    for _ in range(int(rng.integers(1, 5))):
        x, y, w, h = (size * rng.uniform((-0.1, -0.1, 0.08, 0.2), (0.8, 0.7, 0.5, 0.9))).astype(int).tolist()
        cv2.rectangle(picture, (x, y), (x + w, y + h), colour(rng).tolist(), -1)
        cv2.rectangle(picture, (x, y), (x + w, y + h), colour(rng).tolist(), max(1, size // 50))
    if rng.random() < 0.4:
        left, right = sorted(rng.integers(0, size, 2).tolist())
        folds = np.sin(np.arange(right - left) * (rng.uniform(0.2, 0.8) * 96 / size))
        picture[:, left:right] = colour(rng) + 22 * folds[:, None]
    return picture


PAINTERS = (_wood, _wood, _wall, _wall, _texture, _cloth, _clutter, _clutter, _room, _room, _room)  # plain to busy


def _person(rng, picture, skin):
    """Draw a person into a picture: shoulders, neck, hair, face, eyes, nose, mouth; skin(rng) gives the tone."""
    size, tone = len(picture), skin(rng)
    x, y = rng.uniform((0.1, 0.1), (0.9, 0.7)) * size
    width = size * rng.uniform(0.1, 0.3)  # of the face
    height, lean = width * rng.uniform(1.2, 1.5), rng.uniform(-12, 12)

    def draw(dx, dy, axes, fill):
        """An ellipse beside the middle of the face; all in widths and heights of the face."""
        middle = round(x + dx * width), round(y + dy * height)
        axes = max(1, round(axes[0] * width)), max(1, round(axes[1] * height))
        cv2.ellipse(picture, middle, axes, lean, 0, 360, fill.tolist(), -1, cv2.LINE_AA)

    hair, clothes = colour(rng) * 0.5, colour(rng)
    draw(0, 2.6, (1.6, 1.8), clothes)
    draw(0, 0.7, (0.32, 0.5), 0.8 * tone)
    draw(0, -0.1, (0.58, 0.58), hair)
    draw(0, 0.08, (0.45, 0.5), tone)
    for dx in (-0.18, 0.18):
        draw(dx, 0, (0.07, 0.03), 0.3 * tone)
    draw(0, 0.15, (0.05, 0.1), 0.85 * tone)
    draw(0, 0.33, (0.14, 0.03), tone * (0.8, 0.5, 0.5))


def paint(rng: np.random.Generator, size: int, *, variety: float = 1.0, decoy: Callable = colour) -> np.ndarray:
    """A random background of that side in pixels, before the camera: float32 RGB (size, size, 3), about 0..255.

    Args:
        variety: in (0, 1]; towards 0 only the plain painters are left.
        decoy: rng → RGB (3,), the colour of things that lie around now and then, such as a colour of skin.
    """
    blur = rng.uniform(0.4, 2.5) if rng.random() < 0.6 else 0.0  # out of focus, in 96ths of the picture
    side = min(size, BLURRED_SIDE) if blur else size
    picture = PAINTERS[rng.integers(math.ceil(variety * len(PAINTERS)))](rng, side)
    visitor = rng.random()
    if visitor < 0.3 * variety:
        _scatter(rng, picture, int(rng.integers(1, 4)), decoy)
    elif visitor > 1 - 0.25 * variety:
        _person(rng, picture, decoy)
    return cv2.resize(gauss(picture, blur * side / 96), (size, size)) if blur else picture


def bars(picture: np.ndarray, colours: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture behind shaded bars as wide as fingers, roughly parallel: folds of a curtain, slats, others' fingers.

    A network that counts fingers by their stripes errs in front of them. Some bars are missing, and some end early.

    Args:
        picture: uint8 RGB (S, S, 3).
        colours: RGB (n, 3) of 0..255; each bar takes one of them, lighter or darker.

    Returns:
        uint8 (S, S, 3), a new array.

    Example:
        >>> wall = np.full((96, 96, 3), 200, np.uint8)
        >>> bool((bars(wall, np.array([[180, 120, 90]]), np.random.default_rng(0)) != wall).any())
        True
    """
    size = len(picture)
    along, across = _ramps(size, rng.normal(math.pi / 2, 0.4))
    across = across / 2 + rng.uniform(0, 0.15) * noise(rng, size, 3, 3)  # in shares of the side; folds are not straight
    width = rng.uniform(*BAR_WIDTH)
    edges = np.cumsum(width * rng.uniform(0.75, 1.25, math.ceil(2 / (0.75 * width)))) - rng.uniform(0.75, 0.95)
    bar = np.clip(np.searchsorted(edges, across.ravel()), 1, len(edges) - 1).reshape(across.shape)
    place = (across - edges[bar - 1]) / (edges[bar] - edges[bar - 1])  # 0..1 across a bar
    light = 1 - rng.uniform(0.1, 0.6) * (2 * place - 1) ** 2 + rng.uniform(-0.3, 0.3) * (place - 0.5)
    level, end = rng.uniform(0.7, 1.15, len(edges)), rng.uniform(-1.2, 1.2) + rng.normal(0, 0.15, len(edges))
    there = (rng.random(len(edges)) < rng.uniform(0.6, 1))[bar] & ((along < end[bar]) ^ (rng.random() < 0.5))
    tones = colours[rng.integers(len(colours), size=len(edges))] * level[:, None]
    painted = np.clip(tones[bar] * light[..., None], 0, 255)
    opacity = gauss(there.astype(np.float32), rng.uniform(0.3, 1.5) * size / 96)[..., None]
    return np.round(opacity * painted + (1 - opacity) * picture).astype(np.uint8)
