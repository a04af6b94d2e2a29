"""Everything that needs a gradient: exact Grad-CAM and its family, guided backpropagation, the harvest of weights.

Of a layer's feature maps A (h, w, C), the score s of a class and the gradients g = ∂s/∂A, each method makes a raw map
(h, w); the heat map is ReLU(raw map), divided by its maximum. The formulas are in `networks.cams`.

The score is the cosine similarity to the class prototype where the network ends in ArcFace (without its margin), and
the logit where it ends in a softmax or sigmoid (see `networks.scores`). No network is changed.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from utils import heatmap, imaging, networks
from utils.networks import cams, guided
from utils.repro import keras, tf
from utils.runtime import softmax

BATCH_SIZE = 32
BEST = -1  # stands for the class of the highest score
HALF_SCALE = 1024.0  # float16 knows no gradients below 6e-8: there the score is scaled, its gradients are scaled back

METHODS = (*cams.RAW_MAPS, "scorecam")
Targets = int | np.ndarray | Sequence | Callable | None


class Harvest(NamedTuple):
    """Of N images: channel_weights float32 (N, C), embeddings float32 (N, D), scores float32 (N, K)."""

    channel_weights: np.ndarray
    embeddings: np.ndarray
    scores: np.ndarray


def harvest(
    network: keras.Model, batches: Iterable, *, layer: str | None = None,
    progress: Callable[[dict], None] = lambda entry: None,
) -> Harvest:
    """Channel weights of the class score, image by image, streamed: memory holds one batch and the results.

    Args:
        network: images → scores (N, K); it is not changed.
        batches: of images (n, H, W, 3), any n, as the network takes them, and labels int (n,) to differentiate.
        layer: name of the layer that gives the feature maps; None: `networks.default_layer`.
        progress: called after each batch with {"done": number of images so far, "total": None}.

    Returns:
        Harvest. Its embeddings are what the network's last layer receives, not normalised.
    """
    step = _gradient_function(network, (layer or networks.default_layer(network),), "gradcam")
    shape, parts, done = (None, *network.inputs[0].shape[1:]), [], 0
    for images, labels in batches:
        if not len(images) or not tf.TensorShape(shape).is_compatible_with(np.shape(images)):
            raise ValueError(f"The network takes images of shape {shape}, at least one. Received: {np.shape(images)}")
        labels = _check_targets(labels, len(images), network, several=False)
        result = step(tf.cast(images, tf.float32), tf.constant(labels))
        parts.append([result[name].numpy() for name in Harvest._fields])
        if not all(np.isfinite(array).all() for array in parts[-1]):
            raise ValueError("NaN or infinity in the weights or feature maps of the network: nothing to harvest.")
        done += len(images)
        progress({"done": done, "total": None})
    if not parts:
        raise ValueError("Expected at least one batch of images. Received: an empty iterable")
    return Harvest(*map(np.concatenate, zip(*parts, strict=True)))


def explain(
    network: keras.Model, images: np.ndarray, *, layer: str | None = None, targets: Targets = None,
    method: str = "gradcam", normalise: bool = True,
) -> np.ndarray:
    """Heat map of each image, by one of `METHODS`.

    Args:
        network: functional or Sequential, images → scores (N, K); it is not changed.
        images: (N, H, W, 3) or (H, W, 3); resized to the network's size.
        layer: name of the layer that gives the feature maps, "outer/inner" in nested models; None:
            `networks.default_layer`.
        targets: what is explained. None: the class of the highest score. A class id: the same for all images. Int
            (N,): one id per image. Int (N, T), or N lists of T ids: T heat maps of each image. A function: scores, a
            tensor float32 (n, K) of some images → (n,), row by row and in TensorFlow operations, such as
            ``lambda scores: scores[:, 1] - scores[:, 0]``.
        method: one of `METHODS`; "scorecam" runs the network once per channel, "eigencam" asks for no class.
        normalise: False returns the raw maps instead.

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
    networks.check_network(network)
    layer = layer or networks.default_layer(network)
    raw, size, given_size = _raw_maps(network, images, layers=(layer,), targets=targets, method=method)
    return _finish(network, layer, raw[0], size=size, given_size=given_size) if normalise else raw[0]


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
    how = {"size": size, "given_size": given_size}
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
        step = _guided_function(network, score_function=score_function)
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


def score_cam(
    network: keras.Model, images: np.ndarray, *, maps: np.ndarray, class_ids: np.ndarray,
    score_function: Callable | None = None,
) -> np.ndarray:
    """Score-CAM (arXiv 1910.01279): Σ_c α_c·A_c with α = softmax over c of s(image ∘ mask_c) − s(black image).

    mask_c is A_c, scaled to [0, 1] by its minimum and maximum and resized to the image; a flat channel masks all. It
    multiplies the values at the network's input. The score of the black image is the same for all channels and cancels
    in the softmax. The network sees `BATCH_SIZE` masked images at a time.

    Args:
        images, maps: float32 (N, H, W, 3) of the network's size, and (N, h, w, C).
        class_ids: int (N,), or score_function: scores (n, K) → (n,) in their place.

    Returns:
        Raw maps float32 (N, h, w).
    """
    step, raw_maps = _masked_score_function(network, score_function=score_function), []
    for image, own, class_id in zip(images, maps, class_ids, strict=True):
        chunks = (own[..., c : c + BATCH_SIZE] for c in range(0, own.shape[-1], BATCH_SIZE))
        image, class_id = tf.cast(image, tf.float32), tf.constant(class_id, tf.int32)
        scores = np.concatenate([step(image, tf.constant(chunk), class_id) for chunk in chunks])
        scores[~np.isfinite(scores)] = -np.inf  # float16 may know no score of a black image: no weight
        known = np.isfinite(scores).any()
        raw_maps.append(own @ (softmax(scores) if known else np.zeros_like(scores)))
    return np.stack(raw_maps)


def _raw_maps(network, images, *, layers, targets, method):
    """One array (N, h, w) or (N, T, h, w) per layer; the sizes of the network and of the images."""
    if method not in METHODS:
        raise ValueError(f"Unknown method; choose one of {METHODS}. Received: {method!r}")
    images, resized = _check_images(network, images)
    batch_size = max(1, BATCH_SIZE // len(layers))

    def compute(class_ids, score_function):
        step = _gradient_function(network, layers, method, score_function=score_function)
        parts = []
        for part, ids in _batches(resized, class_ids, batch_size):
            result = step(part, ids)
            maps = [array.numpy() for array in result["maps"]]
            if method == "scorecam":
                what = {"class_ids": result["class_ids"].numpy(), "score_function": score_function}
                maps = [score_cam(network, part.numpy(), maps=array, **what) for array in maps]
            parts.append(maps)
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
    targets = _check_targets(targets, n_images, network)
    if targets.ndim == 1:
        return compute(targets, None)
    return [np.stack(arrays, axis=1) for arrays in zip(*(compute(ids, None) for ids in targets.T), strict=True)]


def _check_targets(targets, n_images, network, several=True):
    try:
        targets = np.asarray(targets)
    except ValueError:
        raise ValueError(f"Expected the same number of class ids for every image. Received: {targets!r}") from None
    is_table = several and targets.ndim == 2 and len(targets) == n_images
    fits = targets.shape in ((), (n_images,)) or is_table
    if not np.issubdtype(targets.dtype, np.integer) or not fits or not targets.size:
        table = ", or (N, T)" if several else ""
        raise ValueError(
            f"Expected one class id, or one for each of the {n_images} images{table}, as integers. "
            f"Received: shape {targets.shape}, dtype {targets.dtype}"
        )
    n_classes = network.outputs[0].shape[-1]
    if targets.min() < 0 or targets.max() >= n_classes:
        raise ValueError(f"Class ids must lie in 0..{n_classes - 1}. Received: {targets.min()}..{targets.max()}")
    return (targets if targets.ndim else np.full(n_images, targets)).astype(np.int32)


def _batches(images, class_ids, batch_size):
    for i in range(0, len(images), batch_size):
        yield tf.cast(images[i : i + batch_size], tf.float32), tf.constant(class_ids[i : i + batch_size])


def _finish(network, layer, raw, *, size, given_size):
    """Raw maps (..., h, w) → heat maps of the given size; on the way they have the size the network works at."""
    window = networks.window(network, layer, *size)
    heatmaps = heatmap.normalise_and_resize(raw.reshape(-1, *raw.shape[-2:]), *size, window=window)
    return imaging.resize(heatmaps, *given_size).reshape(*raw.shape[:-2], *given_size)


def _kept(compile_it):
    """Keep what is compiled of a network, for as long as its layers stay the same."""
    kept = functools.lru_cache(maxsize=16)(lambda structure, *what: compile_it(*what))

    def function(network, *what, score_function=None):
        networks.check_network(network)
        compiled, slot = kept(networks.structure(network), network, *what, score_function is None)
        return slot.bind(compiled, score_function)

    function.cache_clear = kept.cache_clear
    return function


@_kept
def _gradient_function(network, layers, method, by_class):
    """images, class ids → {"maps": raw maps, one array per layer}. One trace for all batch sizes.

    For Grad-CAM also what `harvest` takes, of the first layer; for Score-CAM the feature maps and the chosen class ids.
    """
    networks.check_layers(network, layers)
    slot = networks.ScoreFunction()

    def step(images, class_ids):
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def call(name, operation, *args, **kwargs):
                output = networks.call_layer(name, operation, *args, **kwargs)
                if name in layers:
                    tape.watch(output)
                return output

            output, calls = networks.run_layer_by_layer(network, images, call=call)
            scores = tf.cast(networks.scores(network, output, calls), tf.float32)
            score, scale = _scaled(_select(scores, class_ids, None if by_class else slot), calls)
        maps = [calls[name].output for name in layers]
        floats = [tf.cast(array, tf.float32) for array in maps]
        if method == "scorecam":
            return {"maps": floats, "class_ids": _chosen(scores, class_ids) if by_class else class_ids}
        gradients = _gradient(tape, score, maps, scale)
        result = {"maps": [cams.RAW_MAPS[method](*pair) for pair in zip(floats, gradients, strict=True)]}
        if method == "gradcam":
            embeddings = tf.cast(networks.head(output, calls).inputs[0], tf.float32)
            weights = tf.reduce_mean(gradients[0], axis=(1, 2))
            result |= {"channel_weights": weights, "embeddings": embeddings, "scores": scores}
        return result

    return _compiled(step, *_images_and_ids(network)), slot


@_kept
def _guided_function(network, by_class):
    """images, class ids → guided gradients of the images."""
    replaced, slot = [], networks.ScoreFunction()

    def step(images, class_ids):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            call = guided.call_layer(replaced)
            output, calls = networks.run_layer_by_layer(network, images, call=call, as_typed=False)
            scores = tf.cast(networks.scores(network, output, calls), tf.float32)
            score, scale = _scaled(_select(scores, class_ids, None if by_class else slot), calls)
        return _gradient(tape, score, [images], scale)[0]

    compiled = _compiled(step, *_images_and_ids(network))
    if not replaced:
        raise ValueError(
            "Guided backpropagation needs a ReLU or ReLU6; without one it is the plain gradient. "
            f"Received: {network.name!r}, which has none"
        )
    return compiled, slot


@_kept
def _masked_score_function(network, by_class):
    """image (H, W, 3), feature maps (h, w, C), class id → score of the image behind each map, (C,)."""
    slot = networks.ScoreFunction()

    def step(image, maps, class_id):
        masks = tf.image.resize(tf.transpose(maps, (2, 0, 1))[..., None], tf.shape(image)[:2])  # (C,H,W,1)
        low, high = (reduce(masks, axis=(1, 2), keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
        output, calls = networks.run_layer_by_layer(network, image * tf.math.divide_no_nan(masks - low, high - low))
        scores = tf.cast(networks.scores(network, output, calls), tf.float32)
        return _select(scores, tf.fill(tf.shape(scores)[:1], class_id), None if by_class else slot)

    shape = network.inputs[0].shape[1:]
    return _compiled(step, (shape, tf.float32), ((None, None, None), tf.float32), ((), tf.int32)), slot


def _compiled(step, *inputs):
    """The function, traced once for inputs of these (shape, dtype)."""
    # As Keras' own: layers are not rewritten by AutoGraph, and errors keep their one sentence.
    return tf.function(step, autograph=False).get_concrete_function(*(tf.TensorSpec(*pair) for pair in inputs))


def _images_and_ids(network):
    return ((None, *network.inputs[0].shape[1:]), tf.float32), ((None,), tf.int32)


def _select(scores, class_ids, slot):
    """What is differentiated, (n,)."""
    if slot:
        score = tf.py_function(slot, [scores], tf.float32)
        score.set_shape((None,))
        return score
    if scores.shape.rank != 2:
        raise ValueError(
            f"Class ids need a network with scores (N, K); pass a function as targets. Received: {scores.shape}"
        )
    return tf.gather(scores, _chosen(scores, class_ids), axis=1, batch_dims=1)


def _chosen(scores, class_ids):
    return tf.where(class_ids == BEST, tf.argmax(scores, axis=1, output_type=tf.int32), class_ids)


def _scaled(score, calls):
    """The score, times a constant where gradients pass through float16; and that constant."""
    is_half = any(getattr(call.operation, "compute_dtype", "") == "float16" for call in calls.values())
    return (score * HALF_SCALE, HALF_SCALE) if is_half else (score, 1.0)


def _gradient(tape, score, sources, scale):
    gradients = tape.gradient(score, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    gradients = [tf.cast(array, tf.float32) / scale for array in gradients]
    if scale == 1:
        return gradients
    return [tf.where(tf.math.is_finite(array), array, 0.0) for array in gradients]  # what float16 cannot hold
