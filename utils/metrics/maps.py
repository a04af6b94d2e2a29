"""How good is a heat map: localisation against a mask, agreement with another map, anomalies. Needs no network.

Functions take heat maps float (N, H, W) and return one value an image, float (N,), so that the caller can look at the
distribution as well as at the mean; an image whose value is not defined (an empty mask) gets NaN. `pxap`,
`max_box_acc`, `max_box_acc_v2` and the measures of anomaly detection are defined over all images at once and return
one float; there a normal image takes part with an empty mask, and heat need not end at 1. Whether a map is faithful to
the network is asked in `faithfulness`.

All raise ValueError where shapes do not fit, a mask is not bool or a heat map holds NaN.
"""

import cv2
import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

BOX_THRESHOLDS = np.arange(100) / 100  # of a map's own maximum


def heat_in_mask(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of the heat that lies inside the mask, in [0, 1] (energy-based pointing game, arXiv 1910.01279).

    A map of zeros scores 0: it points at nothing.
    """
    heatmaps, masks = _check_masks(heatmaps, masks)
    total = heatmaps.sum(axis=(1, 2), dtype=np.float64)
    inside = np.where(masks, heatmaps, 0).sum(axis=(1, 2), dtype=np.float64)
    share = np.divide(inside, total, out=np.zeros_like(total), where=total > 0)
    return np.where(masks.any(axis=(1, 2)), share, np.nan)


def pointing_game(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """1 where the hottest pixel lies inside the mask, else 0 (arXiv 1608.00507). A map of zeros scores 0."""
    heatmaps, masks = _check_masks(heatmaps, masks)
    flat = heatmaps.reshape(len(heatmaps), -1)
    hottest = flat.argmax(axis=1)
    hit = masks.reshape(len(masks), -1)[np.arange(len(flat)), hottest] & (flat.max(axis=1) > 0)
    return np.where(masks.any(axis=(1, 2)), hit.astype(float), np.nan)


def pixel_ap(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Average precision of the heat as a detector of the mask's pixels, in [0, 1].

    A flat map scores the share of the image that the mask covers.
    """
    heatmaps, masks = _check_masks(heatmaps, masks)
    return np.array([average_precision_score(m.ravel(), h.ravel()) if m.any() else np.nan
                     for h, m in zip(heatmaps, masks, strict=True)])  # fmt: skip


def pxap(heatmaps: np.ndarray, masks: np.ndarray) -> float:
    """PxAP (arXiv 2001.07437): average precision over the pixels of all images together, in [0, 1].

    One threshold must serve all images, so heat has to be comparable between them. Images with an empty mask take
    part: whatever is hot in them is a false alarm. NaN if all masks are empty.
    """
    heatmaps, masks = _check_masks(heatmaps, masks)
    return float(average_precision_score(masks.ravel(), heatmaps.ravel())) if masks.any() else np.nan


def best_iou(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Intersection over union of the mask and the pixels hotter than a threshold, at each map's best threshold ≥ 0.

    All thresholds at which anything changes are tried. Pixels without heat never count as found: a map of zeros
    scores 0.
    """
    heatmaps, masks = _check_masks(heatmaps, masks)
    heat, mask = (array.reshape(len(array), -1) for array in (heatmaps, masks))
    order = np.argsort(-heat, axis=1)
    heat, mask = (np.take_along_axis(array, order, axis=1) for array in (heat, mask))
    inside = mask.cumsum(axis=1)  # of the k + 1 hottest pixels
    union = mask.sum(axis=1, keepdims=True) + np.arange(1, mask.shape[1] + 1) - inside
    # A threshold separates the k-th pixel from the next only where the next is colder.
    separable = (np.diff(heat, axis=1, append=-np.inf) < 0) & (heat > 0)
    best = np.where(separable, inside / union, 0).max(axis=1)
    return np.where(masks.any(axis=(1, 2)), best, np.nan)


def max_box_acc(heatmaps: np.ndarray, masks: np.ndarray, min_iou: float = 0.5) -> float:
    """MaxBoxAcc (arXiv 2001.07437): share of images whose object is found, at the best threshold for all images.

    Found: the box round the largest connected region hotter than the threshold and the box round the mask have an
    intersection over union of at least ``min_iou``. Thresholds are `BOX_THRESHOLDS` of each map's own maximum. Images
    with an empty mask are left out; NaN if no image remains.
    """
    return _share_found(_box_ious(heatmaps, masks)[0], min_iou)


def max_box_acc_v2(heatmaps: np.ndarray, masks: np.ndarray, min_ious: tuple[float, ...] = (0.3, 0.5, 0.7)) -> float:
    """MaxBoxAccV2 (arXiv 2001.07437): as `max_box_acc`, with the best box of all regions, mean over ``min_ious``.

    Each of ``min_ious`` has its own best threshold.
    """
    ious = _box_ious(heatmaps, masks)[1]
    return float(np.mean([_share_found(ious, min_iou) for min_iou in min_ious]))


def image_auroc(scores: np.ndarray, anomalous: np.ndarray) -> float:
    """Chance that a defective image scores higher than a normal one, ties count one half. NaN if one kind is missing.

    Args:
        scores: float (N,), high for anomalous.
        anomalous: bool (N,).
    """
    scores, anomalous = _check_scores(scores, anomalous)
    return float(roc_auc_score(anomalous, scores)) if 0 < anomalous.sum() < len(anomalous) else np.nan


def pixel_auroc(heatmaps: np.ndarray, masks: np.ndarray) -> float:
    """Chance that a pixel of a defect is hotter than another one, over the pixels of all images together."""
    heatmaps, masks = _check_masks(heatmaps, masks)
    return image_auroc(heatmaps.ravel(), masks.ravel())


def aupro(heatmaps: np.ndarray, masks: np.ndarray, max_fpr: float = 0.3) -> float:
    """Area under the per-region overlap, in [0, 1] (Bergmann et al., MVTec AD, IJCV 2021).

    At each threshold: the overlap, the share of a connected region (8 neighbours) that is hotter, mean over the regions
    of all masks, so that a small defect counts as much as a large one; over the share of pixels without a defect that
    are hotter, up to ``max_fpr``, by the trapezoidal rule. NaN where there is no region, or nothing but regions.
    """
    heatmaps, masks = _check_masks(heatmaps, masks)
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must lie in (0, 1]. Received: {max_fpr!r}")
    n_regions, overlap = 0, np.zeros(masks.shape)  # what each pixel adds to the sum of the regions' overlaps
    for mask, gain in zip(masks, overlap, strict=True):
        labels, areas = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[1:3]
        gain[mask] = 1 / areas[labels[mask], cv2.CC_STAT_AREA]
        n_regions += len(areas) - 1
    if not n_regions or masks.all():
        return np.nan
    heat = heatmaps.ravel()
    order = np.argsort(-heat, kind="stable")
    separable = np.append(np.diff(heat[order]) < 0, True)  # no threshold parts what is equally hot
    pro = np.append(0, overlap.ravel()[order].cumsum()[separable] / n_regions)
    fpr = np.append(0, (~masks).ravel()[order].cumsum()[separable] / (~masks).sum())
    within = fpr <= max_fpr
    pro = np.append(pro[within], np.interp(max_fpr, fpr, pro))
    return float(auc(np.append(fpr[within], max_fpr), pro) / max_fpr)


def best_f1(scores: np.ndarray, anomalous: np.ndarray) -> tuple[float, float]:
    """The threshold, from which on a score counts as anomalous, of the highest F1 score, and that score.

    Args:
        scores, anomalous: of images, as in `image_auroc`, or of pixels, ``heatmaps.ravel()`` and ``masks.ravel()``.

    Returns:
        NaN and NaN where nothing is anomalous.
    """
    scores, anomalous = _check_scores(scores, anomalous)
    if not anomalous.any():
        return np.nan, np.nan
    precision, recall, thresholds = precision_recall_curve(anomalous, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = f1[:-1].argmax()  # the last point, recall 0, has no threshold
    return float(thresholds[best]), float(f1[best])


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) with as many others, or with one (1, 4): float (N,)."""
    boxes, others = np.asarray(boxes), np.asarray(others)
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    shared = sides.clip(0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (others[:, 2:] - others[:, :2]).prod(axis=1)
    return shared / (areas - shared)


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """Boxes round masks bool (N, H, W): int (N, 4), x0, y0, x1, y1 in pixels, half open; all 0 of an empty mask."""
    boxes = np.array([cv2.boundingRect(mask.astype(np.uint8)) for mask in masks]).reshape(-1, 4)
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def pearson(heatmaps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Linear correlation of two sets of maps, pixel by pixel, in [-1, 1]. NaN where a map is constant."""
    a, b = (m.reshape(len(m), -1).astype(np.float64) for m in _check_pairs(heatmaps, others))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.full(len(a), np.nan), where=norm > 1e-12)


def spearman(heatmaps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Rank correlation of two sets of maps, pixel by pixel, in [-1, 1]. NaN where a map is constant."""
    heatmaps, others = _check_pairs(heatmaps, others)
    ranked = (rankdata(m.reshape(len(m), -1), axis=1).reshape(m.shape) for m in (heatmaps, others))
    return pearson(*ranked)


def top_iou(heatmaps: np.ndarray, others: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Intersection over union of the `hottest` pixels of two maps, in [0, 1]. NaN where a map is constant.

    Maps that have nothing to do with each other score share / (2 - share) on average: 0.11 at 0.2.
    """
    heatmaps, others = _check_pairs(heatmaps, others)
    a, b = hottest(heatmaps, share), hottest(others, share)
    union = np.maximum((a | b).sum(axis=(1, 2)), 1)
    return np.where(is_flat(heatmaps) | is_flat(others), np.nan, (a & b).sum(axis=(1, 2)) / union)


def hottest(heatmaps: np.ndarray, share: float) -> np.ndarray:
    """The share of pixels that is hottest, the same number in each map: bool (N, H, W). Ties as in `ranks`.

    A flat map, such as one of zeros, names no pixel: all False.
    """
    if not 0 < share <= 1:
        raise ValueError(f"The share of pixels must lie in (0, 1]. Received: {share}")
    heatmaps = check_heatmaps(heatmaps)
    return (ranks(heatmaps) < max(1, round(share * heatmaps[0].size))) & ~is_flat(heatmaps)[:, None, None]


def ranks(heatmaps: np.ndarray) -> np.ndarray:
    """Each pixel's place in the order of heat, 0 the hottest: int (N, H, W), every place taken once.

    Among equally hot pixels, such as the zeros of a map, those nearer to heat come first: those that are hotter in the
    map blurred by a Gaussian of σ = side / 4. What is equal even then, a flat map above all, follows an order that was
    shuffled once for all maps: neither from left to right nor from top to bottom.
    """
    heatmaps = check_heatmaps(heatmaps)
    n, height, width = heatmaps.shape
    shuffled = np.random.default_rng(0).permutation(height * width)
    places = np.empty((n, height * width), np.int32)
    for heat, place in zip(heatmaps.astype(np.float64), places, strict=True):
        heat = (heat - heat.min()) / max(np.ptp(heat), 1e-300)
        near = cv2.GaussianBlur(heat, (0, 0), sigmaX=width / 4, sigmaY=height / 4, borderType=cv2.BORDER_CONSTANT)
        order = np.lexsort((shuffled, -near.ravel().round(9), -heat.ravel()))  # rounding errors are no order
        place[order] = np.arange(height * width)
    return places.reshape(heatmaps.shape)


def is_flat(heatmaps: np.ndarray) -> np.ndarray:
    """Whether each map has one value everywhere, such as zero: bool (N,)."""
    return heatmaps.min(axis=(1, 2)) == heatmaps.max(axis=(1, 2))


def centre_gaussian(height: int, width: int) -> np.ndarray:
    """The baseline that knows nothing of the image: a centred Gaussian, σ = side / 4. Float32 (height, width)."""
    y, x = ((np.arange(side) - (side - 1) / 2) / (side / 4) for side in (height, width))
    return np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / 2).astype(np.float32)


def check_heatmaps(heatmaps: np.ndarray) -> np.ndarray:
    """The maps as an array.

    Raises:
        ValueError: not (N, H, W) with at least one map, or not finite.
    """
    heatmaps = np.asarray(heatmaps)
    if heatmaps.ndim != 3 or not heatmaps.size:
        raise ValueError(f"Expected heat maps of shape (N, H, W), at least one. Received: shape {heatmaps.shape}")
    if not np.isfinite(heatmaps).all():
        raise ValueError("Expected finite heat maps. Received: some with NaN or infinity")
    return heatmaps


def _check_masks(heatmaps, masks):
    heatmaps, masks = check_heatmaps(heatmaps), np.asarray(masks)
    if masks.shape != heatmaps.shape or masks.dtype != bool:
        raise ValueError(
            f"Expected a bool mask for each heat map, shape {heatmaps.shape}. "
            f"Received: {masks.dtype} of shape {masks.shape}"
        )
    return heatmaps, masks


def _check_scores(scores, anomalous):
    scores, anomalous = np.asarray(scores), np.asarray(anomalous)
    if scores.ndim != 1 or not scores.size or anomalous.shape != scores.shape or anomalous.dtype != bool:
        raise ValueError(
            "Expected scores (N,), at least one, and as many bools. "
            f"Received: scores of shape {scores.shape} and {anomalous.dtype} of shape {anomalous.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("Expected finite scores. Received: some with NaN or infinity")
    return scores, anomalous


def _check_pairs(heatmaps, others):
    heatmaps, others = check_heatmaps(heatmaps), check_heatmaps(others)
    if heatmaps.shape != others.shape:
        raise ValueError(f"Expected two sets of maps of one shape. Received: {heatmaps.shape} and {others.shape}")
    return heatmaps, others


def _box_ious(heatmaps, masks):
    """IoU with the mask's box (n, thresholds): of the largest region's box, and the best of all regions' boxes."""
    heatmaps, masks = _check_masks(heatmaps, masks)
    ious = []
    for heat, mask in zip(heatmaps, masks, strict=True):
        if mask.any():
            truth, peak = mask_boxes(mask[None]), heat.max()
            found = [box_iou(_boxes(heat > threshold * peak), truth) for threshold in BOX_THRESHOLDS]
            ious.append([(values[0], values.max()) if len(values) else (0, 0) for values in found])
    return np.array(ious).reshape(-1, len(BOX_THRESHOLDS), 2).transpose(2, 0, 1)


def _boxes(pixels):
    """Boxes (R, 4) round the connected regions (8 neighbours), the largest region first."""
    stats = cv2.connectedComponentsWithStats(pixels.astype(np.uint8), connectivity=8)[2][1:]  # 0 is the background
    stats = stats[np.argsort(-stats[:, cv2.CC_STAT_AREA], kind="stable")]
    return np.hstack([stats[:, :2], stats[:, :2] + stats[:, 2:4]])


def _share_found(ious, min_iou):
    return float((ious >= min_iou).mean(axis=0).max()) if len(ious) else np.nan
