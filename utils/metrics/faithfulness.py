"""Is a heat map faithful: what does the network say when the map's hot pixels are taken away, or when they alone stay?

Each function asks ``predict``, any function images (n, H, W, 3) → scores (n, K), best probabilities. It is handed at
most `BATCH_SIZE` images at a time, of the dtype and range of values of ``images``; `probabilities` makes one of an
explainer. ``heatmaps`` are float (N, H, W), ``class_ids`` int (N,): the class that is explained. `metrics.ranks` orders
the pixels by heat; a flat map, such as one of zeros, has no hot ones. Results are float (N,), one value per image. All
raise ValueError where shapes do not fit.
"""

import functools
from collections.abc import Callable
from itertools import islice

import cv2
import numpy as np
from scipy import sparse
from scipy.integrate import trapezoid
from scipy.linalg import solveh_banded

from utils import imaging, metrics

BATCH_SIZE = 64
PERCENTILES = (10, 30, 50, 70, 90)
SHARES = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3)  # of an image, for objects of any size

Predict = Callable[[np.ndarray], np.ndarray]


def probabilities(explainer, scale: float = 30.0) -> Predict:
    """``predict`` of a `FasterGradCAM` or a `runtime.Explainer`: see `runtime.Explanation.probabilities`."""
    return lambda images: explainer.explain(images).probabilities(scale)


def keep_and_delete(
    predict: Predict, images: np.ndarray, heatmaps: np.ndarray, class_ids: np.ndarray, *, share: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """Does the class stay the best one when only the hottest ``share`` is left; when that share is gone?

    A faithful map has a high mean of the first and a low mean of the second. Deleted pixels are replaced by those of
    the blurred image (`imaging.blur_away`). Every map gets the same number of pixels, but of a flat map nothing is kept
    and nothing is deleted. ``class_ids`` are the best classes of the whole images; keep and delete, float (N,), are
    each 1 where they have the highest score, else 0.
    """
    images, heatmaps, class_ids = _check(images, heatmaps, class_ids)
    hot = metrics.hottest(heatmaps, share)[..., None]
    blurred = (imaging.blur_away(image.astype(np.float32)) for image in images)
    pairs = ((np.where(h, x, b), np.where(h, b, x)) for h, x, b in zip(hot, images, blurred, strict=True))
    _, is_best = _ask(predict, pairs, class_ids, images.dtype)
    keep, delete = is_best.T.astype(float)
    return keep, delete


def insertion_auc(
    predict: Predict, images: np.ndarray, heatmaps: np.ndarray, class_ids: np.ndarray, *, n_steps: int = 24,
    sigma: float = 5.0,
) -> np.ndarray:
    """Insertion (RISE, arXiv 1806.07421): mean score while the pixels enter a blurred copy, the hottest first.

    The area under the score over the share of pixels inserted, by the trapezoidal rule; high is faithful. For a flat
    map it is the mean of the scores of the copy and of the image, as if each pixel counted the same. The pixels enter
    in ``n_steps`` equal parts. The Gaussian of ``sigma`` is cut off at σ: 11 x 11 pixels for the paper's 5. That is
    meant for 224 x 224; at 96 x 96 a network may still recognise the copy.

    Example:
        >>> images, heat = np.zeros((2, 16, 16, 3), np.float32), np.zeros((2, 16, 16))
        >>> images[:, 8, 8], heat[0, 8, 8], heat[1, 0, 0] = 255, 1, 1  # only the first map is faithful
        >>> insertion_auc(lambda images: images[:, 8, 8, :1] / 255, images, heat, np.zeros(2, int)).round(2).tolist()
        [0.98, 0.57]
    """
    size, asked = (2 * round(sigma) + 1,) * 2, (images, heatmaps, class_ids)
    return _auc(predict, asked, n_steps, lambda image: (cv2.GaussianBlur(np.float32(image), size, sigma), image))


def deletion_auc(
    predict: Predict, images: np.ndarray, heatmaps: np.ndarray, class_ids: np.ndarray, *, n_steps: int = 24
) -> np.ndarray:
    """Deletion (RISE, arXiv 1806.07421): mean score while the pixels are set to 0, the hottest first; low is faithful.

    As `insertion_auc`. 0 is black in images of 0..255; in the authors' own code, whose images are standardised, it is
    the mean colour of their data set.
    """
    return _auc(predict, (images, heatmaps, class_ids), n_steps, lambda image: (image, np.zeros_like(image)))


def road(
    predict: Predict, images: np.ndarray, heatmaps: np.ndarray, class_ids: np.ndarray, *,
    percentiles: tuple[float, ...] = PERCENTILES, noise: float = 2.55, seed: int = 0,
) -> np.ndarray:
    """ROAD (arXiv 2202.00449): how much more the hottest pixels matter than the coldest, when they are imputed.

    (score without the least relevant − score without the most relevant pixels) / 2, mean over the percentiles: in
    [-0.5, 0.5] for probabilities, about 0 for a random order and 0 for a flat map. About 0.1 s per image of 96 x 96.
    ``percentiles``, each in (0, 100), are the percent of the pixels removed; ``noise`` is the standard deviation of the
    Gaussian noise on imputed pixels: 0.01 of 0..255.
    """
    images, heatmaps, class_ids = _check(images, heatmaps, class_ids)
    if not percentiles or min(percentiles) <= 0 or max(percentiles) >= 100:
        raise ValueError(f"Percentiles must lie between 0 and 100, at least one. Received: {percentiles}")
    n_pixels, rng = heatmaps[0].size, np.random.default_rng(seed)
    counts = [round(n_pixels * percentile / 100) for percentile in percentiles]

    def imputed(image, places):
        for count in counts:
            for removed in (places >= n_pixels - count, places < count):
                grain = noise * rng.standard_normal(image.shape) if noise else 0
                yield np.where(removed[..., None], impute(image, removed) + grain, image)

    scores, _ = _ask(predict, map(imputed, images, metrics.ranks(heatmaps)), class_ids, images.dtype)
    coldest, hottest = scores.reshape(len(images), -1, 2).mean(axis=1).T
    return np.where(metrics.is_flat(heatmaps), 0, (coldest - hottest) / 2)


def impute(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Linear imputation (arXiv 2202.00449): each removed pixel becomes the weighted mean of its eight neighbours.

    Direct neighbours weigh 1/6, diagonal ones 1/12, those outside of the image nothing. Removed pixels depend on each
    other: a banded linear system. ``removed`` is bool (H, W) and leaves a pixel of the image; float64 (H, W, 3).
    """
    pixels, gone = image.reshape(removed.size, -1).astype(np.float64), removed.ravel()
    if gone.all():
        raise ValueError("At least one pixel must stay, so that the others can be imputed.")
    if gone.any():
        rows = _neighbour_weights(*removed.shape)[gone]
        system = sparse.diags_array(rows.sum(axis=1)) - rows[:, gone]  # symmetric, positive definite
        row, column, values = sparse.find(sparse.tril(system))
        bands = np.zeros(((row - column).max() + 1, gone.sum()))
        bands[row - column, column] = values
        pixels[gone] = solveh_banded(bands, rows[:, ~gone] @ pixels[~gone], lower=True)
    return pixels.reshape(image.shape)


def embedding_loss(
    embed: Callable[[np.ndarray], np.ndarray], images: np.ndarray, heatmaps: np.ndarray, *,
    shares: tuple[float, ...] = SHARES,
) -> np.ndarray:
    """How far an image's embedding turns when its hottest parts are blurred away: high is faithful.

    1 − cosine of the embeddings before and after, mean over the ``shares`` of the pixels, each in (0, 1]; 0 for a flat
    map. ``embed`` is a function images (n, H, W, 3) → embeddings (n, D), of any length. It is deletion, asked of the
    embedding: scores of classes hardly change as long as something of the object is left.

    Example:
        >>> images, heat = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8))
        >>> images[:, 2, 2], heat[0, 2, 2], heat[1, 6, 6] = 255, 1, 1  # only the first map is faithful
        >>> embed = lambda images: np.stack([images[:, 2, 2, 0], np.full(len(images), 100)], axis=1)
        >>> [one > 0.1 for one in embedding_loss(embed, images, heat, shares=(0.02,)).tolist()]
        [True, False]
    """
    if not shares or min(shares) <= 0 or max(shares) > 1:
        raise ValueError(f"Shares must lie in (0, 1], at least one. Received: {shares}")
    images, heatmaps, own = _check(images, heatmaps, np.arange(len(images)))
    counts = np.maximum(np.round(np.multiply(shares, heatmaps[0].size)), 1)

    def unit(batch):
        embeddings = np.asarray(embed(batch), np.float64)
        return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)

    def blurred(image, places):
        blurred_away = imaging.blur_away(image.astype(np.float32))
        return (np.where((places < count)[..., None], blurred_away, image) for count in counts)

    whole = np.concatenate([unit(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)])
    variants = map(blurred, images, metrics.ranks(heatmaps))
    cosines, _ = _ask(lambda batch: unit(batch) @ whole.T, variants, own, images.dtype)
    return np.where(metrics.is_flat(heatmaps), 0, 1 - cosines.mean(axis=1))


def drop_and_increase(
    predict: Predict, images: np.ndarray, heatmaps: np.ndarray, class_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average drop and increase in confidence (Grad-CAM++, arXiv 1710.11063), image by image.

    Y is the score of the image, O that of the image times its heat map. The drop, max(0, Y − O) / Y, in [0, 1] for
    probabilities, NaN where Y ≤ 0, has a low mean for faithful maps; the increase, 1 where O > Y, else 0, a high one.
    """
    images, heatmaps, class_ids = _check(images, heatmaps, class_ids)
    pairs = ((image, image * heat[..., None]) for image, heat in zip(images, heatmaps, strict=True))
    scores, _ = _ask(predict, pairs, class_ids, images.dtype)
    whole, explained = scores.T
    loss = np.maximum(whole - explained, 0)
    return np.divide(loss, whole, out=np.full(len(loss), np.nan), where=whole > 0), (explained > whole).astype(float)


def _check(images, heatmaps, class_ids):
    """All three as arrays; ValueError where their shapes do not fit."""
    images, heatmaps, class_ids = np.asarray(images), metrics.check_heatmaps(heatmaps), np.asarray(class_ids)
    if images.shape != (*heatmaps.shape, 3):
        raise ValueError(f"Expected images of shape {(*heatmaps.shape, 3)}, as the maps. Received: {images.shape}")
    if class_ids.shape != heatmaps.shape[:1] or not np.issubdtype(class_ids.dtype, np.integer):
        received = f"{class_ids.dtype} of shape {class_ids.shape}"
        raise ValueError(f"Expected an integer class id for each of the {len(images)} images. Received: {received}")
    return images, heatmaps, class_ids


@functools.lru_cache(4)
def _neighbour_weights(height, width):
    """Weight of each pixel's neighbours in its mean: sparse, symmetric (H·W, H·W)."""
    across, down = (sparse.diags_array([1.0, 1.0], offsets=[-1, 1], shape=(side, side)) for side in (width, height))
    return sparse.csr_array(sparse.kronsum(across, down) / 6 + sparse.kron(down, across) / 12)


def _auc(predict, asked, n_steps, ends):
    """Mean score while ends(image)[0] turns into ends(image)[1], the hottest pixels first."""
    images, heatmaps, class_ids = _check(*asked)
    if n_steps < 1:
        raise ValueError(f"Expected at least one step. Received: {n_steps}")
    counts = np.linspace(0, heatmaps[0].size, n_steps + 1).round()
    def turned(image, places):
        before, after = ends(image)
        return (np.where((places < count)[..., None], after, before) for count in counts)

    scores, _ = _ask(predict, map(turned, images, metrics.ranks(heatmaps)), class_ids, images.dtype)
    area = trapezoid(scores, counts / counts[-1], axis=1)
    return np.where(metrics.is_flat(heatmaps), (scores[:, 0] + scores[:, -1]) / 2, area)


def _ask(predict, variants, class_ids, dtype):
    """Of each image's V variants the score of the class (N, V), and whether it is the best; a batch at a time."""
    pairs = ((variant, own) for group, own in zip(variants, class_ids, strict=True) for variant in group)
    scores, is_best = [], []
    while batch := list(islice(pairs, BATCH_SIZE)):
        images, own = map(np.array, zip(*batch, strict=True))
        if np.issubdtype(dtype, np.integer):
            images = images.round().clip(0, np.iinfo(dtype).max)
        result = np.asarray(predict(images.astype(dtype)))
        if result.ndim != 2 or len(result) != len(images):
            raise ValueError(f"predict must return scores ({len(images)}, K). Received: shape {result.shape}")
        if own.min() < 0 or own.max() >= result.shape[1]:
            raise ValueError(f"Class ids must lie in 0..{result.shape[1] - 1}. Received: {own.min()}..{own.max()}")
        scores.append(result[np.arange(len(own)), own].astype(np.float64))
        is_best.append(result.argmax(axis=1) == own)
    return [np.concatenate(values).reshape(len(class_ids), -1) for values in (scores, is_best)]
