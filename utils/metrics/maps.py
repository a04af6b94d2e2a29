"""How good is a heat map beside a mask, or beside another map. Needs no network.

Functions take heat maps float (N, H, W) and return one value per image, float (N,), NaN where its mask is empty;
`pxap`, `max_box_acc_v2` and the measures of a detector of defects, AUROC and AUPRO, return one float for all images
together. All raise ValueError where shapes do not fit, a mask is not bool or heat is NaN.
"""

import cv2
import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import auc, average_precision_score, roc_auc_score, roc_curve

BOX_THRESHOLDS = np.arange(100) / 100  # of a map's own maximum


def heat_in_mask(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of the heat inside the mask, in [0, 1], 0 of a map of zeros (energy-based pointing game, arXiv 1910.01279).

    Example:
        >>> heat, mask = np.array([[[3.0, 1.0]]]), np.array([[[True, False]]])
        >>> heat_in_mask(heat, mask).tolist()
        [0.75]
    """
    heatmaps, masks = check_masks(heatmaps, masks)
    total = heatmaps.sum(axis=(1, 2), dtype=np.float64)
    inside = np.where(masks, heatmaps, 0).sum(axis=(1, 2), dtype=np.float64)
    share = np.divide(inside, total, out=np.zeros_like(total), where=total > 0)
    return np.where(masks.any(axis=(1, 2)), share, np.nan)


def pointing_game(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """1 where the hottest pixel lies inside the mask, else 0 (arXiv 1608.00507). A map of zeros scores 0."""
    heatmaps, masks = check_masks(heatmaps, masks)
    hits = [mask.flat[heat.argmax()] and heat.max() > 0 for heat, mask in zip(heatmaps, masks, strict=True)]
    return np.where(masks.any(axis=(1, 2)), hits, np.nan)


def share_on_own_object(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Tell the classes of one image apart: of the heat on any of T objects, the share on each map's own, in [0, 1].

    With s_tk the `heat_in_mask` of map t in mask k: Σ_t s_tt / Σ_tk s_tk; 1 / T if all maps are the same, NaN if none
    has heat on an object. Both are (N, T, H, W), the heat nowhere below 0; map t explains the class of object t.
    """
    heatmaps, masks = np.asarray(heatmaps), np.asarray(masks)
    if heatmaps.ndim != 4 or masks.shape != heatmaps.shape:
        received = f"{heatmaps.shape} and {masks.shape}"
        raise ValueError(f"Expected heat maps of shape (N, T, H, W) and as many masks. Received: {received}")
    columns = range(heatmaps.shape[1])
    shares = np.array([[heat_in_mask(heatmaps[:, t], masks[:, k]) for k in columns] for t in columns])  # (T, T, N)
    own, total = np.trace(shares), shares.sum(axis=(0, 1))
    return np.divide(own, total, out=np.full(len(heatmaps), np.nan), where=total > 0)


def pixel_ap(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Average precision of the heat as a detector of the mask's pixels, in [0, 1]; of a flat map the mask's share."""
    heatmaps, masks = check_masks(heatmaps, masks)
    pairs = zip(masks, heatmaps, strict=True)
    return np.array([average_precision_score(m.ravel(), h.ravel()) if m.any() else np.nan for m, h in pairs])


def pxap(heatmaps: np.ndarray, masks: np.ndarray) -> float:
    """PxAP (arXiv 2001.07437): average precision over the pixels of all images together, in [0, 1].

    One threshold must serve all images. In those with an empty mask any heat is a false alarm. NaN if all are empty.
    """
    heatmaps, masks = check_masks(heatmaps, masks)
    return float(average_precision_score(masks.ravel(), heatmaps.ravel())) if masks.any() else np.nan


def best_iou(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Intersection over union of mask and pixels hotter than each map's best threshold ≥ 0; 0 for a map of zeros."""
    heatmaps, masks = check_masks(heatmaps, masks)
    heat, mask = (array.reshape(len(array), -1) for array in (heatmaps, masks))
    order = np.argsort(-heat, axis=1)
    heat, mask = (np.take_along_axis(array, order, axis=1) for array in (heat, mask))
    inside = mask.cumsum(axis=1)  # of the k + 1 hottest pixels
    union = mask.sum(axis=1, keepdims=True) + np.arange(1, mask.shape[1] + 1) - inside
    separable = (np.diff(heat, axis=1, append=-np.inf) < 0) & (heat > 0)  # by a threshold: the next pixel is colder
    best = np.where(separable, inside / union, 0).max(axis=1)
    return np.where(masks.any(axis=(1, 2)), best, np.nan)


def max_box_acc_v2(heatmaps: np.ndarray, masks: np.ndarray, *, min_ious: tuple[float, ...] = (0.3, 0.5, 0.7)) -> float:
    """MaxBoxAccV2 (arXiv 2001.07437): share of images whose object is found, mean over ``min_ious``.

    Found: the box round some connected region hotter than a threshold has at least that intersection over union with
    the box round the mask. Each of ``min_ious`` takes the one of `BOX_THRESHOLDS` that is best for all images. Images
    with an empty mask are left out; NaN if none remains.
    """
    heatmaps, masks = check_masks(heatmaps, masks)
    ious = []  # of the best region's box, by image and threshold
    for heat, mask in zip(heatmaps, masks, strict=True):
        if mask.any():
            truth, peak = mask_boxes(mask[None]), heat.max()
            found = [box_iou(_boxes(heat > threshold * peak), truth) for threshold in BOX_THRESHOLDS]
            ious.append([values.max(initial=0) for values in found])
    if not ious:
        return np.nan
    return float(np.mean([(np.array(ious) >= min_iou).mean(axis=0).max() for min_iou in min_ious]))


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


def image_auroc(scores: np.ndarray, anomalous: np.ndarray) -> float:
    """Chance that a defective image scores higher than a normal one, ties count one half. NaN if one kind is missing.

    Scores are finite float (N,), ``anomalous`` is bool (N,).
    """
    scores, anomalous = np.asarray(scores), np.asarray(anomalous)
    if scores.ndim != 1 or not scores.size or anomalous.shape != scores.shape or anomalous.dtype != bool:
        received = f"scores of shape {scores.shape} and {anomalous.dtype} of shape {anomalous.shape}"
        raise ValueError(f"Expected scores (N,), at least one, and as many bools. Received: {received}")
    if not np.isfinite(scores).all():
        raise ValueError("Expected finite scores. Received: some with NaN or infinity")
    return float(roc_auc_score(anomalous, scores)) if 0 < anomalous.sum() < len(anomalous) else np.nan


def pixel_auroc(heatmaps: np.ndarray, masks: np.ndarray) -> float:
    """Chance that a pixel of a defect is hotter than another one, over the pixels of all images together."""
    heatmaps, masks = check_masks(heatmaps, masks)
    return image_auroc(heatmaps.ravel(), masks.ravel())


def aupro(heatmaps: np.ndarray, masks: np.ndarray, *, max_fpr: float = 0.3) -> float:
    """Area under the per-region overlap, in [0, 1] (Bergmann et al., MVTec AD, IJCV 2021).

    Each threshold gives a point: y is the share of a connected region (8 neighbours) that is hotter, mean over the
    regions of all masks, large or small; x is the share of pixels without a defect that are hotter, up to ``max_fpr``.
    Trapezoidal rule; NaN where there is no region, or nothing but regions.

    Example:
        >>> masks = np.array([[[False, True, True, False]]])
        >>> aupro(masks.astype(float), masks), aupro(1.0 - masks, masks)
        (1.0, 0.0)
    """
    heatmaps, masks = check_masks(heatmaps, masks)
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must lie in (0, 1]. Received: {max_fpr!r}")
    if masks.all() or not masks.any():
        return np.nan
    weights = np.ones(masks.shape)  # a region weighs 1, whatever its size
    for mask, weight in zip(masks, weights, strict=True):
        labels, areas = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[1:3]
        weight[mask] = 1 / areas[labels[mask], cv2.CC_STAT_AREA]
    fpr, pro, _ = roc_curve(masks.ravel(), heatmaps.ravel(), sample_weight=weights.ravel(), drop_intermediate=False)
    within = fpr <= max_fpr
    pro = np.append(pro[within], np.interp(max_fpr, fpr, pro))
    return float(auc(np.append(fpr[within], max_fpr), pro) / max_fpr)


def pearson(heatmaps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Linear correlation of two sets of maps, pixel by pixel, in [-1, 1]. NaN where a map is constant."""
    heatmaps, others = check_heatmaps(heatmaps), check_heatmaps(others)
    if heatmaps.shape != others.shape:
        raise ValueError(f"Expected two sets of maps of one shape. Received: {heatmaps.shape} and {others.shape}")
    a, b = (m.reshape(len(m), -1).astype(np.float64) for m in (heatmaps, others))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.full(len(a), np.nan), where=norm > 1e-12)


def spearman(heatmaps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Rank correlation of two sets of maps, pixel by pixel, in [-1, 1]. NaN where a map is constant."""
    sets = (check_heatmaps(maps) for maps in (heatmaps, others))
    return pearson(*(rankdata(maps.reshape(len(maps), -1), axis=1).reshape(maps.shape) for maps in sets))


def hottest(heatmaps: np.ndarray, share: float) -> np.ndarray:
    """The hottest share of pixels, as many in each map, none in a flat one: bool (N, H, W). Ties as in `ranks`."""
    if not 0 < share <= 1:
        raise ValueError(f"The share of pixels must lie in (0, 1]. Received: {share}")
    heatmaps = check_heatmaps(heatmaps)
    return (ranks(heatmaps) < max(1, round(share * heatmaps[0].size))) & ~is_flat(heatmaps)[:, None, None]


def ranks(heatmaps: np.ndarray) -> np.ndarray:
    """Each pixel's place in the order of heat, 0 the hottest: int (N, H, W), every place taken once.

    Among equally hot pixels, such as the zeros of a map, those nearer to heat come first: hotter in the map blurred by
    a Gaussian of σ = side / 4. Pixels that are equal even then, as in a flat map, follow one shuffled order.
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
    """The maps as an array; ValueError unless they are (N, H, W), at least one, and finite."""
    heatmaps = np.asarray(heatmaps)
    if heatmaps.ndim != 3 or not heatmaps.size:
        raise ValueError(f"Expected heat maps of shape (N, H, W), at least one. Received: shape {heatmaps.shape}")
    if not np.isfinite(heatmaps).all():
        raise ValueError("Expected finite heat maps. Received: some with NaN or infinity")
    return heatmaps


def check_masks(heatmaps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays; ValueError unless there is a bool mask for each heat map."""
    heatmaps, masks = check_heatmaps(heatmaps), np.asarray(masks)
    if masks.shape != heatmaps.shape or masks.dtype != bool:
        received = f"{masks.dtype} of shape {masks.shape}"
        raise ValueError(f"Expected a bool mask for each heat map, shape {heatmaps.shape}. Received: {received}")
    return heatmaps, masks


def _boxes(pixels):
    """Boxes (R, 4) round the connected regions (8 neighbours)."""
    stats = cv2.connectedComponentsWithStats(pixels.astype(np.uint8))[2][1:]  # 0 is the background
    return np.hstack([stats[:, :2], stats[:, :2] + stats[:, 2:4]])
