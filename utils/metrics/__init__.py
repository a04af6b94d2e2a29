"""How good a heat map is.

`maps` measures it against a mask or another map, `faithfulness` asks the network, `sanity` asks a network that forgot.
"""

from utils.metrics.maps import (
    aupro,
    best_f1,
    best_iou,
    box_iou,
    centre_gaussian,
    check_heatmaps,
    heat_in_mask,
    hottest,
    image_auroc,
    is_flat,
    mask_boxes,
    max_box_acc,
    max_box_acc_v2,
    pearson,
    pixel_ap,
    pixel_auroc,
    pointing_game,
    pxap,
    ranks,
    spearman,
    top_iou,
)

__all__ = [
    "aupro",
    "best_f1",
    "best_iou",
    "box_iou",
    "centre_gaussian",
    "check_heatmaps",
    "heat_in_mask",
    "hottest",
    "image_auroc",
    "is_flat",
    "mask_boxes",
    "max_box_acc",
    "max_box_acc_v2",
    "pearson",
    "pixel_ap",
    "pixel_auroc",
    "pointing_game",
    "pxap",
    "ranks",
    "spearman",
    "top_iou",
]
