"""How well a detector finds defects, over all images together: AUROC of images and of pixels, AUPRO."""

import cv2
import numpy as np
from sklearn.metrics import auc, roc_auc_score, roc_curve

from utils.metrics.maps import check_masks


def image_auroc(scores: np.ndarray, anomalous: np.ndarray) -> float:
    """Chance that a defective image scores higher than a normal one, ties count one half. NaN if one kind is missing.

    Scores are finite float (N,), high for anomalous images; ``anomalous`` is bool (N,).
    """
    scores, anomalous = np.asarray(scores), np.asarray(anomalous)
    if scores.ndim != 1 or not scores.size or anomalous.shape != scores.shape or anomalous.dtype != bool:
        raise ValueError(
            "Expected scores (N,), at least one, and as many bools. "
            f"Received: scores of shape {scores.shape} and {anomalous.dtype} of shape {anomalous.shape}"
        )
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
    regions of all masks, so that a small defect counts as much as a large one; x is the share of pixels without a
    defect that are hotter, up to ``max_fpr``. Trapezoidal rule; NaN where there is no region, or nothing but regions.

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
