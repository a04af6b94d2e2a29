"""How good a heat map is.

`maps` compares it with a mask or another map, `faithfulness` asks the network, `sanity` asks a network that forgot, and
`stability` asks for the map of almost the same image. The last three are imported by name.
"""

from utils.metrics.maps import (  # noqa: I001 - names side by side
    aupro, best_iou, box_iou, centre_gaussian, check_heatmaps, heat_in_mask, hottest, image_auroc, is_flat, mask_boxes,
    max_box_acc_v2, pearson, pixel_ap, pixel_auroc, pointing_game, pxap, ranks, share_on_own_object, spearman,
)
