"""Random variation of training images: geometry and light as in the original, and new backgrounds.

With one fixed table behind every hand a network need not look at the hand, and its heat maps show it. So wherever
a mask is known, the hand is put before something else.
"""

import cv2
import numpy as np

from utils import data, hands

# The full strength; rotation, shift and mirroring are those of the original.
ROTATION = 20.0  # degrees, either way
SHIFT = 0.2  # of the image's side, either way
ZOOM = 0.3  # relative, either way
GAIN = 0.3  # brightness, relative, either way
TINT = 0.08  # colour cast, relative, standard deviation
N_BACKGROUNDS = 300  # rendered once a training; each use flips and turns one of them anew


def render_backgrounds(image_size: int, seed: int, strength: float = 1.0) -> np.ndarray:
    """The backgrounds one training draws from, busier with the strength: uint8 (300, S, S, 3)."""
    return hands.render_hands([data.NONE] * N_BACKGROUNDS, image_size, seed, variety=max(strength, 0.1))[0]


def augment(
    image: np.ndarray,
    mask: np.ndarray | None,
    backgrounds: np.ndarray,
    rng: np.random.Generator,
    strength: float = 1.0,
) -> np.ndarray:
    """One random variation of one image.

    Args:
        image: uint8 RGB (S, S, 3).
        mask: bool (S, S), or None where it is not known: then the background stays.
        backgrounds: uint8 (B, S, S, 3).
        strength: of the change in geometry and light, and probability of a new background, 0 to 1.
            Mirrored is every second image at any strength.

    Returns:
        float32 (S, S, 3), values 0..255.
    """
    warp = _random_warp(len(image), strength, rng)
    size = image.shape[1::-1]
    new_background = strength == 1 or rng.random() < strength
    image = cv2.warpAffine(image, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if mask is not None and new_background:
        # Outside the photo there is no hand: the border of the mask is 0, not a copy of its edge.
        mask = cv2.warpAffine(mask.astype(np.uint8), warp, size, flags=cv2.INTER_NEAREST)
        background = np.rot90(backgrounds[rng.integers(len(backgrounds))], rng.integers(4))
        image = data.replace_background(image, mask > 0, background)
    light = (1 + strength * GAIN * rng.uniform(-1, 1)) * (1 + strength * TINT * rng.standard_normal(3))
    return np.clip(image * light.astype(np.float32), 0, 255).astype(np.float32)


def _random_warp(side, strength, rng):
    """Affine matrix (2, 3): rotation, zoom, shift and mirroring about the centre."""
    angle = strength * np.radians(ROTATION) * rng.uniform(-1, 1)
    zoom = 1 + strength * ZOOM * rng.uniform(-1, 1)
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if rng.random() < 0.5:
        linear[:, 0] *= -1
    centre = np.full(2, (side - 1) / 2)
    shift = strength * SHIFT * side * rng.uniform(-1, 1, 2)
    return np.column_stack([linear, centre + shift - linear @ centre])
