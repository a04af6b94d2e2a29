"""What may lie behind a hand: plain walls, wood, cloth, clutter, rooms. All painted from random numbers.

`paint` is the whole of it; `colour`, `noise` and `gauss` serve the hands too. Pictures here are float32 RGB (S,S,3) of
about 0..255, not yet clipped: the camera does that. Most painters work on planes (S,S) and merge them at the end,
because NumPy is slow when the last axis has only three entries.
"""

import math

import cv2
import numpy as np

BLURRED_SIDE = 112  # pixels: what is out of focus needs no more


def colour(rng):
    """A random, rather muted RGB colour: float32 (3,)."""
    return (rng.uniform(25, 235) + rng.normal(0, rng.uniform(2, 24), 3)).astype(np.float32)


def noise(rng, size, rows, columns, channels=1):
    """Smooth noise in about ±0.5, a random value for each of rows × columns cells: float32 (S,S) or (S,S,channels)."""
    cells = rng.random((rows, columns, channels), np.float32) - np.float32(0.5)
    return cv2.resize(cells, (size, size), interpolation=cv2.INTER_CUBIC)


def gauss(values, sigma):
    """Gaussian blur with a kernel no wider than the eye needs."""
    return cv2.GaussianBlur(values, (2 * math.ceil(2.2 * sigma) + 1,) * 2, sigma)


def motion_blur(picture, length, angle):
    """What moved during the exposure, ``length`` pixels to either side, in the direction of the angle (radians)."""
    middle = math.ceil(length)
    dx, dy = round(length * math.cos(angle)), round(length * math.sin(angle))
    kernel = np.zeros((2 * middle + 1,) * 2, np.float32)
    cv2.line(kernel, (middle - dx, middle - dy), (middle + dx, middle + dy), 1.0)
    return cv2.filter2D(picture, -1, kernel / kernel.sum())


def _ramps(size, angle):
    """Coordinates along and across a direction, about -1..1: two float32 (S,S)."""
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    cos, sin = math.cos(angle) * ramp, math.sin(angle) * ramp
    return cos + sin[:, None], cos[:, None] - sin


# ------------------------------------------------------------------------------- painters: (rng, size) -> (S,S,3)
def _wall(rng, size):
    tone, (along, _) = colour(rng).tolist(), _ramps(size, rng.uniform(0, 2 * math.pi))
    light = 1 + rng.uniform(0, 0.4) * along
    stains = rng.uniform(0, 25) * noise(rng, size, 5, 5)
    return cv2.merge([level * light + stains for level in tone])


def _texture(rng, size):
    cells = int(rng.integers(6, size // 2))
    coloured = rng.uniform(0, 50) * noise(rng, size, cells, cells, 3)
    coloured += _wall(rng, size)
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
        x, y, w, h = (size * rng.uniform((-.1, -.1, .08, .2), (.8, .7, .5, .9))).astype(int).tolist()
        cv2.rectangle(picture, (x, y), (x + w, y + h), colour(rng).tolist(), -1)
        cv2.rectangle(picture, (x, y), (x + w, y + h), colour(rng).tolist(), max(1, size // 50))
    if rng.random() < 0.4:
        left, right = sorted(rng.integers(0, size, 2).tolist())
        folds = np.sin(np.arange(right - left) * (rng.uniform(0.2, 0.8) * 96 / size))
        picture[:, left:right] = colour(rng) + 22 * folds[:, None]
    return picture


PAINTERS = (_wood, _wood, _wall, _wall, _texture, _cloth, _clutter, _clutter, _room, _room, _room)  # plain to busy


def _person(rng, picture, skin):
    """Draw somebody into a picture: shoulders, neck, face, hair; skin(rng) gives the tone."""
    size, tone = len(picture), skin(rng)
    x, y = rng.uniform((0.1, 0.1), (0.9, 0.7)) * size
    width = size * rng.uniform(0.1, 0.3)  # of the face
    height, lean = width * rng.uniform(1.2, 1.5), rng.uniform(-12, 12)

    def ellipse(x, y, a, b, fill):
        axes = max(1, round(a)), max(1, round(b))
        cv2.ellipse(picture, (round(x), round(y)), axes, lean, 0, 360, fill.tolist(), -1, cv2.LINE_AA)

    hair, clothes = colour(rng) * 0.5, colour(rng)
    ellipse(x, y + 2.6 * height, 1.6 * width, 1.8 * height, clothes)
    ellipse(x, y + 0.7 * height, 0.32 * width, 0.5 * height, 0.8 * tone)
    ellipse(x, y - 0.1 * height, 0.58 * width, 0.58 * height, hair)
    ellipse(x, y + 0.08 * height, 0.45 * width, 0.5 * height, tone)
    for dx in (-0.18, 0.18):
        ellipse(x + dx * width, y, 0.07 * width, 0.03 * height, 0.3 * tone)
    ellipse(x, y + 0.15 * height, 0.05 * width, 0.1 * height, 0.85 * tone)
    ellipse(x, y + 0.33 * height, 0.14 * width, 0.03 * height, tone * (0.8, 0.5, 0.5))


def paint(rng, size, variety=1.0, decoy=colour):
    """A background before the camera: float32 RGB (size,size,3), about 0..255.

    variety: in (0, 1]; towards 0 only the plain painters are left. decoy: rng -> RGB (3,), the colour of things that
    lie around now and then, for whoever wants them to look like something else at first sight.
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
