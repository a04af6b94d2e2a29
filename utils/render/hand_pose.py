"""The pose of a rendered hand: a skeleton in 3-D wrapped in tapered capsules, and the view of a camera on it.

    gesture ─► joint angles ─► capsules (mm) ─► turn, mirror, project, place ─► capsules (px)

Hand axes: x to the thumb, y to the fingertips, z out of the back of the hand; the origin is the wrist.
Camera axes: x to the right, y up, z to the viewer. Image axes: y down.
"""

import math
from typing import NamedTuple

import numpy as np

# An adult hand, in millimetres. Rows: index, middle, ring, little finger.
KNUCKLES = np.array([[27, 91, 0], [6, 95, 2], [-15, 89, 1], [-33, 78, -3]], float)
CARPALS = np.array([[15, 8, 0], [5, 6, 1], [-6, 6, 1], [-15, 8, -1]], float)
PHALANGES = np.array([[43, 25, 17], [47, 29, 18], [44, 27, 18], [35, 20, 16]], float)
FINGER_RADII = np.array([[10.4, 9.3, 8.2, 6.6], [10.5, 9.5, 8.4, 6.8], [10, 9, 7.9, 6.4], [9, 7.9, 7, 5.6]])
THUMB_ROOT = np.array([20, 20, -8], float)
THUMB_LENGTHS = np.array([[45], [33], [21]], float)  # metacarpal, proximal, distal
THUMB_RADII = np.array([12, 10, 7.4])  # at the last three joints

FOLD = 0.5 * (CARPALS[0] + KNUCKLES[0])  # the skin between thumb and index finger is anchored here
PALM_CAPSULES = [  # start, end, radii; a pose sets the ends of WEBS and BALL and the starts of FOLDS
    *((CARPALS[i], KNUCKLES[i] - (0, 3, 1), 15.5, 12.5) for i in range(4)),
    *((KNUCKLES[i] - (0, 8, 2), KNUCKLES[i], 12, 9) for i in range(4)),
    ((-18, 16, -7), (-31, 56, -6), 16, 13),  # the pad below the little finger
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
    "open": [[0.74, 0.60, -0.30], [0.62, 0.76, -0.20], [0.50, 0.86, -0.10], [0.45, -0.40, 0.80]],
    "beside": [[0.52, 0.80, -0.30], [0.24, 0.96, -0.12], [0.12, 0.99, -0.10], [0.75, -0.10, 0.60]],
    "across": [[0.30, 0.72, -0.63], [-0.48, 0.62, -0.62], [-0.96, 0.08, -0.27], [0.25, 0.30, -0.92]],
    "along": [[0.42, 0.80, -0.40], [0.05, 0.97, -0.24], [-0.25, 0.95, -0.15], [0.90, 0.10, -0.42]],
    "hold": [[0.05, 0.74, -0.67], [-0.68, 0.48, -0.55], [-0.98, 0.05, -0.16], [0.20, 0.35, -0.92]],
}
PALM_LINES = (  # heart, head and life line in the palm: (x, y, z)
    [(-43, 62, -11), (-30, 69, -12), (-16, 71, -13), (-2, 75, -13), (7, 84, -12)],
    [(37, 69, -10), (22, 67, -12), (6, 61, -13), (-10, 53, -14), (-26, 42, -16)],
    [(37, 69, -10), (22, 64, -13), (11, 52, -16), (5, 38, -18), (5, 22, -18)],
)

# Part ids. Bones: three for each finger, then the two free ones of the thumb.
PALM, FOREARM, TENDON, SLEEVE, FIRST_BONE, THUMB_BONE = 1, 2, 3, 4, 5, 17
PART = np.array([PALM] * (len(PALM_CAPSULES) - 4) + [TENDON] * 4 + [*range(FIRST_BONE, FIRST_BONE + 14)])


class Hand(NamedTuple):
    """n tapered capsules, palm first, in hand axes."""

    start: np.ndarray  # (n, 3) mm
    end: np.ndarray  # (n, 3) mm
    radius: np.ndarray  # (n, 2) mm, at start and end
    back: np.ndarray  # (n, 3) unit vectors: out of the back of the hand, or of this finger bone
    part: np.ndarray  # (n,) part ids


def _unit(vectors):
    """Vectors (..., 3) of length 1."""
    return vectors / np.sqrt((vectors * vectors).sum(-1, keepdims=True))


def _sample_pose(gesture, rng):
    """Joint bends (4, 3) and spreads (4,) of the fingers in degrees, and the thumb's four directions (4, 3)."""
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
        spreads = (rng.uniform(-1, 3) if rng.random() < 0.2 else rng.uniform(3, 14)) * np.array([1, 0.1, -0.75, -1.7])
        thumbs, mix = ("open", "beside"), rng.beta(0.7, 1)
    directions = (1 - mix) * np.array(THUMBS[thumbs[0]]) + mix * np.array(THUMBS[thumbs[1]])
    return bends, spreads + rng.normal(0, 1.5, 4), _unit(directions + rng.normal(0, 0.05, (4, 3)))


def _rare_pose(gesture, rng):
    """As `_sample_pose`, in the ways that are seen less often: loose fists, fingers together, the thumb anywhere."""
    fist = np.array((78, 100, 52)) + rng.normal(0, 9, 3) + rng.normal(0, 7, (4, 3))
    straight = np.abs(rng.normal((4, 6, 4), (5, 6, 4), (4, 3)))
    if gesture == "gu":
        bends, spreads = fist, rng.uniform(0, 1) * np.array([-2, 0, 3, 6])
        thumbs = ("across", "along", "beside", "open")
    elif gesture == "choki":
        bends = np.concatenate([straight[:2], fist[2:]])
        spreads = rng.uniform(0.15, 1.1) * np.array([18, -14, 2, 6])
        thumbs = ("hold", "across", "beside", "open")
    else:
        bends = straight + rng.beta(0.5, 2) * 30 * np.array([1, 1.1, 0.6])
        spreads = rng.uniform(-1, 6) * np.array([1, 0.1, -0.75, -1.7])
        thumbs = ("across", "along", "beside", "open")
    one, other = rng.choice(len(thumbs), 2, p=(0.3, 0.2, 0.3, 0.2))
    mix = rng.beta(0.5, 0.5)
    directions = (1 - mix) * np.array(THUMBS[thumbs[one]]) + mix * np.array(THUMBS[thumbs[other]])
    return bends, spreads + rng.normal(0, 1, 4), _unit(directions + rng.normal(0, 0.07, (4, 3)))


def build_hand(gesture: str, rng: np.random.Generator, *, rare: bool = False) -> Hand:
    """A random hand in the pose of a gesture."""
    bends, spreads, thumb = (_rare_pose if rare else _sample_pose)(gesture, rng)
    thick = rng.uniform(0.95, 1.22) * (1.06 if gesture == "gu" else 1.0)  # bent fingers bulge
    # Fingers: bend b turns a bone from the finger's direction towards the palm.
    bend, spread = np.radians(np.cumsum(bends, 1))[..., None], np.radians(spreads)
    forward = np.stack([np.sin(spread), np.cos(spread), 0 * spread], 1)[:, None]  # (4, 1, 3)
    along = np.cos(bend) * forward - np.sin(bend) * np.array(BACK)  # (4, 3, 3): finger, bone, axis
    back = np.sin(bend) * forward + np.cos(bend) * np.array(BACK)
    lengths = PHALANGES * rng.normal(1, 0.05) * rng.normal(1, 0.025, (4, 1))
    ends = KNUCKLES[:, None] + np.cumsum(along * lengths[..., None], 1)
    starts = ends - along * lengths[..., None]
    finger_radii = np.stack([FINGER_RADII[:, :3], FINGER_RADII[:, 1:]], -1)  # (4, 3, 2)
    thumb_ends = THUMB_ROOT + np.cumsum(thumb[:3] * THUMB_LENGTHS, 0)
    thumb_back = _unit(thumb[3] - (thumb[1:3] @ thumb[3])[:, None] * thumb[1:3])
    thumb_radii = np.stack([THUMB_RADII[:2], THUMB_RADII[1:]], 1)
    palm_start, palm_end = PALM_START.copy(), PALM_END.copy()
    palm_end[WEBS] = KNUCKLES + 13 * along[:, 0] - 2 * back[:, 0]
    palm_end[BALL] = thumb_ends[0]
    palm_start[FOLDS] = THUMB_ROOT + np.outer((30, 40), thumb[0])
    return Hand(
        start=np.concatenate([palm_start, starts.reshape(12, 3), thumb_ends[:2]]),
        end=np.concatenate([palm_end, ends.reshape(12, 3), thumb_ends[1:]]),
        radius=thick * np.concatenate([PALM_RADII, finger_radii.reshape(12, 2), thumb_radii]),
        back=np.concatenate([np.tile(BACK, (len(PALM_START), 1)), back.reshape(12, 3), thumb_back]), part=PART,
    )


class View(NamedTuple):
    """The capsules of hand, forearm and sleeve as the camera sees them, in the order they are drawn."""

    ends: np.ndarray  # (m, 2, 4): start and end; x, y, z, radius in pixels, y down
    back: np.ndarray  # (m, 3) in camera axes
    part: np.ndarray  # (m,)
    palm_lines: list  # of (k, 2) x, y in pixels
    scale: float  # pixels per millimetre


def _rotation(yaw, pitch, roll):
    """Hand axes to camera axes (3, 3): degrees about y, then x, then z."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(np.radians([yaw, pitch, roll])), np.sin(np.radians([yaw, pitch, roll]))
    about_y = np.array([[ca, 0, sa], [0, 1, 0], [-sa, 0, ca]])
    about_x = np.array([[1, 0, 0], [0, cb, -sb], [0, sb, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def _sample_view(gesture, rng, variety, rare):
    """Rotation from hand to camera axes (3, 3) and the direction of the forearm in camera axes (3,)."""
    any_way = rng.random() < (0.6 if rare else 0.35 * variety)  # sideways, or downward
    roll = variety * (rng.uniform(-180, 180) if any_way else min(max(rng.normal(0, 18), -40), 40))
    if gesture == "gu" and rng.random() < 0.33 * variety:  # a fist towards the camera, the back of the hand up
        rotation = _rotation(180 + rng.normal(0, 14), rng.uniform(38, 78), roll / 2)
        arm = 0.8 * _unit(rotation[:, 1] * (-1, -1, -0.3)) + (rng.normal(0, 0.9), -0.8, -0.2)
    else:
        turned = rng.random() < (0.45 if rare and gesture != "pa" else 0.3)  # to the side, and a little past edge-on
        yaw = variety * (rng.uniform(-105, 105) if turned else rng.normal(0, 18))
        rotation = _rotation(180 * rng.integers(2) + yaw, variety * rng.normal(0, 13), roll)
        arm = rotation[:, 1] * (-1, -1, -0.4) + math.sin(math.radians(rng.normal(0, 10))) * rotation[:, 0]
    return rotation, _unit(arm)


def _build_arm(rotation, arm, rng, rare):
    """The forearm's capsules in camera axes: start (k, 3), end (k, 3), radius (k, 2), part (k,); a sleeve is last.

    What is rare is a watch, a short sleeve, or a long one.
    """
    side = _unit(rotation[:, 0] - (rotation[:, 0] @ arm) * arm)
    start, end = np.outer((-10, 10), side) - 4 * arm, np.outer((-19, 19), side) + FOREARM_LENGTH * arm
    radius, part = rng.uniform(0.9, 1.12) * np.array([[19, 34], [19, 34]]), [FOREARM] * 2
    if rng.random() < (0.6 if rare else 0.25):
        watch = rare and rng.random() < 0.2
        cuff = rng.uniform(0 if rare else 10, 60 if watch else 150)
        stop = cuff + 20 if watch else FOREARM_LENGTH
        start, end = np.vstack([start, cuff * arm]), np.vstack([end, stop * arm])
        wide = [30 + cuff / 16] * 2 if watch else [36 + cuff / 16, 65]
        radius, part = np.vstack([radius, wide]), part + [SLEEVE]
    return start, end, radius, part


def take_view(
    hand: Hand, gesture: str, rng: np.random.Generator, *, width: int, height: int, variety: float, rare: bool = False
) -> View:
    """Turn, mirror, scale and place a hand on a canvas of width × height pixels; variety as in `hands.render_hand`."""
    rotation, arm = _sample_view(gesture, rng, variety, rare)
    arm_start, arm_end, arm_radius, arm_part = _build_arm(rotation, arm, rng, rare)
    mirror = np.array([2 * rng.integers(2) - 1, 1, 1])  # left or right hand
    turn = rotation.T * mirror  # row vectors: points @ turn
    starts = np.concatenate([arm_start * mirror, hand.start @ turn])
    ends = np.stack([starts, np.concatenate([arm_end * mirror, hand.end @ turn])], 1)  # (m, 2, 3)
    radius = np.concatenate([arm_radius, hand.radius])[..., None]
    distance = rng.uniform(400, 1200)  # of the camera, mm

    def look(points):
        """Perspective: x, y in mm at the wrist's distance, z as it is, and the magnification."""
        near = np.clip(1 / (1 - points[..., 2:] / distance), 0.6, 1.8)
        return np.concatenate([points[..., :2] * near, points[..., 2:], near], -1)

    seen = look(ends)
    joints = seen[len(arm_part) :, :, :2].reshape(-1, 2)
    low, high = joints.min(0) - 10, joints.max(0) + 10
    usual, *spread = (0.75, 0.35, 0.65, 0.85) if gesture == "gu" else (0.95, 0.45, 0.8, 1.1)
    share = usual + variety * (rng.triangular(*spread) - usual)  # of the frame
    scale = float(share * min(width, height) / (high - low).max())
    centre = np.array([width, height]) * (0.5 + np.clip(rng.normal(0, 0.1, 2), -0.2, 0.2) * (1.3 - share) * variety)
    to_pixels, origin = np.array([scale, -scale]), centre - (low + high) / 2 * (scale, -scale)
    seen[..., 3:] *= radius * scale
    seen[..., 2] *= scale
    seen[..., :2] = seen[..., :2] * to_pixels + origin
    lines = [look(np.array(line, float) @ turn)[:, :2] * to_pixels + origin for line in PALM_LINES]
    back = np.concatenate([np.tile(BACK @ turn, (len(arm_part), 1)), hand.back @ turn])
    part = np.concatenate([arm_part, hand.part])
    return View(ends=seen, back=back, part=part, palm_lines=lines, scale=scale)
