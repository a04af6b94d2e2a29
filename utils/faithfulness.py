"""Is a heat map faithful: what does the network say when the pixels that the map calls hot are taken away, or left?

Each function asks ``predict``, any function images (n, H, W, 3) → scores (n, K). It is handed batches of at most
`BATCH_SIZE` images of the same dtype and range of values as ``images``; `probabilities` makes one of an explainer.
The measures are meant for probabilities. ``heatmaps`` are float (N, H, W), ``class_ids`` int (N,): the class that is
explained. Which pixels are hottest, ties included, says `metrics.ranks`. Results are float (N,), one value an image.

All raise ValueError where shapes do not fit.
"""

from collections.abc import Callable, Iterable
from itertools import islice

import cv2
import numpy as np

from utils import metrics

BATCH_SIZE = 64

Predict = Callable[[np.ndarray], np.ndarray]


def probabilities(explainer, scale: float = 30.0) -> Predict:
    """``predict`` of a `FasterGradCAM` or a `runtime.Explainer`: softmax of scale · cosine.

    Args:
        scale: of the ArcFace layer that the network was trained with.
    """

    def predict(images):
        logits = scale * explainer.explain(images).scores.astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    return predict


def keep_and_delete(
    predict: Predict, images: np.ndarray, heatmaps: np.ndarray, class_ids: np.ndarray, share: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """Does the class stay the best one when only the hottest quarter is left; when the hottest quarter is gone?

    A faithful map has a high mean of the first and a low mean of the second. What is taken away is replaced by
    `blurred` pixels. Every map is granted the same number of pixels, also one with less heat than that; but a flat map
    names none: nothing is left, nothing is gone.

    Args:
        class_ids: what ``predict`` says of the images: "stay" assumes that it is the best one now.
        share: of the pixels.

    Returns:
        keep, delete: float (N,), each 1 where ``class_ids`` has the highest score, else 0.
    """
    images, heatmaps, class_ids = _check(images, heatmaps, class_ids)
    hot, background = metrics.hottest(heatmaps, share)[..., None], (blurred(image) for image in images)
    pairs = ((np.where(h, x, b), np.where(h, b, x)) for h, x, b in zip(hot, images, background, strict=True))
    _, is_best = _ask(predict, (x for pair in pairs for x in pair), np.repeat(class_ids, 2), images.dtype)
    keep, delete = is_best.reshape(-1, 2).T.astype(float)
    return keep, delete


def blurred(image: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) without its content: blurred by a Gaussian of σ = side / 8, float32."""
    height, width = image.shape[:2]
    return cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigmaX=width / 8, sigmaY=height / 8)


def _check(images, heatmaps, class_ids):
    images, heatmaps, class_ids = np.asarray(images), metrics.check_heatmaps(heatmaps), np.asarray(class_ids)
    if images.shape != (*heatmaps.shape, 3):
        raise ValueError(f"Expected images of shape {(*heatmaps.shape, 3)}, as the maps. Received: {images.shape}")
    if class_ids.shape != heatmaps.shape[:1] or not np.issubdtype(class_ids.dtype, np.integer):
        raise ValueError(
            f"Expected an integer class id for each of the {len(images)} images. "
            f"Received: {class_ids.dtype} of shape {class_ids.shape}"
        )
    return images, heatmaps, class_ids


def _ask(predict: Predict, images: Iterable, class_ids: np.ndarray, dtype: np.dtype):
    """Of M images: the score of the class (M,), and whether it is the best (M,). Holds one batch of them at a time."""
    images, scores, is_best = iter(images), [], []
    for start in range(0, len(class_ids), BATCH_SIZE):
        batch, own = np.stack(list(islice(images, BATCH_SIZE))), class_ids[start : start + BATCH_SIZE]
        if np.issubdtype(dtype, np.integer):
            batch = batch.round().clip(0, np.iinfo(dtype).max)
        result = np.asarray(predict(batch.astype(dtype)))
        if result.ndim != 2 or len(result) != len(batch):
            raise ValueError(f"predict must return scores ({len(batch)}, K). Received: shape {result.shape}")
        if own.min() < 0 or own.max() >= result.shape[1]:
            raise ValueError(f"Class ids must lie in 0..{result.shape[1] - 1}. Received: {own.min()}..{own.max()}")
        scores.append(result[np.arange(len(own)), own].astype(np.float64))
        is_best.append(result.argmax(axis=1) == own)
    return np.concatenate(scores), np.concatenate(is_best)
