"""Everything that needs a gradient: exact Grad-CAM and its family, guided backpropagation, the harvest of weights.

Of a layer's feature maps A (h, w, C), the score s of a class and the gradients g = ∂s/∂A, each method makes a raw map
(h, w); the heat map is ReLU(raw map), divided by its maximum. The formulas are in `networks.cams`.

The score is the cosine similarity to the class prototype where the network ends in ArcFace (without its margin), and
the logit where it ends in a softmax or sigmoid (see `networks.scores`). No network is changed.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from utils import heatmap, imaging, networks
from utils.networks import cams, fullgrad, legrad, passes, perturbing
from utils.networks.harvesting import Harvest as Harvest
from utils.networks.harvesting import check_targets
from utils.networks.harvesting import harvest as harvest
from utils.networks.passes import BEST
from utils.networks.perturbing import BATCH_SIZE
from utils.repro import keras, tf

METHODS = (*cams.RAW_MAPS, *perturbing.METHODS, "fullgrad")
OF_ATTENTION = ("legrad",)  # one more, of transformers only
Targets = int | np.ndarray | Sequence | Callable | None


def explain(
    network: keras.Model, images: np.ndarray, *, layer: str | None = None, targets: Targets = None,
    method: str = "gradcam", normalise: bool = True, smooth: bool = False, grid: tuple[int, int] | None = None,
    output: str | int | None = None,
) -> np.ndarray:
    """Heat map of each image, by one of `METHODS`.

    Args:
        network: functional or Sequential, images → scores (N, K); it is not changed. `networks.single` makes one of a
            network with several inputs.
        images: (N, H, W, 3) or (H, W, 3); resized to the network's size.
        layer: name of the layer that gives the feature maps (N, h, w, C), or tokens (N, T, C), "outer/inner" in nested
            models; None: `networks.default_layer`.
        targets: what is explained. None: the class of the highest score. A class id: the same for all images. Int
            (N,): one id per image. Int (N, T), or N lists of T ids: T heat maps of each image. A function: scores, a
            tensor float32 (n, K) of some images → (n,), row by row and in TensorFlow operations, such as
            ``lambda scores: scores[:, 1] - scores[:, 0]``, or what `networks.targets` has for dense outputs.
        method: one of `METHODS`; those of `networks.perturbing` need more passes, "eigencam" and "kpcacam" ask for no
            class, "fullgrad" for no layer. "legrad", for transformers only, reads all layers' attention.
        normalise: False returns the raw maps instead.
        smooth: the mean over six views of the image; see `networks.perturbing.over_views`.
        grid: rows and columns of tokens; None: as they were made, or a square. output: which of several, name or index.

    Returns:
        Heat maps float32 (N, H, W) in [0, 1], of the size of the images; with targets (N, T): (N, T, H, W). Raw maps
        are of the layer's size, (N, h, w) or (N, T, h, w), before ReLU and scaling.

    Raises:
        ValueError: unknown method or layer, images or targets that do not fit, weights or maps that are not finite.

    Example:
        >>> from utils import gradcam, networks
        >>> network = networks.embedding_network(networks.Spec("small_resnet", image_size=32, embedding_size=4))
        >>> gradcam.explain(network, np.zeros((2, 48, 64, 3), np.uint8), targets=0).shape
        (2, 48, 64)
    """
    network = network if output is None else networks.single(network, output=output)
    networks.check_network(network)
    if smooth:
        how = {"layer": layer, "targets": targets, "method": method, "normalise": normalise, "grid": grid}
        return perturbing.over_views(functools.partial(explain, network, **how), _check_images(network, images)[0])
    layer = layer or networks.default_layer(network)
    raw, size, given_size = _raw_maps(network, images, layers=(layer,), targets=targets, method=method, grid=grid)
    how = {"method": method, "size": size, "given_size": given_size}
    return _finish(network, layer, raw[0], **how) if normalise else raw[0]


def explain_layers(
    network: keras.Model, images: np.ndarray, *, layers: Sequence[str] | None = None, targets: Targets = None,
    method: str = "gradcam",
) -> dict[str, np.ndarray]:
    """Heat maps at several layers, from one forward and one backward pass (of a batch of images).

    Arguments as of `explain`; layers: names, None for all of `networks.map_layers`. Returns {layer name: heat maps
    float32 (N, H, W) in [0, 1]}, in the order of ``layers``.
    """
    networks.check_network(network)
    layers = tuple(networks.map_layers(network) if layers is None else layers)
    if not layers or isinstance(layers, str):
        raise ValueError(f"Expected names of layers, at least one. Received: {layers!r}")
    raw, size, given_size = _raw_maps(network, images, layers=layers, targets=targets, method=method)
    how = {"method": method, "size": size, "given_size": given_size}
    return {name: _finish(network, name, maps, **how) for name, maps in zip(layers, raw, strict=True)}


def guided_backprop(network: keras.Model, images: np.ndarray, *, targets: Targets = None) -> np.ndarray:
    """Guided backpropagation (arXiv 1412.6806): ∂s/∂image, each ReLU passing back positive gradients only.

    Correct for ReLU and ReLU6 however they are written, in nested models too; see `guided`. Arguments as of
    `explain`. Returns signed gradients float32 (N, H, W, 3) per unit of the network's input, (N, T, H, W, 3) with
    targets (N, T). ValueError if the network holds no ReLU: this would be the plain gradient.
    """
    images, resized = _check_images(network, images)
    height, width = images.shape[1:3]

    def gradients(class_ids, score_function):
        step = passes.guided_function(network, score_function=score_function)
        return [np.concatenate([step(*batch).numpy() for batch in _batches(resized, class_ids, BATCH_SIZE)])]

    result = _for_each_target(network, targets, len(images), gradients)[0]
    if not np.isfinite(result).all():
        raise ValueError("NaN or infinity in the weights or feature maps of the network: no gradient.")
    flat = _resized(result.reshape(-1, *result.shape[-3:]), height, width)
    return flat.reshape(*result.shape[:-3], *flat.shape[1:])


def guided_gradcam(
    network: keras.Model, images: np.ndarray, *, layer: str | None = None, targets: Targets = None
) -> np.ndarray:
    """Guided Grad-CAM (arXiv 1610.02391, section 3.2): `guided_backprop` times the Grad-CAM heat map, in its shape."""
    heatmaps = explain(network, images, layer=layer, targets=targets)
    return guided_backprop(network, images, targets=targets) * heatmaps[..., None]


def _raw_maps(network, images, *, layers, targets, method, grid=None):
    """One array (N, h, w) or (N, T, h, w) per layer; the sizes of the network and of the images."""
    if method not in METHODS + OF_ATTENTION:
        raise ValueError(f"Unknown method; choose one of {METHODS + OF_ATTENTION}. Received: {method!r}")
    images, resized = _check_images(network, images)
    batch_size = max(1, BATCH_SIZE // len(layers))

    def compute(class_ids, score_function):
        if method == "fullgrad" or method in OF_ATTENTION:
            how = {"layer": layers[-1], "grid": grid} if method in OF_ATTENTION else {}
            saliency = legrad.saliency if method in OF_ATTENTION else fullgrad.saliency
            step = functools.partial(saliency, network, score_function=score_function, **how)
            return [np.concatenate([step(*batch) for batch in _batches(resized, class_ids, batch_size)])] * len(layers)
        step = passes.gradient_function(network, layers, method, grid, score_function=score_function)
        more = functools.partial(perturbing.raw_maps, method, network, layers, step, score_function)
        parts = []
        for part, ids in _batches(resized, class_ids, batch_size):
            result = step(part, ids)
            is_done = method in cams.RAW_MAPS
            parts.append([x.numpy() for x in result["maps"]] if is_done else more(part.numpy(), result))
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    return _for_each_target(network, targets, len(images), compute), resized.shape[1:3], images.shape[1:3]


def _check_images(network, images):
    """The images as an array (N, H, W, C), and resized to what the network takes."""
    networks.check_network(network)
    shape = network.inputs[0].shape[1:]
    images = np.asarray(images)
    images = images[None] if images.ndim == 3 else images
    images = images if images.dtype == np.uint8 else images.astype(np.float32)
    if images.ndim != 4 or not images.size or images.shape[-1] != shape[-1] or not np.isfinite(images).all():
        raise ValueError(
            f"Expected images of shape (N, H, W, {shape[-1]}), N >= 1, without NaN. "
            f"Received: {images.dtype} of shape {images.shape}"
        )
    size = tuple(side or given for side, given in zip(shape[:2], images.shape[1:3], strict=True))
    return images, images if size == images.shape[1:3] else _resized(images, *size)


def _resized(images, height, width):
    """`imaging.resize` for any number of channels."""
    if images.shape[-1] == 3:
        return imaging.resize(images, height, width)
    channels = [imaging.resize(images[..., c].astype(np.float32), height, width) for c in range(images.shape[-1])]
    return np.stack(channels, axis=-1)


def _for_each_target(network, targets, n_images, compute):
    """compute(class ids (N,), score function) → arrays (N, ...); several targets per image are stacked: (N, T, ...)."""
    best = np.full(n_images, BEST, np.int32)
    if targets is None or callable(targets):
        return compute(best, targets)
    targets = check_targets(targets, n_images, network)
    if targets.ndim == 1:
        return compute(targets, None)
    return [np.stack(arrays, axis=1) for arrays in zip(*(compute(ids, None) for ids in targets.T), strict=True)]


def _batches(images, class_ids, batch_size):
    for i in range(0, len(images), batch_size):
        yield tf.cast(images[i : i + batch_size], tf.float32), tf.constant(class_ids[i : i + batch_size])


def _finish(network, layer, raw, *, method, size, given_size):
    """Raw maps (..., h, w) → heat maps of the given size; on the way they have the size the network works at."""
    window = imaging.WHOLE if method in ("fullgrad", *OF_ATTENTION) else networks.window(network, layer, *size)
    heatmaps = heatmap.normalise_and_resize(raw.reshape(-1, *raw.shape[-2:]), *size, window=window)
    return imaging.resize(heatmaps, *given_size).reshape(*raw.shape[:-2], *given_size)
