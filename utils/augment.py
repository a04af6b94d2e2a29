"""Random variation of training images: geometry, new backgrounds, light, and what a camera does to a picture.

With one fixed table behind every hand a network need not look at the hand, and its heat maps show it. So wherever
a mask is known, the hand is put before something else, in another size and at another place.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from utils import data, imaging
from utils.render import backgrounds as surroundings
from utils.render import camera, hands
from utils.storage import store

HIDDEN = 0.2  # share of the class *none* that shows objects of the other classes, blurred away
# The full strength.
ROTATION = 30.0  # degrees, either way
SHEAR = 0.2  # either way
SHIFT = 0.3  # of the image's side, either way: before a camera, hands are often cut off
ZOOM = 0.3  # relative, either way, of an image that keeps its background
EXTENT = (0.4, 1.2)  # of the image's side: the longer side of an object that is put before a new background
GAIN = 0.3  # brightness, relative, either way
TINT = 0.08  # colour cast, relative, standard deviation
GAMMA = 0.5  # of its logarithm, either way
SAME_BLURRED = 0.35  # probability that a part of the object is left in the picture and all else blurred away
WIDER = (0.0, 0.1)  # of the image's side: how far about a hidden object all is blurred away
LEFT = (0.4, 0.9)  # of the width and height of an object, what is left then
BARS = 0.33  # probability of bars behind an object, if robust
N_BACKGROUNDS = 300  # rendered once a training; each use flips and turns one of them anew


def render_backgrounds(image_size: int, *, seed: int, strength: float = 1.0) -> np.ndarray:
    """The backgrounds that one training draws from, busier with the strength: uint8 (300, S, S, 3)."""
    names = [data.NONE] * N_BACKGROUNDS
    return hands.render_hands(names, image_size, seed=seed, variety=max(strength, 0.1))[0]


def augment(
    image: np.ndarray, mask: np.ndarray | None, *, backgrounds: np.ndarray, rng: np.random.Generator,
    strength: float = 1.0, hidden: bool = False, robust: bool = False,
) -> np.ndarray:
    """One random variation of one image.

    Args:
        image: uint8 RGB (S, S, 3).
        mask: bool (S, S), or None where it is not known: then the background stays, as where it is all True. All False
            stands for an image that is all background.
        backgrounds: uint8 (B, S, S, 3).
        strength: of the change in geometry, light and camera, and probability of a new background, 0 to 1.
            Mirrored is every second image at any strength.
        hidden: blur the object away, where its mask is known: what is left does not show its class any more.
        robust: against other rooms and cameras: `backgrounds.bars` in colours of skin now and then, behind an object in
            its own, and `camera.other_camera`.

    Returns:
        float32 (S, S, 3), values 0..255.
    """
    known = mask is not None and mask.any() and not mask.all()
    cut_out = known and (strength == 1 or rng.random() < strength)
    warp = _random_warp(mask if cut_out else np.ones(image.shape[:2], bool), cut_out, strength, rng)
    size = image.shape[1::-1]
    image = cv2.warpAffine(image, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if mask is not None:  # outside the photo there is no hand: the border of the mask is 0, not a copy of its edge
        mask = cv2.warpAffine(mask.astype(np.uint8), warp, size, flags=cv2.INTER_NEAREST)
    if cut_out or (mask is not None and not mask.any() and strength == 1):
        background = np.rot90(backgrounds[rng.integers(len(backgrounds))], rng.integers(4))
        if cut_out and not hidden and rng.random() < SAME_BLURRED:
            background, mask = imaging.blur_away(image), _part_of(mask, rng)
        if robust and rng.random() < BARS:
            background = surroundings.bars(background, _colours(image, mask, rng), rng)
        image = _relight(image, rng, strength / 2)  # hand and room each have a light of their own
        image = replace_background(image, mask > 0, background)
    if hidden and known:
        image = replace_background(imaging.blur_away(image), _about(mask, rng), image)
    image = _relight(image, rng, strength)
    if robust:
        image = camera.other_camera(image, rng=rng, strength=strength)
    return camera.spoil(image, backgrounds, rng=rng, strength=strength).astype(np.float32)


def replace_background(image: np.ndarray, mask: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Keep the image where the mask is True, put the background elsewhere, blend over one pixel at the edge.

    Args:
        image, background: uint8 (S, S, 3).
        mask: bool (S, S).

    Returns:
        uint8 (S, S, 3).
    """
    if mask.dtype != bool or not image.shape == background.shape == (*mask.shape, 3):
        raise ValueError(
            f"Received image {image.shape}, {mask.dtype} mask {mask.shape} and background {background.shape}, expected "
            "(H, W, 3), bool (H, W) and (H, W, 3)."
        )
    opacity = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0)[..., None]
    return np.round(opacity * image + (1 - opacity) * background).astype(np.uint8)


def _colours(image, mask, rng):
    """Some colours of the object; where there is none, of some skin: (n, 3), n at most 3."""
    own = image[mask > 0]
    return hands.skin_colours(rng) if not len(own) else own[rng.integers(len(own), size=3)]


def _part_of(mask, rng):
    """An ellipse somewhere in the object's box: uint8 (S, S)."""
    x, y, *box = cv2.boundingRect(mask)
    size = np.multiply(box, rng.uniform(*LEFT, 2))
    centre = np.array([x, y]) + size / 2 + rng.random(2) * (box - size)
    axes = np.maximum(size / 2, 1)
    return cv2.ellipse(np.zeros_like(mask), (centre.tolist(), (2 * axes).tolist(), 0.0), 1, -1)


def _about(mask, rng):
    """The mask, made wider at random: bool (S, S)."""
    width = 2 * round(len(mask) * rng.uniform(*WIDER)) + 1
    return cv2.dilate(mask, np.ones((width, width), np.uint8)) > 0


def views(
    dataset: data.Dataset, *, backgrounds: np.ndarray, seed: int, strength: float = 1.0, robust: bool = False
) -> np.ndarray:
    """One random variation of each training image, uint8 (N, S, S, 3): as the network saw it."""
    how = {"backgrounds": backgrounds, "rng": np.random.default_rng(seed), "strength": strength, "robust": robust}
    masks = [None] * len(dataset.images) if dataset.masks is None else dataset.masks
    return store.keep(augment(dataset.images[i], masks[i], **how).astype(np.uint8)[None] for i in dataset.train)


def batches(
    dataset: data.Dataset, indices: np.ndarray, *, batch_size: int, steps: int, backgrounds: np.ndarray,
    seed: int, strength: float = 1.0, robust: bool = False, done: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw augmented batches for a training.

    A batch holds every class equally often, but *none* half as often, because a missed object is worse than one seen
    where there is none; and of a class every source (see `data.join`) equally often. A share of *none* shows objects of
    the other classes, blurred away. The same seed gives the same batches.

    Args:
        indices: int (M,), the images of the dataset to draw from.
        backgrounds: as of `render_backgrounds`.
        strength, robust: as of `augment`.
        done: leave out as many batches.

    Yields:
        ``steps`` pairs, less those that are done, of images float32 (batch_size, S, S, 3), values 0..255, and labels
        int32 (batch_size,).
    """
    by_class = _parts_by_class(dataset, indices)
    none = dataset.class_names.index(data.NONE) if data.NONE in dataset.class_names else -1
    order = np.array([*range(len(by_class)), *(k for k in range(len(by_class)) if k != none)])  # each twice, none once
    masks = np.zeros((len(dataset.labels), 1, 1)) if dataset.masks is None else dataset.masks
    covered = np.concatenate([part.mean(axis=(1, 2)) for part in store.parts(masks)])
    hideable = indices[(dataset.labels[indices] != none) & (covered[indices] > 0) & (covered[indices] < 1)]

    def draw(step):
        rng = np.random.default_rng([seed, step])
        first = step * batch_size if batch_size < 2 * len(order) else 0  # too few for all: take turns
        labels = order[(first + rng.permutation(batch_size)) % len(order)]
        hidden = (labels == none) & (rng.random(batch_size) < HIDDEN * strength) & (len(hideable) > 0)
        images, chosen = [], []
        for label, hide in zip(labels, hidden, strict=True):
            parts = by_class[label]
            chosen.append(rng.choice(hideable if hide else parts[rng.integers(len(parts))]))
        for i, hide in zip(chosen, hidden, strict=True):
            mask = None if dataset.masks is None else dataset.masks[i]
            how = {"backgrounds": backgrounds, "rng": rng, "strength": strength, "hidden": hide, "robust": robust}
            images.append(augment(dataset.images[i], mask, **how))
        return np.stack(images), labels.astype(np.int32)

    return prefetch(draw, steps, done)


def prefetch(draw: Callable[[int], object], steps: int, first: int = 0) -> Iterator:
    """Yield ``draw(first)`` to ``draw(steps - 1)``; a thread prepares the next while the caller uses this one."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(draw, first)
        for step in range(first + 1, steps + 1):
            ready = coming.result()
            if step < steps:
                coming = pool.submit(draw, step)
            yield ready


def _parts_by_class(dataset, indices):
    """Of each class a list of its sources, each the int array of its images."""
    sources, parts = dataset.known_sources, {}
    for i in indices:
        parts.setdefault((dataset.labels[i], sources[i]), []).append(i)
    parts = {key: np.array(part) for key, part in parts.items()}
    return [[part for (label, _), part in parts.items() if label == k] for k in range(len(dataset.class_names))]


def _random_warp(mask, cut_out, strength, rng):
    """Affine matrix (2, 3): rotation, zoom, shift and mirroring about the centre of what is in the mask (S, S)."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    side = len(mask)
    angle = strength * np.radians(ROTATION) * rng.uniform(-1, 1)
    if cut_out:
        extent = math.exp(rng.uniform(*np.log(EXTENT)))
        zoom = (extent * side / max(width, height)) ** strength
    else:
        zoom = 1 + strength * ZOOM * rng.uniform(-1, 1)
    mirror = np.array([rng.choice([-1, 1]), 1])
    shear = np.array([[1, strength * SHEAR * rng.uniform(-1, 1)], [0, 1]])
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ shear * mirror
    middle = (side - 1) / 2
    centre = np.array([x + (width - 1) / 2, y + (height - 1) / 2])
    target = middle + (1 - strength) * mirror * (centre - middle)  # at full strength the middle
    shift = strength * SHIFT * side * rng.uniform(-1, 1, 2)
    return np.column_stack([linear, target + shift - linear @ centre])


def _relight(image, rng, strength):
    """Another brightness, colour cast and tone curve: uint8 (S, S, 3)."""
    gain = (1 + strength * GAIN * rng.uniform(-1, 1)) * (1 + strength * TINT * rng.standard_normal(3))
    gamma = math.exp(strength * GAMMA * rng.uniform(-1, 1))
    curve = 255 * (np.arange(256)[:, None] / 255) ** gamma * gain  # (256, 3)
    return cv2.LUT(image, np.clip(curve, 0, 255).round().astype(np.uint8)[None])
