"""What ``anomaly evaluate`` measures: how well a detector finds and shows the defects of a data set."""

import time
from collections.abc import Iterable

import numpy as np

from utils import imaging, metrics, plotting, runtime
from utils.commands import common, report
from utils.commands.defect_data import Product, read_mask

COLUMNS = {
    "image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "aupro": "AUPRO",
    "f1": "F1", "found": "found", "false_alarms": "false alarms", "milliseconds": "ms an image",
}
N_SHOWN = 6  # of the sheet's columns


def judge(explainer: runtime.Explainer, product: Product) -> dict:
    """The `COLUMNS` of a detector; f1, found and false_alarms at its threshold, pixels at the size it works at.

    None stands for the pixels' values where a defective image has no mask. "anomalous" tells the verdict on each image,
    the normal ones first.

    Raises:
        ValueError: a file is no image, or a mask has another size than its image.
    """
    files = [*product.normal, *product.defective]
    scores, anomalous, maps, masks, seconds = [], [], [], [], []
    for path, mask in zip(files, [None] * len(product.normal) + product.masks, strict=True):
        image = imaging.read_image(path)
        start = time.perf_counter()
        result = explainer.explain(image)
        seconds.append(time.perf_counter() - start)
        scores.append(result.scores[0])
        anomalous.append(bool(result.is_anomaly[0]))
        maps.append(imaging.resize(result.heatmaps, *explainer.input_size)[0])
        masks.append(shrink(read_mask(mask, image), explainer.input_size))
    defective = np.arange(len(files)) >= len(product.normal)
    of_images = {"milliseconds": 1000 * float(np.median(seconds)), "anomalous": anomalous}
    return image_measures(np.array(scores), defective) | of_images | (
        {name: None for name in ("pixel_auroc", "pixel_ap", "aupro")} if None in product.masks
        else pixel_measures(np.stack(maps), np.stack(masks))
    )


def image_measures(scores: np.ndarray, defective: np.ndarray) -> dict[str, float]:
    """image_auroc, and at the threshold 1 of the scores f1, found and false_alarms; both arguments (N,)."""
    called = scores > 1
    right = int((called & defective).sum())
    return {
        "image_auroc": metrics.image_auroc(scores, defective),
        "f1": 2 * right / (int(called.sum()) + int(defective.sum())),
        "found": float(called[defective].mean()), "false_alarms": float(called[~defective].mean()),
    }


def pixel_measures(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """pixel_auroc, pixel_ap and aupro of maps and masks (N, H, W)."""
    return {
        "pixel_auroc": metrics.pixel_auroc(maps, masks), "pixel_ap": metrics.pxap(maps, masks),
        "aupro": metrics.aupro(maps, masks),
    }


def shrink(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask, bool (H, W), at another size; what covers less than half a pixel leaves one where it is most."""
    small = imaging.resize(mask[None].astype(np.float32), *size)[0]
    return small >= min(0.5, small.max()) if mask.any() else np.zeros(size, bool)


def table(rows: Iterable[dict]) -> str:
    """A line for each result, its name first; below, where there are several, the mean of those that have a value."""
    rows = list(rows)
    if len(rows) > 1:
        known = {key: [row[key] for row in rows if row[key] is not None] for key in COLUMNS}
        rows.append({"name": "mean"} | {key: np.mean(values) if values else None for key, values in known.items()})
    body = [[row["name"], *(_shown(key, row[key]) for key in COLUMNS)] for row in rows]
    return "\n".join(report.markdown(["product", *COLUMNS.values()], body))


def sheet(explainer: runtime.Explainer, product: Product):
    """Some defects, their heat maps and masks, as a figure."""
    chosen = common.spread(len(product.defective), N_SHOWN)
    images = [imaging.read_image(product.defective[n]) for n in chosen]
    results = [explainer.explain(image) for image in images]
    masks = [read_mask(product.masks[n], image) for n, image in zip(chosen, images, strict=True)]
    titles = [product.kinds[n] for n in chosen], [f"{result.scores[0]:.2f} {result.names[0]}" for result in results]
    heat = [result.heatmaps[0] for result in results]
    return plotting.image_grid([images, heat, masks], ["defective", "heat", "mask"], titles=list(titles))


def _shown(key, value):
    if value is None:
        return "–"
    return f"{value:.1f}" if key == "milliseconds" else f"{value:.3f}"
