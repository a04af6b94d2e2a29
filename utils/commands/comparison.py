"""Which heat maps are best: every way to one, by every measure, on images that the model has not seen.

Ways that need a gradient, the model's own clusters with each kind of channel weights, and two baselines that ignore the
image: a Gaussian in the centre and smooth noise. A method that does not beat these baselines is of no use.
"""

import numpy as np
from matplotlib.figure import Figure

from utils import data, gradcam, heatmap, metrics, plotting
from utils.commands.common import spread
from utils.commands.report import markdown
from utils.faster_gradcam import FasterGradCAM
from utils.metrics import faithfulness, stability

GRADIENTS = {"Grad-CAM": "gradcam", "Grad-CAM++": "gradcam++", "LayerCAM": "layercam"}
N_DRAWN = 3  # images of a class
N_BRIEF = 100  # images after a training
WEIGHTINGS = {  # of the clusters; those that a model can have are measured
    "clusters, all channels": ("all", None, False),
    "clusters, top 50": ("all", 50, False),
    "clusters, positive": ("positive", None, False),
    "clusters, contrast": ("contrast", None, False),
    "clusters, contrast, details": ("contrast", None, True),
}


def box_iou(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Intersection over union of each map's `heatmap.box` and the box round the mask; NaN if that is empty."""
    shown, result = masks.any(axis=(1, 2)), np.full(len(masks), np.nan)
    found = np.array([heatmap.box(heat) or (0, 0, 0, 0) for heat in heatmaps[shown]]).reshape(-1, 4)
    result[shown] = metrics.box_iou(found, metrics.mask_boxes(masks[shown]))
    return result


LOCALISATION = {
    "box IoU": box_iou, "heat in mask": metrics.heat_in_mask, "pointing game": metrics.pointing_game,
    "best IoU": metrics.best_iou, "pixel AP": metrics.pixel_ap, "PxAP": metrics.pxap,
    "MaxBoxAccV2": metrics.max_box_acc_v2,
}


def heat_maps(faster: FasterGradCAM, images: np.ndarray, *, ways: tuple | None = None) -> dict[str, np.ndarray]:
    """Maps of every way for the class that the model sees, float32 (N, H, W); zeros where it sees *none*.

    Args:
        images: uint8 RGB (N, H, W, 3).
        ways: of `compiled_ways`; None: made anew.
    """
    classifier, clusters = ways or compiled_ways(faster)
    explanation = faster.explain(images)
    seen, shape = explanation.clusters >= 0, images.shape[1:3]
    layer = faster.meta["layer"]
    maps = {"centre Gaussian": np.repeat(metrics.centre_gaussian(*shape)[None], len(images), axis=0)}
    maps |= {
        name: gradcam.explain(classifier, images, layer=layer, targets=explanation.labels, method=method)
        for name, method in GRADIENTS.items()
    }
    maps |= {name: own.explain(images).heatmaps for name, own in clusters.items()}
    noise = np.random.default_rng(0).random((len(images), *faster.network.outputs[0].shape[1:3]), np.float32)
    maps["random map"] = heatmap.normalise_and_resize(noise, *shape)
    return {name: np.where(seen[:, None, None], heat, 0) for name, heat in maps.items()}


def compiled_ways(faster: FasterGradCAM) -> tuple:
    """The classifier, and a model for each of the `WEIGHTINGS` that this one can have: what is compiled once."""
    clusters = {}
    for name, (weighting, top_channels, detail) in WEIGHTINGS.items():
        no_contrast = weighting == "contrast" and faster.contrast is None
        if not no_contrast and (faster.has_details or not detail):
            clusters[name] = faster.reweighted(weighting=weighting, top_channels=top_channels, detail=detail)
    return faster.classifier(), clusters


def measure(faster: FasterGradCAM, dataset: data.Dataset, indices: np.ndarray) -> dict:
    """All measures of all ways, on images of the dataset; those of the class *none* have no map to judge.

    Args:
        dataset: its classes are among those of the model; with masks it is measured where the heat lies, too.
        indices: of images that neither trained the network nor fitted the clusters.

    Returns:
        dict, ready for JSON: "n_images", "accuracy", "own" (the weights the model has) and "measures" {way: {measure:
        mean over images}}, None where it is not defined.

    Raises:
        ValueError: the dataset has a class that the model does not know, or the images show none.
    """
    if unknown := set(dataset.class_names) - set(faster.class_names):
        raise ValueError(f"The model knows {', '.join(faster.class_names)}. Received: images of {sorted(unknown)}")
    names = np.array(dataset.class_names)[dataset.labels]
    shown = indices[names[indices] != data.NONE]
    if not len(shown):
        raise ValueError("There is no image to measure: the data hold none of the model's classes.")
    images = dataset.images[shown]
    masks = None if dataset.masks is None else dataset.masks[shown]
    predicted = faster.explain(images).labels
    predict = faithfulness.probabilities(faster)
    ways = compiled_ways(faster)
    maps = heat_maps(faster, images, ways=ways)
    together = np.stack(list(maps.values()))
    changes = stability.max_sensitivity(
        lambda noisy: np.stack(list(heat_maps(faster, noisy, ways=ways).values())), images, heatmaps=together
    )
    measures = {}
    for (way, heat), change in zip(maps.items(), changes, strict=True):
        values = {} if masks is None else {name: function(heat, masks) for name, function in LOCALISATION.items()}
        asked = predict, images, heat, predicted
        values |= _needed(*asked)
        values |= {"deletion": faithfulness.deletion_auc(*asked), "ROAD": faithfulness.road(*asked)}
        values |= dict(zip(("average drop", "increase"), faithfulness.drop_and_increase(*asked), strict=True))
        values |= {"max-sensitivity": change, "sparseness": stability.sparseness(heat)}
        values["Spearman with Grad-CAM"] = metrics.spearman(heat, maps["Grad-CAM"])
        measures[way] = {name: _mean(value) for name, value in values.items()}
    own = faster.meta["weighting"], faster.meta["top_channels"], faster.has_details
    return {
        "n_images": len(images), "accuracy": float(np.mean(np.array(faster.class_names)[predicted] == names[shown])),
        "own": next((way for way, kind in WEIGHTINGS.items() if kind == own), None), "measures": measures,
    }


def brief(faster: FasterGradCAM, dataset: data.Dataset, indices: np.ndarray) -> dict:
    """What `train` prints of the model's own maps: with masks where the heat lies, else whether the network needs it.

    Args:
        dataset, indices: as of `measure`; at most 100 images with an object are looked at, spread evenly.

    Returns:
        "n_images", which may be 0, and {measure: mean over images}.
    """
    shown = indices[np.array(dataset.class_names)[dataset.labels[indices]] != data.NONE]
    if not len(shown):
        return {"n_images": 0}
    shown = shown[spread(len(shown), N_BRIEF)]
    images = dataset.images[shown]
    explanation = faster.explain(images)
    if dataset.masks is None:
        values = _needed(faithfulness.probabilities(faster), images, explanation.heatmaps, explanation.labels)
    else:
        measures = ("heat in mask", "pixel AP")
        values = {name: LOCALISATION[name](explanation.heatmaps, dataset.masks[shown]) for name in measures}
    return {"n_images": len(shown)} | {name: _mean(value) for name, value in values.items()}


def draw(faster: FasterGradCAM, dataset: data.Dataset, indices: np.ndarray) -> Figure:
    """Images of each class, with the maps of every way below them."""
    names = np.array(dataset.class_names)[dataset.labels[indices]]
    shown = [indices[np.flatnonzero(names == name)[:N_DRAWN]] for name in np.unique(names) if name != data.NONE]
    images = dataset.images[np.concatenate(shown)]
    maps = heat_maps(faster, images)
    return plotting.image_grid([list(images), *map(list, maps.values())], ["image", *maps])


def table(result: dict) -> str:
    """The result of `measure` as a Markdown table; the weights that the model has are bold."""
    columns = list(next(iter(result["measures"].values())))
    rows = [
        [f"**{name}**" if name == result["own"] else name]
        + ["" if values[column] is None else f"{values[column]:.3f}" for column in columns]
        for name, values in result["measures"].items()
    ]
    return "\n".join([
        f"{result['n_images']} images that show a class; accuracy {result['accuracy']:.4f}", "",
        *markdown(["heat map", *columns], rows),
    ])


def _needed(*asked):
    """Whether what is hot is enough for the class, and needed for it, of each image."""
    keep, delete = faithfulness.keep_and_delete(*asked)
    return {"keep": keep, "delete": delete, "insertion": faithfulness.insertion_auc(*asked)}


def _mean(values):
    """Mean of what is defined, rounded; None if nothing is."""
    values = np.atleast_1d(np.array(values, float))
    defined = values[np.isfinite(values)]
    return round(float(defined.mean()), 4) if len(defined) else None
