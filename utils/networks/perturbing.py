"""Methods that ask the network again: with parts of the image or channels taken away, with noise, in other views.

What one costs more than Grad-CAM, in passes through the network for an image and a layer of C channels:

    Score-CAM    C forward        SS-CAM    `N_NOISES`·C forward      Smooth Grad-CAM++   `N_SAMPLES` more of both
    AblationCAM  C + 1 forward    IS-CAM    `N_STEPS`·C forward       smooth=True         six times the method's own

Everything random comes from one generator, whose seed is `SEED`: the same image has the same map.
"""

from collections.abc import Callable

import numpy as np

from utils.networks import cams, passes
from utils.repro import keras, tf
from utils.runtime import softmax

BATCH_SIZE = 32
SEED = 0
N_NOISES, MASK_NOISE = 8, 0.3  # of SS-CAM; the noise as a share of a map's range
N_STEPS = 10  # of IS-CAM
N_SAMPLES, IMAGE_NOISE = 4, 0.3  # of Smooth Grad-CAM++; the noise as a share of an image's range
BRIGHTNESS = (0.9, 1.0, 1.1)  # of views
METHODS = ("scorecam", "sscam", "iscam", "ablationcam", "smoothgradcam++")


def raw_maps(
    method: str, network: keras.Model, layers: tuple[str, ...], step: Callable, score_function: Callable | None,
    images: np.ndarray, first: dict,
) -> list[np.ndarray]:
    """Raw maps (N, h, w) of each layer by one of `METHODS`.

    Args:
        step: of `passes.gradient_function`.
        images: float32 (N, H, W, 3), of the network's size.
        first: what ``step`` gave for them.
    """
    if method == "smoothgradcam++":
        return smooth_grad_cam(step, images, first)
    what = {"class_ids": first["class_ids"].numpy(), "score_function": score_function}
    pairs = zip(layers, (array.numpy() for array in first["maps"]), strict=True)
    if method == "ablationcam":
        return [ablation_cam(network, images, layer=layer, maps=maps, **what) for layer, maps in pairs]
    return [score_cam(network, images, maps=maps, method=method, **what) for _, maps in pairs]


def score_cam(
    network: keras.Model, images: np.ndarray, *, maps: np.ndarray, class_ids: np.ndarray,
    score_function: Callable | None = None, method: str = "scorecam",
) -> np.ndarray:
    """Score-CAM (arXiv 1910.01279): Σ_c α_c·A_c with α = softmax over c of s(image ∘ mask_c) − s(black image).

    mask_c is A_c, scaled to [0, 1] by its minimum and maximum and resized to the image; a flat channel masks all. It
    multiplies the values at the network's input. The score of the black image is the same for all channels and cancels
    in the softmax. The network sees `BATCH_SIZE` masked images at a time.

    Args:
        images, maps: float32 (N, H, W, 3) of the network's size, and (N, h, w, C).
        class_ids: int (N,), or score_function: scores (n, K) → (n,) in their place.
        method: "scorecam"; "sscam" (arXiv 2006.14255), the mean over `N_NOISES` masks to which Gaussian noise of
            `MASK_NOISE` times the range of A was added; "iscam" (arXiv 2010.03023), the mean over i = 1..n of
            s(i/n · image ∘ mask_c), n = `N_STEPS`.

    Returns:
        Raw maps float32 (N, h, w).
    """
    step, raw_maps = passes.masked_score_function(network, score_function=score_function), []
    for image, own, class_id in zip(images, maps, class_ids, strict=True):
        shares, noise = _masking(method, image.shape[:2], np.ptp(own))
        what = tf.cast(image, tf.float32), tf.constant(class_id, tf.int32), tf.constant(shares), tf.constant(noise)
        chunks = (own[..., c : c + BATCH_SIZE] for c in range(0, own.shape[-1], BATCH_SIZE))
        scores = np.concatenate([step(what[0], tf.constant(chunk), *what[1:]) for chunk in chunks])
        scores[~np.isfinite(scores)] = -np.inf  # float16 may know no score of a black image: no weight
        known = np.isfinite(scores).any()
        raw_maps.append(own @ (softmax(scores) if known else np.zeros_like(scores)))
    return np.stack(raw_maps)


def _masking(method, size, spread):
    """Of each of P passes the share of the image, float32 (P,), and what is added to its masks, (P, H, W)."""
    if method == "iscam":
        shares = np.arange(1, N_STEPS + 1, dtype=np.float32) / N_STEPS
        return shares, np.zeros((N_STEPS, *size), np.float32)
    n_passes, level = (N_NOISES, MASK_NOISE * spread) if method == "sscam" else (1, 0)
    noise = np.random.default_rng(SEED).normal(size=(n_passes, *size)) * level
    return np.ones(n_passes, np.float32), noise.astype(np.float32)


def ablation_cam(
    network: keras.Model, images: np.ndarray, *, layer: str, maps: np.ndarray, class_ids: np.ndarray,
    score_function: Callable | None = None,
) -> np.ndarray:
    """AblationCAM (WACV 2020, doi 10.1109/WACV45572.2020.9093360): Σ_c α_c·A_c with α_c = (s − s_c) / |s|.

    s_c is the score with channel c set to 0. The paper divides by s; its size keeps a map of a negative score from
    being turned. Arguments as of `score_cam`; layer: whose channels are taken away.
    """
    step, raw_maps = passes.ablated_score_function(network, layer, score_function=score_function), []
    n_channels = maps.shape[-1]
    keep = np.concatenate([np.ones((1, n_channels)), 1 - np.eye(n_channels)]).astype(np.float32)
    for image, own, class_id in zip(images, maps, class_ids, strict=True):
        what = tf.cast(image, tf.float32), tf.constant(class_id, tf.int32)
        chunks = (keep[i : i + BATCH_SIZE] for i in range(0, len(keep), BATCH_SIZE))
        whole, *without = np.concatenate([step(*what, tf.constant(chunk)) for chunk in chunks])
        losses = np.divide(whole - np.array(without), abs(whole), where=whole != 0, out=np.zeros(n_channels))
        raw_maps.append(own @ np.where(np.isfinite(losses), losses, 0))  # float16 may know no score of a black image
    return np.stack(raw_maps).astype(np.float32)


def smooth_grad_cam(step: Callable, images: np.ndarray, first: dict) -> list[np.ndarray]:
    """`cams.smooth_gradcam_plus_plus` from `N_SAMPLES` noisy copies, one array (N, h, w) per layer.

    Args:
        step: of `passes.gradient_function`.
        images: float32 (N, H, W, 3); the noise is Gaussian, of `IMAGE_NOISE` times each image's range.
        first: what ``step`` gave for the images as they are.
    """
    level = IMAGE_NOISE * np.ptp(images, axis=(1, 2, 3), keepdims=True)
    noise = np.random.default_rng(SEED).normal(size=(N_SAMPLES, 1, *images.shape[1:]))  # the same for all images
    copies = [tf.cast(images + level * one, tf.float32) for one in noise]
    by_copy = [step(copy, first["class_ids"])["gradients"] for copy in copies]
    found = []
    for maps, gradients in zip(first["maps"], zip(*by_copy, strict=True), strict=True):
        means = [sum(g**power for g in gradients) / N_SAMPLES for power in (1, 2, 3)]
        found.append(cams.smooth_gradcam_plus_plus(maps, *means).numpy())
    return found


def over_views(explain: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """Mean of the maps (..., h, w) of six views, as pytorch-grad-cam's aug_smooth: mirrored or not, `BRIGHTNESS`."""
    images, total = np.asarray(images, np.float32), 0
    for share in BRIGHTNESS:
        total = total + explain(share * images) + explain(share * images[..., ::-1, :])[..., ::-1]
    return total / (2 * len(BRIGHTNESS))
