"""Janken hands, drawn from scratch: choki (scissors), gu (rock), pa (paper), each with an exact mask.

A hand is a skeleton in 3-D (millimetres) wrapped in tapered capsules. Pose and viewpoint are drawn at random, the
capsules go through a z-buffer, and the buffer is shaded: its slope gives the light, its hollows the dark lines
between fingers. Back and palm, left and right, foreshortening and occlusion all follow from the one skeleton.

    pose ─► capsules (mm) ─► view, project (px) ─► z-buffer + part ids ─► shade ─► composite ─► camera ─► image
                                                             └─► mask

Hand axes: x to the thumb, y to the fingertips, z out of the back of the hand; the origin is the wrist.
Camera axes: x to the right, y up, z to the viewer. Image axes: y down. No photo, texture or mesh is read.
"""

import math
import os
from bisect import bisect
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np

from utils.render import backgrounds
from utils.render.backgrounds import gauss, motion_blur

GESTURES = ("choki", "gu", "pa")  # scissors, rock, paper
NONE = "none"  # background only
SIZE_RANGE = (32, 512)  # pixels
CANVAS_SIDE = 160  # smaller images are drawn this large and averaged down

# An adult hand in millimetres. Rows: index, middle, ring, little finger.
KNUCKLES = np.array([[27, 91, 0], [6, 95, 2], [-15, 89, 1], [-33, 78, -3]], float)
CARPALS = np.array([[15, 8, 0], [5, 6, 1], [-6, 6, 1], [-15, 8, -1]], float)
PHALANGES = np.array([[43, 25, 17], [47, 29, 18], [44, 27, 18], [35, 20, 16]], float)
FINGER_RADII = np.array([[10.4, 9.3, 8.2, 6.6], [10.5, 9.5, 8.4, 6.8], [10, 9, 7.9, 6.4], [9, 7.9, 7, 5.6]])
THUMB_ROOT = np.array([20, 20, -8], float)
THUMB_LENGTHS = np.array([[45], [33], [21]], float)  # metacarpal, proximal, distal
THUMB_RADII = np.array([12, 10, 7.4])  # at the last three joints
HEEL = np.array([[-18, 16, -7], [-31, 56, -6]], float)  # the pad below the little finger
FOLD = 0.5 * (CARPALS[0] + KNUCKLES[0])  # the skin between thumb and index finger is anchored here
PALM_CAPSULES = [  # start, end, radii; a pose sets the ends of WEBS and BALL and the starts of FOLDS
    *((CARPALS[i], KNUCKLES[i] - (0, 3, 1), 15.5, 12.5) for i in range(4)),
    *((KNUCKLES[i] - (0, 8, 2), KNUCKLES[i], 12, 9) for i in range(4)),
    (HEEL[0], HEEL[1], 16, 13),
    (THUMB_ROOT, THUMB_ROOT, 17, 13),
    (THUMB_ROOT, FOLD + (6, -15, -4), 9, 10),
    (THUMB_ROOT, FOLD + (6, 8, -4), 6, 8),
    *((CARPALS[i] + (0, 0, 8), KNUCKLES[i] + (0, 1, 8), 4, 7) for i in range(4)),  # tendons, up to the knuckles
]
PALM_START, PALM_END = (np.array([capsule[i] for capsule in PALM_CAPSULES]) for i in (0, 1))
PALM_RADII = np.array([capsule[2:] for capsule in PALM_CAPSULES])
WEBS, BALL, FOLDS = slice(4, 8), 9, slice(10, 12)
FOREARM_LENGTH = 450.0  # long enough to reach the border of any frame: hands do not float
BACK = (0, 0, 1)  # out of the back of the hand

# The thumb: directions of its three bones, then the direction its nail faces.
THUMBS = {
    "open": [[.74, .60, -.30], [.62, .76, -.20], [.50, .86, -.10], [.45, -.40, .80]],
    "beside": [[.52, .80, -.30], [.24, .96, -.12], [.12, .99, -.10], [.75, -.10, .60]],
    "across": [[.30, .72, -.63], [-.48, .62, -.62], [-.96, .08, -.27], [.25, .30, -.92]],
    "along": [[.42, .80, -.40], [.05, .97, -.24], [-.25, .95, -.15], [.90, .10, -.42]],
    "hold": [[.05, .74, -.67], [-.68, .48, -.55], [-.98, .05, -.16], [.20, .35, -.92]],
}
PALM_LINES = (  # heart, head and life line in the palm: (x, y, z)
    [(-43, 62, -11), (-30, 69, -12), (-16, 71, -13), (-2, 75, -13), (7, 84, -12)],
    [(37, 69, -10), (22, 67, -12), (6, 61, -13), (-10, 53, -14), (-26, 42, -16)],
    [(37, 69, -10), (22, 64, -13), (11, 52, -16), (5, 38, -18), (5, 22, -18)],
)

# Part ids. Bones: three for each finger, then the two free ones of the thumb.
PALM, FOREARM, TENDON, SLEEVE, FIRST_BONE, THUMB_BONE = 1, 2, 3, 4, 5, 17
PART = np.array([PALM] * (len(PALM_CAPSULES) - 4) + [TENDON] * 4 + [*range(FIRST_BONE, FIRST_BONE + 14)])
PART_BITS = 31  # of a depth in the z-buffer: they hold the part id
EMPTY = -131072.0  # a depth behind everything, of part 0
BATCH = 8  # capsules at a time
TIPS = FIRST_BONE + np.array([2, 5, 8, 11, 13])
# Marks on the skin of a finger's first, second and third bone: (place along it, side: back +1, palm -1).
NAIL = (0.9, 1)
MARKS = ([(0.48, -1)], [(0.0, -1), (0.0, 1), (0.14, 1)], [(0.0, -1), (0.05, 1), NAIL])  # all but NAIL: creases

# Skin in CIELAB (D65), from very pale to very dark: lightness falls, chroma peaks in the middle.
SKIN_LAB = np.array([[80, 10, 14], [75, 12, 18], [69, 14, 21], [61, 15, 23], [51, 16, 23], [41, 14, 18], [31, 10, 12]],
                    float)
PALM_LAB = np.array([78, 19, 15], float)  # palms tend towards this, most of all on dark skin
RELIEF = 0.75  # slopes are shaded a little flatter than they are: skin scatters light
WARMTH = (0.09, -0.02, -0.06)  # added in full shadow, R G B: shadows on skin lose red last
PIXELS = np.arange(2 * SIZE_RANGE[1], dtype=np.float32)  # coordinates, ready made
GAUSSIAN = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)  # of a random byte


# -------------------------------------------------------------------------------------------- the hand, millimetres
class _Hand(NamedTuple):
    """n tapered capsules, palm first, in hand axes."""

    start: np.ndarray  # (n,3) mm
    end: np.ndarray  # (n,3) mm
    radius: np.ndarray  # (n,2) mm, at start and end
    back: np.ndarray  # (n,3) unit: where the back of the hand, or of this finger bone, faces
    part: np.ndarray  # (n,) part id


def _unit(vectors):
    return vectors / np.sqrt((vectors * vectors).sum(-1, keepdims=True))


def _sample_pose(gesture, rng):
    """Joint bends (4,3) and spreads (4,) of the fingers in degrees, and the thumb's four directions (4,3)."""
    fist = rng.normal((84, 107, 60), (6, 5, 7)) + rng.normal(0, 4, (4, 3))
    straight = np.abs(rng.normal((4, 6, 4), (5, 6, 4), (4, 3)))
    if gesture == "gu":
        bends, spreads = fist, np.array([-2, 0, 3, 6])
        thumbs, mix = ("across", "along"), rng.beta(0.6, 0.9)
    elif gesture == "choki":
        bends = np.concatenate([straight[:2], fist[2:]])
        spreads = np.array([rng.uniform(5, 20), -rng.uniform(4, 16), 2, 6])
        thumbs, mix = ("hold", "across"), rng.uniform(0, 0.4)
    else:
        relaxed = rng.uniform(5, 32) if rng.random() < 0.3 else 0.0
        bends = straight + relaxed * np.array([1, 1.1, 0.6])
        spreads = (rng.uniform(-1, 3) if rng.random() < 0.2 else rng.uniform(3, 14)) * np.array([1, .1, -.75, -1.7])
        thumbs, mix = ("open", "beside"), rng.beta(0.7, 1)
    directions = (1 - mix) * np.array(THUMBS[thumbs[0]]) + mix * np.array(THUMBS[thumbs[1]])
    return bends, spreads + rng.normal(0, 1.5, 4), _unit(directions + rng.normal(0, 0.05, (4, 3)))


def _build_hand(gesture, rng):
    """A random hand in the pose of a gesture: _Hand in mm."""
    bends, spreads, thumb = _sample_pose(gesture, rng)
    thick = rng.uniform(0.95, 1.22) * (1.06 if gesture == "gu" else 1.0)  # bent fingers bulge
    # Fingers: bend b turns a bone from the finger's direction towards the palm.
    bend, spread = np.radians(np.cumsum(bends, 1))[..., None], np.radians(spreads)
    forward = np.stack([np.sin(spread), np.cos(spread), 0 * spread], 1)[:, None]  # (4,1,3)
    along = np.cos(bend) * forward - np.sin(bend) * np.array(BACK)  # (4,3,3): finger, bone, axis
    back = np.sin(bend) * forward + np.cos(bend) * np.array(BACK)
    lengths = PHALANGES * rng.normal(1, 0.05) * rng.normal(1, 0.025, (4, 1))
    ends = KNUCKLES[:, None] + np.cumsum(along * lengths[..., None], 1)
    starts = ends - along * lengths[..., None]
    finger_radii = np.stack([FINGER_RADII[:, :3], FINGER_RADII[:, 1:]], -1)  # (4,3,2)

    thumb_ends = THUMB_ROOT + np.cumsum(thumb[:3] * THUMB_LENGTHS, 0)
    thumb_back = _unit(thumb[3] - (thumb[1:3] @ thumb[3])[:, None] * thumb[1:3])

    palm_start, palm_end = PALM_START.copy(), PALM_END.copy()
    palm_end[WEBS] = KNUCKLES + 13 * along[:, 0] - 2 * back[:, 0]
    palm_end[BALL] = thumb_ends[0]
    palm_start[FOLDS] = THUMB_ROOT + np.outer((30, 40), thumb[0])
    return _Hand(
        np.concatenate([palm_start, starts.reshape(12, 3), thumb_ends[:2]]),
        np.concatenate([palm_end, ends.reshape(12, 3), thumb_ends[1:]]),
        thick * np.concatenate([PALM_RADII, finger_radii.reshape(12, 2),
                                np.stack([THUMB_RADII[:2], THUMB_RADII[1:]], 1)]),
        np.concatenate([np.tile(BACK, (len(PALM_START), 1)), back.reshape(12, 3), thumb_back]),
        PART)


# ----------------------------------------------------------------------------------------------- the view, pixels
class _View(NamedTuple):
    """The capsules of hand, forearm and sleeve as the camera sees them, in the order they are drawn."""

    ends: np.ndarray  # (m,2,4): start and end; x, y, z, radius in pixels, y down
    back: np.ndarray  # (m,3) in camera axes
    part: np.ndarray  # (m,)
    palm_lines: list  # of (k,2) x, y in pixels
    scale: float  # pixels a millimetre


def _rotation(yaw, pitch, roll):
    """Hand axes to camera axes (3,3): degrees about y, then x, then z."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(np.radians([yaw, pitch, roll])), np.sin(np.radians([yaw, pitch, roll]))
    about_y = np.array([[ca, 0, sa], [0, 1, 0], [-sa, 0, ca]])
    about_x = np.array([[1, 0, 0], [0, cb, -sb], [0, sb, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def _sample_view(gesture, rng, variety):
    """Rotation from hand to camera axes (3,3) and the direction of the forearm in camera axes (3,)."""
    any_way = rng.random() < 0.35 * variety  # sideways, or downward
    roll = rng.uniform(-180, 180) if any_way else min(max(rng.normal(0, 18), -40), 40)
    roll *= variety
    if gesture == "gu" and rng.random() < 0.33 * variety:  # a fist towards the camera, the back of the hand up
        rotation = _rotation(180 + rng.normal(0, 14), rng.uniform(38, 78), roll / 2)
        arm = 0.8 * _unit(rotation[:, 1] * (-1, -1, -0.3)) + (rng.normal(0, 0.9), -0.8, -0.2)
    else:
        turned = rng.random() < 0.3  # to the side, and a little past edge-on
        yaw = variety * (rng.uniform(-105, 105) if turned else rng.normal(0, 18))
        rotation = _rotation(180 * rng.integers(2) + yaw, variety * rng.normal(0, 13), roll)
        arm = rotation[:, 1] * (-1, -1, -0.4) + math.sin(math.radians(rng.normal(0, 10))) * rotation[:, 0]
    return rotation, _unit(arm)


def _arm(rotation, arm, rng):
    """The forearm's capsules in camera axes: start (k,3), end (k,3), radius (k,2), part (k,); a sleeve comes last."""
    side = _unit(rotation[:, 0] - (rotation[:, 0] @ arm) * arm)
    start = np.outer((-10, 10), side) - 4 * arm
    end = np.outer((-19, 19), side) + FOREARM_LENGTH * arm
    radius, part = rng.uniform(0.9, 1.12) * np.array([[19, 34], [19, 34]]), [FOREARM] * 2
    if rng.random() < 0.25:
        cuff = rng.uniform(10, 150)
        start, end = np.vstack([start, cuff * arm]), np.vstack([end, FOREARM_LENGTH * arm])
        radius, part = np.vstack([radius, [36 + cuff / 16, 65]]), part + [SLEEVE]
    return start, end, radius, part


def _take_view(hand, gesture, rng, width, height, variety):
    """Turn, mirror, scale and place a hand on a canvas: _View."""
    rotation, arm = _sample_view(gesture, rng, variety)
    arm_start, arm_end, arm_radius, arm_part = _arm(rotation, arm, rng)
    mirror = np.array([2 * rng.integers(2) - 1, 1, 1])  # left or right hand
    turn = rotation.T * mirror  # row vectors: points @ turn
    ends = np.stack([np.concatenate([arm_start * mirror, hand.start @ turn]),
                     np.concatenate([arm_end * mirror, hand.end @ turn])], 1)  # (m,2,3)
    radius = np.concatenate([arm_radius, hand.radius])[..., None]
    distance = rng.uniform(400, 1200)  # of the camera, mm

    def look(points):
        """Perspective: x, y in mm at the wrist's distance, z as it is, and the magnification."""
        near = np.clip(1 / (1 - points[..., 2:] / distance), 0.6, 1.8)
        return np.concatenate([points[..., :2] * near, points[..., 2:], near], -1)

    seen = look(ends)
    joints = seen[len(arm_part):, :, :2].reshape(-1, 2)
    low, high = joints.min(0) - 10, joints.max(0) + 10
    share = rng.triangular(0.35, 0.65, 0.85) if gesture == "gu" else rng.triangular(0.45, 0.8, 1.1)  # of the frame
    usual = 0.75 if gesture == "gu" else 0.95
    share = usual + variety * (share - usual)
    scale = float(share * min(width, height) / (high - low).max())
    centre = np.array([width, height]) * (0.5 + np.clip(rng.normal(0, 0.1, 2), -0.2, 0.2) * (1.3 - share) * variety)
    to_pixels, origin = np.array([scale, -scale]), centre - (low + high) / 2 * (scale, -scale)
    seen[..., 3:] *= radius * scale
    seen[..., 2] *= scale
    seen[..., :2] = seen[..., :2] * to_pixels + origin
    lines = [look(np.array(line, float) @ turn)[:, :2] * to_pixels + origin for line in PALM_LINES]
    back = np.concatenate([np.tile(BACK @ turn, (len(arm_part), 1)), hand.back @ turn])
    return _View(seen, back, np.concatenate([arm_part, hand.part]), lines, scale)


def _draw_capsules(buffer, ends, part):
    """Put tapered capsules into a z-buffer, float32 (H,W). ends: (n,2,4), x, y, z, radius in pixels; part: (n,) ids.

    A part id rides in the last five bits of its depths (_part_ids reads them): one maximum settles both, and depths are
    still good to five digits. Capsules of like size are worked out together, each in its own window: that is quicker.
    """
    height, width = buffer.shape
    low = np.clip((ends[..., :2] - ends[..., 3:]).min(1), 0, (width, height)).astype(int)
    high = np.clip((ends[..., :2] + ends[..., 3:]).max(1) + 2, 0, (width, height)).astype(int)
    extent = high - low
    area = extent.prod(1)
    order = np.argsort(area)[np.count_nonzero(area == 0):]
    for first in range(0, len(order), BATCH):
        batch = order[first:first + BATCH]
        tops = _tops(ends[batch], part[batch], low[batch], *extent[batch].max(0).tolist())
        for top, (x, y), (columns, rows) in zip(tops, low[batch].tolist(), extent[batch].tolist(), strict=True):
            window = buffer[y:y + rows, x:x + columns]
            np.fmax(window, top[:rows, :columns], out=window)  # knows no NaN


def _tops(ends, part, corner, columns, rows):
    """Depth of n capsules, with the part id in its last bits: float32 (n,rows,columns), NaN where there is none.

    Each is seen through the window at its corner. With t from 0 to 1 along the axis, and everything else relative to
    its start, the surface at (x, y) lies at height² = radius(t)² - (x - t·dx)² - (y - t·dy)² above the axis.
    """
    (xa, ya, za, ra), (dx, dy, dz, dr) = ends[:, 0].T, (ends[:, 1] - ends[:, 0]).T
    length2 = np.maximum(dx * dx + dy * dy, 1e-6)
    length = np.sqrt(length2)
    # Seen at a slant, the visible surface belongs to a point further along the axis.
    further = dz / np.sqrt(length2 + dz * dz) / length
    numbers = np.stack([xa, ya, za, ra, dx, dy, dz, dr, length2, length, further]).astype(np.float32)
    xa, ya, za, ra, dx, dy, dz, dr, length2, length, further = numbers[..., None, None]
    x = (PIXELS[:columns] + corner[:, :1].astype(np.float32))[:, None] - xa  # (n,1,columns)
    y = (PIXELS[:rows] + corner[:, 1:].astype(np.float32))[..., None] - ya  # (n,rows,1)
    along = x * dx + y * dy
    t = x * (dy / length) - y * (dx / length)  # distance from the axis, for now
    t *= t
    np.subtract((ra + 0.5 * dr) ** 2, t, out=t)
    flat = t.reshape(len(t), -1)
    cv2.sqrt(cv2.max(flat, 0.0, dst=flat), dst=flat)
    t *= further
    t += along * (1 / length2)
    np.clip(t, 0, 1, out=t)
    along += ra * dr
    along += along
    top = t * (dr * dr - length2)
    top += along
    top *= t
    top += (ra * ra - x * x) - y * y
    flat = top.reshape(len(top), -1)
    cv2.sqrt(flat, dst=flat)  # NaN outside, without NumPy's warning
    t *= dz
    top += t
    top += za
    bits = top.view(np.int32)
    bits &= ~PART_BITS
    bits |= part.astype(np.int32)[:, None, None]
    return top


def _part_ids(buffer):
    """The part ids in a z-buffer: uint8 (H,W), 0 where there is nothing."""
    return (buffer.view(np.int32) & PART_BITS).astype(np.uint8)


def _smooth(values, inside, sigma):
    """Gaussian mean over the pixels inside (float32 0/1): float32 (H,W), 0 far from all of them."""
    total, shape = values * inside, values.shape[::-1]
    if sigma >= 3:  # half the resolution will do
        half = (max(shape[0] // 2, 1), max(shape[1] // 2, 1))
        total, inside = (cv2.resize(plane, half, interpolation=cv2.INTER_AREA) for plane in (total, inside))
        sigma /= 2
    mean = gauss(total, sigma)
    mean /= gauss(inside, sigma) + 1e-4
    return mean if mean.shape == values.shape else cv2.resize(mean, shape)


def _rasterise(view, width, height):
    """z-buffer of a view: depth float32 (H,W) in pixels, part ids uint8 (H,W), 0 where there is nothing."""
    buffer = np.full((height, width), EMPTY, np.float32)
    body = view.part <= (TENDON if view.back[0, 2] > -0.5 else FOREARM)  # from the palm nobody sees the tendons
    _draw_capsules(buffer, view.ends[body], view.part[body])
    # Palm and arm are one body under one skin, no bundle of rods: smooth them first.
    parts = _part_ids(buffer)
    smooth = _smooth(buffer, (parts > 0).astype(np.float32), max(1.0, 4.0 * view.scale)).view(np.int32)
    smooth &= ~PART_BITS
    smooth |= parts
    cv2.copyTo(smooth.view(np.float32), parts, buffer)
    above = view.part > TENDON
    _draw_capsules(buffer, view.ends[above], view.part[above])
    return buffer, _part_ids(buffer)


def _ink(view, parts):
    """Nails and creases: two float32 maps (H,W) in 0..1. A mark shows only where its own part is the visible one."""
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


# -------------------------------------------------------------------------------------------------------- light
def _skin_colour(rng, tone=None):
    """Colours of the back and the palm of one random hand: float RGB (2, 3) in 0..255, every tone equally likely."""
    drawn = rng.random()
    position = (drawn if tone is None else tone) * (len(SKIN_LAB) - 1)
    low = min(int(position), len(SKIN_LAB) - 2)
    lab = SKIN_LAB[low] + (position - low) * (SKIN_LAB[low + 1] - SKIN_LAB[low]) + rng.normal(0, 1.2, 3)
    palm = lab + np.interp(lab[0], (31, 60, 80), (0.42, 0.28, 0.24)) * (PALM_LAB - lab)
    return 255.0 * cv2.cvtColor(np.float32([[lab, palm]]), cv2.COLOR_LAB2RGB)[0]


def _skin_tone(rng):
    """Colour of the back of one random hand: float RGB (3,) in 0..255."""
    return _skin_colour(rng)[0]


def _sample_light(rng):
    """Direction towards the light (x right, y down, z to the viewer; mostly from above) and the ambient share."""
    angle, slant = math.radians(rng.normal(-90, 60)), rng.uniform(0.35, 0.85)
    return slant * math.cos(angle), slant * math.sin(angle), math.sqrt(1 - slant**2), rng.uniform(0.35, 0.65)


def _shift(values, light, distance):
    """values moved away from the light by distance pixels: float32 (H,W)."""
    move = np.float32([[1, 0, -light[0] * distance], [0, 1, -light[1] * distance]])
    return cv2.warpAffine(values, move, values.shape[::-1], borderMode=cv2.BORDER_REPLICATE)


def _brightness(depth, solid, scale, light):
    """Brightness, about 1 where the surface faces the viewer, and gloss 0..1: two float32 (H,W)."""
    surface = _smooth(depth, solid, max(0.7, 1.3 * scale))
    slope_x, slope_y = (cv2.Sobel(surface, -1, dx, 1 - dx, scale=RELIEF / 8) for dx in (1, 0))
    lambert = slope_x * (-light[0] / light[2]) + slope_y * (-light[1] / light[2])  # 1 where it faces the viewer
    lambert += 1
    slope_x *= slope_x
    slope_y *= slope_y
    slope_x += slope_y
    slope_x += 1
    steepness = cv2.sqrt(slope_x)
    lambert /= steepness
    lambert = cv2.min(cv2.max(lambert, 0.0), 1.3)
    hollow = _smooth(depth, solid, 5 * scale)
    hollow -= surface
    hollow *= 0.38 / (9 * scale)
    reach = 9 * scale  # of the shadow that one finger casts on the next
    shadow = _shift(surface, light, reach)
    shadow -= surface
    shadow -= 0.8 * reach
    shadow *= 0.3 / (6 * scale)
    brightness = lambert * (1 - light[3])
    brightness += light[3]
    brightness *= 1 - cv2.min(cv2.max(hollow, 0.0), 0.38)
    brightness *= 1 - cv2.blur(cv2.min(cv2.max(shadow, 0.0), 0.3), (3, 3))
    lambert /= steepness
    return brightness, lambert


def _albedo(view, parts, rng, tone):
    """Colours of skin and sleeve: uint8 RGB (H,W,3). Palm and fingertips are pinker; palms of dark skin lighter."""
    back, palm = _skin_colour(rng, tone)
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


def _shade(view, depth, parts, light, rng, tone):
    """Colour of every pixel (float32 (H,W,3), about 0..255) of a rasterised view."""
    solid = (parts > 0).astype(np.float32)
    brightness, gloss = _brightness(depth, solid, view.scale, light)
    nails, creases = _ink(view, parts)
    mottle = cv2.resize(backgrounds.noise(rng, 48, 12, 12), parts.shape[::-1])
    brightness *= (1 - 0.22 * creases + 0.1 * nails) * (1 + rng.uniform(0.02, 0.14) * mottle)
    tinted = cv2.merge([brightness * (1 - warmth) + warmth for warmth in WARMTH])
    colour = cv2.multiply(_albedo(view, parts, rng, tone), tinted, dtype=cv2.CV_32F)
    highlight = rng.uniform(0, 60) * cv2.max(gloss - 0.93, 0.0) + 10 * nails
    return cv2.add(colour, cv2.merge([highlight] * 3), dst=colour)


def _draw_hand(gesture, rng, size, light, variety, tone=None):
    """A hand before nothing, drawn only in the box of the picture that holds it.

    Returns the box (two slices), colour float32 (h,w,3), alpha float32 (h,w), mask bool (h,w), pixels a millimetre.
    """
    canvas = max(size, CANVAS_SIDE)
    squeeze = rng.uniform(0.75, 1.1)
    squeeze = (1.0, 0.75, squeeze)[bisect((0.4, 0.75), rng.random())]  # 4:3 photos are made square
    width, height = canvas, round(canvas * (1 + variety * (squeeze - 1)))
    view = _take_view(_build_hand(gesture, rng), gesture, rng, width, height, variety)
    # The box in pixels of the picture, with a margin for the blurs; it is drawn on a grid of about canvas pixels.
    to_picture = np.array([size / width, size / height])
    reach = view.ends[..., 3:]
    low = ((view.ends[..., :2] - reach).min((0, 1)) - 4) * to_picture
    high = ((view.ends[..., :2] + reach).max((0, 1)) + 4) * to_picture
    low, high = np.clip([np.floor(low), np.ceil(high)], 0, size).astype(int)
    grid = np.maximum(np.round((high - low) / to_picture), 1).astype(int)
    to_grid = grid / (high - low) * to_picture  # all but 1
    view.ends[..., :2] = (view.ends[..., :2] - low / to_picture) * to_grid
    view = view._replace(palm_lines=[(line - low / to_picture) * to_grid for line in view.palm_lines])
    depth, parts = _rasterise(view, *grid.tolist())
    colour = _shade(view, depth, parts, light, rng, tone)
    skin = ((parts > 0) & (parts != SLEEVE)).astype(np.float32)
    maps = colour, gauss((parts > 0).astype(np.float32), 0.7), skin
    if canvas != size or height != width:
        maps = (cv2.resize(plane, (high - low).tolist(), interpolation=cv2.INTER_AREA) for plane in maps)
    colour, alpha, skin = maps
    box = slice(low[1], high[1]), slice(low[0], high[0])
    return box, colour, alpha, skin >= 0.5, view.scale * size / canvas


# --------------------------------------------------------------------------------------------------------- photo
def _cast_shadow(background, alpha, light, scale, rng):
    """The background float32 (S,S,3), darker where the hand keeps the light away; in place."""
    distance = rng.uniform(5, 45) * scale
    shadow = cv2.resize(alpha, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)  # soft: a quarter will do
    shadow = gauss(_shift(shadow, light, distance / 4), max(0.3, 0.1 * distance))
    shadow = cv2.resize(1 - rng.uniform(0, 0.6) * shadow, alpha.shape)
    return cv2.multiply(background, cv2.merge([shadow] * 3), dst=background)


def _photograph(picture, rng):
    """What a camera makes of float32 (S,S,3): exposure, white balance, motion or blur, noise; uint8 (S,S,3).

    The picture is used up.
    """
    size = len(picture)
    gain = (rng.uniform(0.7, 1.2) * rng.normal(1, 0.04, 3)).astype(np.float32)
    chance = rng.random()
    if chance < 0.15:  # motion
        picture = motion_blur(picture, rng.uniform(0.015, 0.05) * size, rng.uniform(0, math.pi))
    elif chance < 0.65:
        picture = gauss(picture, rng.uniform(0.3, 0.9) * size / 96)
    picture = picture.reshape(size, -1)
    picture *= np.tile(gain, size)  # rows of RGBRGB…: quick for NumPy
    words = rng.integers(0, 2**64 - 1, picture.size // 8 + 1, np.uint64, endpoint=True)  # the quickest random bytes
    grain = words.view(np.uint8)[:picture.size].reshape(picture.shape)
    return cv2.add(picture, cv2.LUT(grain, GAUSSIAN[None] * rng.uniform(0, 7)), dtype=cv2.CV_8U).reshape(size, size, 3)


# -------------------------------------------------------------------------------------------------------- public
def _check(gestures, image_size, variety, tone=None):
    for gesture in gestures:
        if gesture not in (*GESTURES, NONE):
            raise ValueError(f"A gesture must be one of {', '.join(GESTURES)}, {NONE}. Received: {gesture!r}")
    low, high = SIZE_RANGE
    if isinstance(image_size, bool) or not isinstance(image_size, (int, np.integer)) or not low <= image_size <= high:
        raise ValueError(f"image_size must be an integer from {low} to {high} pixels. Received: {image_size!r}")
    if not 0 < variety <= 1:
        raise ValueError(f"variety must lie in (0, 1]. Received: {variety!r}")
    if tone is not None and not 0 <= tone <= 1:
        raise ValueError(f"tone must lie in [0, 1]. Received: {tone!r}")


def render_background(rng, image_size=96, variety=1.0):
    """A picture without a hand: uint8 RGB (S,S,3).

    rng: np.random.Generator. image_size: S, 32..512. variety: as in render_hand.
    """
    _check((), image_size, variety)
    return _photograph(backgrounds.paint(rng, image_size, variety, _skin_tone), rng)


def render_hand(gesture, rng, image_size=96, variety=1.0, tone=None):
    """One hand, with its forearm, before a background.

    gesture: one of GESTURES, or "none" for a background alone. rng: np.random.Generator. image_size: S, 32..512.
    variety: in (0, 1]. 1 is everything the renderer can; towards 0 hands stand upright, in the middle and of one size,
    seen straight from the back or the palm, before plain surfaces. Light, skin and pose vary always.
    tone: of the skin, from 0, very pale, to 1, very dark; None: any.
    Returns the image, uint8 RGB (S,S,3), and the mask, bool (S,S): skin of hand and bare forearm covers at least half
    of the pixel, before any blur; a sleeve does not count. Raises ValueError for a bad gesture, size, variety or tone.
    """
    _check((gesture,), image_size, variety, tone)
    picture, mask = backgrounds.paint(rng, image_size, variety, _skin_tone), np.zeros((image_size, image_size), bool)
    if gesture == NONE:
        return _photograph(picture, rng), mask
    light = _sample_light(rng)
    box, colour, alpha, skin, scale = _draw_hand(gesture, rng, image_size, light, variety, tone)
    mask[box] = skin
    cover = np.zeros((image_size, image_size), np.float32)
    cover[box] = alpha
    picture = _cast_shadow(picture, cover, light, scale, rng)
    picture[box] = cv2.blendLinear(colour, picture[box], alpha, 1 - alpha)
    return _photograph(picture, rng), mask


def render_hands(gestures, image_size=96, seed=0, variety=1.0, tone=None):
    """Many hands, one for each name in gestures ("none" = background only).

    Returns images, uint8 RGB (N,S,S,3), and masks, bool (N,S,S). Image i depends on seed, i, gestures[i], size, variety
    and tone alone, so a longer list begins with the same images. Raises ValueError as render_hand does.
    """
    gestures = list(gestures)
    _check(gestures, image_size, variety, tone)
    images = np.empty((len(gestures), image_size, image_size, 3), np.uint8)
    masks = np.empty((len(gestures), image_size, image_size), bool)

    # Once a block of this size has been freed, glibc keeps twice as much freed memory at hand; else it would ask the
    # system for fresh pages with nearly every temporary array: a quarter of the time at 224 pixels.
    np.empty(24 << 20, np.uint8)

    def render(i):
        images[i], masks[i] = render_hand(gestures[i], np.random.default_rng([seed, i]), image_size, variety, tone)

    # NumPy and OpenCV let go of the interpreter lock, but Python in between does not: more threads only queue.
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        list(pool.map(render, range(len(gestures))))
    return images, masks
