"""Janken hands, drawn from scratch: choki (scissors), gu (rock), pa (paper), each with an exact mask.

The capsules of a random pose and view (`hand_pose`) go through a `zbuffer`, which is shaded: its slope gives the light,
its hollows the dark lines between fingers. No photo, texture or mesh is read.

    pose ─► view, capsules (px) ─► z-buffer + part ids ─► shade ─► composite ─► camera ─► image
                                             └─► mask
"""

import math
from bisect import bisect
from collections.abc import Sequence

import cv2
import numpy as np

from utils.render import backgrounds, camera, hand_pose, zbuffer
from utils.render.camera import gauss
from utils.render.hand_pose import FIRST_BONE, FOREARM, PALM, SLEEVE, TENDON, THUMB_BONE
from utils.render.many import check, render_many

GESTURES = ("choki", "gu", "pa")  # scissors, rock, paper
NONE = "none"  # background only
SIZE_RANGE = (32, 512)  # pixels
CANVAS_SIDE = 160  # smaller images are drawn this large and averaged down

TIPS = FIRST_BONE + np.array([2, 5, 8, 11, 13])
# Marks on the skin of a finger's first, second and third bone: (place along it, side: back +1, palm -1).
NAIL = (0.9, 1)
MARKS = ([(0.48, -1)], [(0.0, -1), (0.0, 1), (0.14, 1)], [(0.0, -1), (0.05, 1), NAIL])  # all but NAIL: creases

# Skin in CIELAB (D65), from very pale to very dark: lightness falls, chroma peaks in the middle.
SKIN_LAB = np.array(
    [[80, 10, 14], [75, 12, 18], [69, 14, 21], [61, 15, 23], [51, 16, 23], [41, 14, 18], [31, 10, 12]], float
)
PALM_LAB = np.array([78, 19, 15], float)  # palms tend towards this, most of all on dark skin
RELIEF = 0.75  # slopes are shaded a little flatter than they are: skin scatters light
WARMTH = (0.09, -0.02, -0.06)  # added in full shadow, R G B: shadows on skin lose red last


def render_hand(
    gesture: str, rng: np.random.Generator, *, image_size: int = 96, variety: float = 1.0, tone: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One hand, with its forearm, in front of a background. ValueError for a bad gesture or setting.

    Args:
        gesture: one of `GESTURES`, or `NONE` for a background alone.
        image_size: S, side in pixels, 32..512.
        variety: in (0, 2]. Towards 0 hands stand upright, in the middle and of one size, seen straight from the back or
            the palm, in front of plain surfaces. Light, skin and pose vary always. What lies above 1 is the share of
            rare hands: loose fists, fingers together, any thumb, patterned sleeves, watches, sideways or downward.
        tone: of the skin, from 0, very pale, to 1, very dark; None: any.

    Returns:
        The image, uint8 RGB (S, S, 3), and the mask, bool (S, S): where skin of hand and bare forearm covers at least
        half of the pixel, before any blur.
    """
    _check((gesture,), image_size, variety=variety, tone=tone)
    rare, variety = bool(variety > 1 and rng.random() < variety - 1), min(variety, 1.0)
    picture = backgrounds.paint(rng, image_size, variety=variety, decoy=lambda rng: skin_colours(rng)[0])
    mask, cover = (np.zeros((image_size, image_size), dtype) for dtype in (bool, np.float32))
    if gesture == NONE:
        return camera.photograph(picture, rng), mask
    light = _sample_light(rng)
    box, colour, alpha, skin, scale = _draw_hand(gesture, rng, image_size, light, variety=variety, tone=tone, rare=rare)
    mask[box], cover[box] = skin, alpha
    picture = _cast_shadow(picture, cover, rng, light=light, scale=scale)
    picture[box] = cv2.blendLinear(colour, picture[box], alpha, 1 - alpha)
    return camera.photograph(picture, rng), mask


def render_hands(
    gestures: Sequence[str], image_size: int = 96, *, seed: int = 0, variety: float = 1.0, tone: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Many hands, one per gesture: images, uint8 RGB (N, S, S, 3), and masks, bool (N, S, S).

    Settings and errors as in `render_hand`. Image i depends on them, seed, i and gestures[i] alone.

    Example:
        >>> from utils.render import hands
        >>> images, masks = hands.render_hands(["gu", "choki", "none"], image_size=64, seed=1)
        >>> images.shape, masks.any(axis=(1, 2)).tolist()
        ((3, 64, 64, 3), [True, True, False])
    """
    gestures = list(gestures)
    _check(gestures, image_size, variety=variety, tone=tone)
    return render_many(render_hand, gestures, seed=seed, image_size=image_size, variety=variety, tone=tone)


def render_background(rng: np.random.Generator, image_size: int = 96, *, variety: float = 1.0) -> np.ndarray:
    """An image without a hand, uint8 RGB (S, S, 3); arguments as of `render_hand`."""
    return render_hand(NONE, rng, image_size=image_size, variety=variety)[0]


def _check(gestures, image_size, *, variety, tone):
    check("gesture", gestures, (*GESTURES, NONE), image_size=image_size, sizes=SIZE_RANGE)
    if not 0 < variety <= 2:
        raise ValueError(f"variety must lie in (0, 2]. Received: {variety!r}")
    if tone is not None and not 0 <= tone <= 1:
        raise ValueError(f"tone must lie in [0, 1]. Received: {tone!r}")


def _draw_hand(gesture, rng, size, light, *, variety, tone=None, rare=False):
    """A hand in front of nothing, drawn only in the box of the picture that holds it.

    Returns the box (two slices), colour float32 (h, w, 3), alpha float32 (h, w), mask bool (h, w), pixels per mm.
    """
    width, squeeze = max(size, CANVAS_SIDE), rng.uniform(0.75, 1.1)
    squeeze = (1.0, 0.75, squeeze)[bisect((0.4, 0.75), rng.random())]  # 4:3 photos are made square
    height = round(width * (1 + variety * (squeeze - 1)))
    hand = hand_pose.build_hand(gesture, rng, rare=rare)
    view = hand_pose.take_view(hand, gesture, rng, width=width, height=height, variety=variety, rare=rare)
    # The box in pixels of the picture, with a margin for the blurs; it is drawn on a grid as fine as the canvas.
    to_picture = np.array([size / width, size / height])
    reach = view.ends[..., 3:]
    low = ((view.ends[..., :2] - reach).min((0, 1)) - 4) * to_picture
    high = ((view.ends[..., :2] + reach).max((0, 1)) + 4) * to_picture
    low, high = np.clip([np.floor(low), np.ceil(high)], 0, size).astype(int)
    grid = np.maximum(np.round((high - low) / to_picture), 1).astype(int)
    to_grid = grid / (high - low) * to_picture  # nearly 1
    view.ends[..., :2] = (view.ends[..., :2] - low / to_picture) * to_grid
    view = view._replace(palm_lines=[(line - low / to_picture) * to_grid for line in view.palm_lines])
    depth, parts = _rasterise(view, *grid.tolist())
    colour = _shade(view, depth, parts, rng, light=light, tone=tone)
    if rare and (parts == SLEEVE).any():
        _pattern(colour, parts == SLEEVE, rng)
    skin = ((parts > 0) & (parts != SLEEVE)).astype(np.float32)
    maps = colour, gauss((parts > 0).astype(np.float32), 0.7), skin
    if (width, height) != (size, size):
        maps = (cv2.resize(plane, (high - low).tolist(), interpolation=cv2.INTER_AREA) for plane in maps)
    colour, alpha, skin = maps
    box = slice(low[1], high[1]), slice(low[0], high[0])
    return box, colour, alpha, skin >= 0.5, view.scale * size / width


def _smooth(values, inside, sigma):
    """Gaussian mean over the pixels inside (float32 0/1): float32 (H, W), 0 far from all of them."""
    total, (height, width) = values * inside, values.shape
    if sigma >= 3:  # half the resolution will do
        half = max(width // 2, 1), max(height // 2, 1)
        total, inside = (cv2.resize(plane, half, interpolation=cv2.INTER_AREA) for plane in (total, inside))
        sigma /= 2
    mean = gauss(total, sigma)
    mean /= gauss(inside, sigma) + 1e-4
    return mean if mean.shape == values.shape else cv2.resize(mean, (width, height))


def _rasterise(view, width, height):
    """z-buffer of a view: depth float32 (H, W) in pixels, part ids uint8 (H, W), 0 where there is nothing."""
    buffer = np.full((height, width), zbuffer.EMPTY, np.float32)
    body = view.part <= (TENDON if view.back[0, 2] > -0.5 else FOREARM)  # from the palm nobody sees the tendons
    zbuffer.draw_capsules(buffer, view.ends[body], view.part[body])
    # Palm and arm are one body under one skin, not a bundle of rods: smooth them first.
    parts = zbuffer.part_ids(buffer)
    smooth = _smooth(buffer, (parts > 0).astype(np.float32), max(1.0, 4.0 * view.scale)).view(np.int32)
    smooth &= ~zbuffer.PART_BITS
    smooth |= parts
    cv2.copyTo(smooth.view(np.float32), parts, buffer)
    above = view.part > TENDON
    zbuffer.draw_capsules(buffer, view.ends[above], view.part[above])
    return buffer, zbuffer.part_ids(buffer)


def _ink(view, parts):
    """Nails and creases: two float32 maps (H, W) in 0..1. A mark shows only where its own part is the visible one."""
    nails, creases = np.full_like(parts, 255), np.full_like(parts, 255)  # drawn in part ids: 255 is none
    thickness = max(1, round(1.4 * view.scale))
    columns = (column.tolist() for column in (view.part, view.ends, view.back))
    for part, (start, end), back in zip(*columns, strict=True):
        if part < FIRST_BONE:
            continue
        bone = (part - FIRST_BONE) % 3 if part < THUMB_BONE else part - THUMB_BONE + 1
        seen = [mark for mark in MARKS[bone] if mark[1] * back[2] >= (0.3 if bone == 0 else 0.12)]
        if not seen:
            continue  # on the far side
        dx, dy, dz, growth = (b - a for a, b in zip(start, end, strict=True))
        length = math.sqrt(dx * dx + dy * dy + dz * dz) + 1e-9
        along = dx / length, -dy / length, dz / length  # camera axes
        across = along[1] * back[2] - along[2] * back[1], along[2] * back[0] - along[0] * back[2]
        for place, side in seen:
            radius = start[3] + place * growth
            x = start[0] + place * dx + 0.75 * side * radius * back[0]
            y = start[1] + place * dy - 0.75 * side * radius * back[1]
            if (place, side) == NAIL:
                axes = (2.3 * radius * max(math.hypot(*along[:2]), 0.1), 1.6 * radius * max(math.hypot(*across), 0.1))
                cv2.ellipse(nails, ((x, y), axes, math.degrees(math.atan2(-along[1], along[0]))), part, -1)
            else:
                half_x, half_y = 0.8 * radius * across[0], -0.8 * radius * across[1]
                first, last = (round(x - half_x), round(y - half_y)), (round(x + half_x), round(y + half_y))
                cv2.line(creases, first, last, part, thickness)
    if view.back[0, 2] < -0.3:
        cv2.polylines(creases, [np.int32(np.round(line)) for line in view.palm_lines], False, PALM, thickness)
    return [gauss((ink == parts).astype(np.float32), max(0.6, 0.6 * view.scale)) for ink in (nails, creases)]


def skin_colours(rng: np.random.Generator, tone: float | None = None) -> np.ndarray:
    """Colours of the back and the palm of one random hand: float RGB (2, 3) in 0..255, every tone equally likely."""
    drawn = rng.random()
    position = (drawn if tone is None else tone) * (len(SKIN_LAB) - 1)
    low = min(int(position), len(SKIN_LAB) - 2)
    lab = SKIN_LAB[low] + (position - low) * (SKIN_LAB[low + 1] - SKIN_LAB[low]) + rng.normal(0, 1.2, 3)
    palm = lab + np.interp(lab[0], (31, 60, 80), (0.42, 0.28, 0.24)) * (PALM_LAB - lab)
    return 255.0 * cv2.cvtColor(np.float32([[lab, palm]]), cv2.COLOR_LAB2RGB)[0]


def _sample_light(rng):
    """Direction towards the light (x right, y down, z to the viewer; mostly from above) and the ambient share."""
    angle, slant = math.radians(rng.normal(-90, 60)), rng.uniform(0.35, 0.85)
    return slant * math.cos(angle), slant * math.sin(angle), math.sqrt(1 - slant**2), rng.uniform(0.35, 0.65)


def _shift(values, light, distance):
    """The values, moved away from the light by a distance in pixels: float32 (H, W)."""
    move = np.float32([[1, 0, -light[0] * distance], [0, 1, -light[1] * distance]])
    return cv2.warpAffine(values, move, values.shape[::-1], borderMode=cv2.BORDER_REPLICATE)


def _brightness(depth, solid, scale, light):
    """Brightness, about 1 where the surface faces the viewer, and gloss, 0 to about 1: two float32 (H, W)."""
    surface = _smooth(depth, solid, max(0.7, 1.3 * scale))
    slope_x, slope_y = (cv2.Sobel(surface, -1, dx, 1 - dx, scale=RELIEF / 8) for dx in (1, 0))
    lambert = slope_x * (-light[0] / light[2]) + slope_y * (-light[1] / light[2]) + 1  # 1 where it faces the viewer
    steepness = cv2.sqrt(slope_x * slope_x + slope_y * slope_y + 1)
    lambert = cv2.min(cv2.max(lambert / steepness, 0.0), 1.3)
    hollow = (_smooth(depth, solid, 5 * scale) - surface) * (0.38 / (9 * scale))
    reach = 9 * scale  # of the shadow that one finger casts on the next
    shadow = (_shift(surface, light, reach) - surface - 0.8 * reach) * (0.3 / (6 * scale))
    brightness = lambert * (1 - light[3]) + light[3]
    brightness *= 1 - cv2.min(cv2.max(hollow, 0.0), 0.38)
    brightness *= 1 - cv2.blur(cv2.min(cv2.max(shadow, 0.0), 0.3), (3, 3))
    return brightness, lambert / steepness


def _albedo(view, parts, rng, tone):
    """Colours of skin and sleeve: uint8 RGB (H, W, 3). Palm and fingertips are pinker; palms of dark skin lighter."""
    back, palm = skin_colours(rng, tone)
    palmar = np.zeros((256, 1))
    palmar[view.part, 0] = np.clip(0.5 - 0.9 * view.back[:, 2], 0, 1)
    palmar[FOREARM] *= 0.55
    table = back + palmar * (palm - back)
    table[TIPS] *= (1.0, 0.9, 0.92)
    table[TIPS - 1] *= (1.0, 0.96, 0.97)
    table[SLEEVE] = backgrounds.colour(rng)
    soften = (2 * int(2.2 * view.scale) + 1,) * 2
    colours = cv2.LUT(cv2.merge([parts] * 3), np.clip(table, 0, 255).astype(np.uint8)[None])
    return cv2.blur(cv2.blur(colours, soften), soften)


def _pattern(colour, sleeve, rng):
    """Give the sleeve, bool (H, W), the look of any surface; in place. Its shading stays."""
    side = max(sleeve.shape)
    cloth = backgrounds.paint(rng, side)[: sleeve.shape[0], : sleeve.shape[1]]
    cloth = cloth + rng.uniform(0, 1.5) * (cloth - cloth.mean(axis=-1, keepdims=True))  # fabrics are more colourful
    light = colour[sleeve].mean(axis=-1, keepdims=True)
    colour[sleeve] = np.clip(cloth[sleeve], 0, 255) * (light / max(float(light.mean()), 1.0))


def _shade(view, depth, parts, rng, *, light, tone):
    """Colour of every pixel of a rasterised view: float32 (H, W, 3), about 0..255."""
    solid = (parts > 0).astype(np.float32)
    brightness, gloss = _brightness(depth, solid, view.scale, light)
    nails, creases = _ink(view, parts)
    mottle = cv2.resize(backgrounds.noise(rng, 48, 12, 12), parts.shape[::-1])
    brightness *= (1 - 0.22 * creases + 0.1 * nails) * (1 + rng.uniform(0.02, 0.14) * mottle)
    tinted = cv2.merge([brightness * (1 - warmth) + warmth for warmth in WARMTH])
    colour = cv2.multiply(_albedo(view, parts, rng, tone), tinted, dtype=cv2.CV_32F)
    highlight = rng.uniform(0, 60) * cv2.max(gloss - 0.93, 0.0) + 10 * nails
    return cv2.add(colour, cv2.merge([highlight] * 3), dst=colour)


def _cast_shadow(background, alpha, rng, *, light, scale):
    """The background float32 (S, S, 3), darker where the hand keeps the light away; in place."""
    distance = rng.uniform(5, 45) * scale
    shadow = cv2.resize(alpha, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)  # soft: a quarter will do
    shadow = gauss(_shift(shadow, light, distance / 4), max(0.3, 0.1 * distance))
    shadow = cv2.resize(1 - rng.uniform(0, 0.6) * shadow, alpha.shape)
    return cv2.multiply(background, cv2.merge([shadow] * 3), dst=background)
