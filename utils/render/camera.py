"""A camera's effects on a picture: blur, motion, exposure, noise, JPEG.

A picture is float32 RGB (S, S, 3) of about 0..255, not yet clipped; an image is uint8 RGB (S, S, 3).
"""

import math
from statistics import NormalDist

import cv2
import numpy as np

CHANCES = (0.3, 0.1, 0.25, 0.25, 0.4, 0.2, 0.25)  # of the changes of `other_camera`, in its order
CHANCE = 0.3  # probability of each effect of `spoil` at full strength
GAUSSIAN = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)  # of a random byte


def gauss(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, σ in pixels, with a kernel no wider than the eye needs."""
    return cv2.GaussianBlur(values, (2 * math.ceil(2.2 * sigma) + 1,) * 2, sigma)


def motion_blur(picture: np.ndarray, length: float, angle: float) -> np.ndarray:
    """Smear a picture by movement during the exposure, ``length`` pixels to either side, angle in radians."""
    middle = math.ceil(length)
    dx, dy = round(length * math.cos(angle)), round(length * math.sin(angle))
    kernel = np.zeros((2 * middle + 1,) * 2, np.float32)
    cv2.line(kernel, (middle - dx, middle - dy), (middle + dx, middle + dy), 1.0)
    return cv2.filter2D(picture, -1, kernel / kernel.sum())


def photograph(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, white balance, motion or blur, noise: the picture, which is used up, as an image."""
    size = len(picture)
    gain = (rng.uniform(0.7, 1.2) * rng.normal(1, 0.04, 3)).astype(np.float32)
    chance = rng.random()
    if chance < 0.15:
        picture = motion_blur(picture, rng.uniform(0.015, 0.05) * size, rng.uniform(0, math.pi))
    elif chance < 0.65:
        picture = gauss(picture, rng.uniform(0.3, 0.9) * size / 96)
    picture = picture.reshape(size, -1)
    picture *= np.tile(gain, size)  # rows of RGBRGB…: quick for NumPy
    # The quickest noise: random bytes, eight to a number, each turned into a Gaussian value by a table.
    words = rng.integers(0, 2**64 - 1, picture.size // 8 + 1, np.uint64, endpoint=True)
    grain = words.view(np.uint8)[: picture.size].reshape(picture.shape)
    return cv2.add(picture, cv2.LUT(grain, GAUSSIAN[None] * rng.uniform(0, 7)), dtype=cv2.CV_8U).reshape(size, size, 3)


def spoil(image: np.ndarray, backgrounds: np.ndarray, *, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Blur or motion, noise, JPEG and a patch in front of the camera, each now and then: uint8 (S, S, 3)."""
    side = len(image)
    blurred, noisy, compressed, covered = rng.random(4) < strength * CHANCE
    if covered:
        width, height = (side * rng.uniform(0.1, 0.35, 2)).astype(int)
        x, y = rng.integers(0, (side - width, side - height))
        other = backgrounds[rng.integers(len(backgrounds))]
        image[y : y + height, x : x + width] = other[y : y + height, x : x + width]
    if blurred and rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), side * rng.uniform(0.005, 0.015))
    elif blurred:
        image = motion_blur(image, side * rng.uniform(0.01, 0.06), rng.uniform(0, math.pi))
    if noisy:
        image = np.clip(image + rng.normal(0, rng.uniform(2, 12), image.shape), 0, 255).astype(np.uint8)
    if compressed:
        _, file = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 80))])
        image = cv2.imdecode(file, cv2.IMREAD_COLOR)
    return image


def other_camera(image: np.ndarray, *, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """The image as another camera in another light might give it, uint8 (S, S, 3): each change happens now and then.

    Coloured light from a side, too much of it, haze, white balance, saturation down to grey, coarse pixels, sharpening:
    all of it depends on the room and the camera, so nothing of it may tell what an image shows.

    Example:
        >>> image = np.full((32, 32, 3), (180, 120, 90), np.uint8)
        >>> other_camera(image, rng=np.random.default_rng(1)).shape
        (32, 32, 3)
    """
    side = len(image)
    lit, bright, hazy, cast, dyed, coarse, sharp = rng.random(len(CHANCES)) < strength * np.array(CHANCES)
    picture = image.astype(np.float32)
    if lit:
        angle = rng.uniform(0, 2 * math.pi)
        ramp = np.linspace(-1, 1, side, dtype=np.float32)
        ramp = math.cos(angle) * ramp + math.sin(angle) * ramp[:, None]
        picture *= np.exp(ramp[..., None] * rng.normal(0, 0.3) + ramp[..., None] * rng.normal(0, 0.12, 3))
    if bright:
        picture *= rng.uniform(1.1, 1.9)
    if hazy:
        picture += rng.uniform(0.2, 0.7) * (rng.uniform(90, 255) * np.exp(rng.normal(0, 0.05, 3)) - picture)
    if cast:
        picture *= np.exp(rng.normal(0, 0.15, 3))
    if dyed:
        grey = picture @ np.float32([0.299, 0.587, 0.114])
        picture = grey[..., None] + rng.uniform(0, 1.7) * (picture - grey[..., None])
    picture = picture.astype(np.float32)
    if coarse:
        fewer = max(1, round(side * rng.uniform(0.35, 0.8)))
        how = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(3)]
        picture = cv2.resize(picture, (fewer, fewer), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(picture, (side, side), interpolation=how)
    if sharp:
        picture += rng.uniform(0.3, 2) * (picture - gauss(picture, rng.uniform(0.5, 1.5) * side / 96))
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def vary(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A normal image as it might have been taken, too: a little turned, shifted, nearer, lighter. uint8 (S, S, 3)."""
    side = len(image)
    warp = cv2.getRotationMatrix2D(((side - 1) / 2,) * 2, rng.uniform(-5, 5), rng.uniform(0.95, 1.05))
    warp[:, 2] += side * rng.uniform(-0.03, 0.03, 2)
    image = cv2.warpAffine(image, warp, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.clip(image * rng.uniform(0.92, 1.08) + rng.normal(0, 3, 3), 0, 255).astype(np.uint8)
