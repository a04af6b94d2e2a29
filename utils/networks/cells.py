"""Whether an embedding is a sum over the cells of the last feature maps, and what each cell adds to it.

This is so where nothing but poolings over all cells, dense layers and other affine functions follow the maps, with or
without a normalisation at the end. It is found by trying: the mean of what the cells give alone, each as a map of one
cell, is what they give together.
"""

# ruff: noqa: I001 - names side by side
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from utils import imaging
from utils.networks.graph import (
    apply, call_layer, check_network, per_network, run_layer_by_layer, structure, trace, wrap,
)
from utils.networks.scores import find_logits
from utils.networks.spatial import check_layers, default_layer, map_layers, window
from utils.repro import keras, tf

N_PROBES, GRID = 4, (2, 3)  # of random maps, where the network takes any size
ARCFACE = "faster_grad_cam>ArcFace"  # as Keras registers it
TOLERANCE = 1e-4  # of the largest value; float32 rounds less


class Tail(NamedTuple):
    """What stands behind the last maps A: the embedding is the mean over the cells of A_p · projection.

    Attributes:
        layer: that gives the maps (N, h, w, C).
        projection: float32 (C, D); None where the embedding is the mean of the maps itself.
        has_offset: whether there is a bias, too: then the maps get a last channel of ones, and the projection a row.
    """

    layer: str
    projection: np.ndarray | None
    has_offset: bool


class AsOutputs(keras.layers.Layer):
    """From the maps (1, h, w, C) of a `Tail` to outputs of an exported file: them in rows, (1, n, C), and projection.

    It computes nothing: the projection (D, C) is a constant, the very weights of the network's own dense layer.
    """

    def __init__(self, tail: Tail, name: str):
        super().__init__(name=name)
        self.tail = tail

    def call(self, maps):
        # Rows, because an operator whose own result is an output would stay float in the int8 file.
        rows, projection = tf.reshape(maps, (1, -1, maps.shape[-1])), self.tail.projection
        if self.tail.has_offset:
            rows = tf.concat([rows, tf.ones_like(rows[..., :1])], axis=-1)
        return {"cells": rows} | ({} if projection is None else {"projection": tf.constant(projection.T)})


@per_network
def linear_tail(network: keras.Model) -> Tail | None:
    """The `Tail` of a network images → embedding (N, D); None if its embedding is no sum over cells.

    Up to the length of the embedding: a normalisation at the network's end is left out.

    Example:
        >>> from utils.networks import Spec, embedding_network
        >>> linear_tail(embedding_network(Spec("small_resnet", image_size=32))).projection.shape
        (96, 128)
    """
    names = map_layers(network)
    output, calls = trace(network)
    maps = calls[names[-1]].output if names else output
    behind = _behind(calls, maps)
    if id(output) not in [id(call.output) for call in behind] or len(output.shape) != 2:
        return None
    sides = [side or given for side, given in zip(maps.shape[1:3], GRID, strict=True)]
    values = np.random.default_rng(0).standard_normal((N_PROBES, *sides, maps.shape[3])).astype(np.float32)
    together = _run(behind, maps, values)
    try:
        alone = _run(behind, maps, values.reshape(-1, 1, 1, maps.shape[3]))
    except Exception:  # whatever a layer raises that takes one size only
        return None
    for call in reversed(behind):
        whole, means = together[id(call.output)], alone[id(call.output)]
        means = means.reshape(N_PROBES, -1, means.shape[-1]).mean(axis=1)
        if whole.shape == means.shape and _is_close(whole, means) and _is_along(whole, together[id(output)]):
            return Tail(names[-1], *_affine(behind, maps, call))
    return None


def _behind(calls, maps):
    """The calls that work on these maps alone."""
    known, found = {id(maps)}, []
    for call in calls.values():
        if call.inputs and all(id(tensor) in known for tensor in call.inputs):
            known.add(id(call.output))
            found.append(call)
    return found


def _run(behind, maps, values):
    """{id of a symbolic tensor: what it is for these values in place of the maps}, float32 arrays."""
    known = {id(maps): tf.cast(values, maps.dtype)}
    for call in behind:
        known[id(call.output)] = apply(call, [known[id(tensor)] for tensor in call.inputs])
    return {key: np.asarray(tf.cast(value, tf.float32)) for key, value in known.items()}


def _is_close(one, other):
    return np.allclose(one, other, rtol=0, atol=TOLERANCE * max(np.abs(one).max(), 1e-12))


def _is_along(vectors, output):
    """Whether rows point the same way."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(output, axis=1)
    return vectors.shape == output.shape and np.allclose((vectors * output).sum(axis=1), lengths, rtol=TOLERANCE)


def _affine(behind, maps, call):
    """The projection of maps of one cell, with the offset as its last row if there is one; and whether there is."""
    n_channels = maps.shape[3]
    units = np.concatenate([np.zeros((1, n_channels)), np.eye(n_channels)])[:, None, None]
    offset, *rows = _run(behind, maps, units)[id(call.output)]
    projection = np.stack(rows) - offset
    if offset.any():
        return np.concatenate([projection, offset[None]]), True
    is_mean = projection.shape == (n_channels, n_channels) and (projection == np.eye(n_channels)).all()
    return None if is_mean else projection, False


def embedding_of(network: keras.Model) -> keras.Model:
    """The network images → embedding (N, D): of a `FasterGradCAM`'s its second output, without ArcFace at the end.

    Raises:
        ValueError: it gives no embedding, but probabilities or something else.
    """
    network = _up_to_embedding(network, structure(network))
    if find_logits(network) or len(network.outputs[0].shape) != 2:
        end = "a softmax or sigmoid; pass the model up to there" if find_logits(network) else network.outputs[0].shape
        raise ValueError(f"Expected a network that ends in an embedding (N, D). Received: one that ends in {end}")
    return network


@functools.lru_cache(maxsize=8)
def _up_to_embedding(network, _):
    """The network itself, or a new one: kept, because what is compiled of it is kept for the same one only."""
    last = network.layers[-1]
    if len(network.outputs) > 1:
        network = wrap(network.inputs[0], network.outputs[1], like=network)
    elif keras.saving.get_registered_name(type(last)) == ARCFACE:
        network = wrap(network.inputs[0], last.input, like=network)
    check_network(network)
    return network


def read(
    network: keras.Model, image: np.ndarray, *, layer: str | None = None,
    details: tuple[Sequence[str], Callable[..., np.ndarray]] | None = None,
) -> dict:
    """What the network says of an image, cell by cell: the fields of `similarity.Cells`.

    Args:
        image: uint8 (H, W, 3), or floats as the network wants them, of any size.
        layer: of the maps, if the embedding is no sum over the cells of the last ones.
        details: layers, and what makes of their maps (1, h, w, C) an outline (1, h', w').
    """
    tail, seen = linear_tail(network), see(network, image)
    layer = tail.layer if tail else layer or default_layer(network)
    check_layers(network, [layer])
    shown = window(network, layer, *seen.shape[1:3])
    if details and window(network, details[0][0], *seen.shape[1:3]) != shown:
        details = None  # they show another part of the image
    layers = (layer, *details[0]) if details else (layer,)
    (maps,), *finer = (array.numpy() for array in _maps_function(network, layers, structure(network))(seen))
    outline = details[1](*finer)[0] if details else None
    if tail and tail.has_offset:
        maps = np.concatenate([maps, np.ones_like(maps[..., :1])], axis=-1)
    projection = tail.projection if tail else None
    return {"maps": maps, "projection": projection, "size": np.shape(image)[:2], "outline": outline, "window": shown}


def see(network: keras.Model, image: np.ndarray):
    """An image (H, W, C) as the network takes it, a tensor float32 (1, H', W', C); ValueError if it is none."""
    image, (*sides, n_channels) = np.asarray(image), network.inputs[0].shape[1:]
    is_number = image.dtype == np.uint8 or (image.dtype == np.float32 and np.isfinite(image).all())
    if image.ndim != 3 or not image.size or image.shape[2] != n_channels or not is_number:
        received = f"{image.dtype} of shape {image.shape}"
        raise ValueError(f"Expected one image, uint8 (H, W, {n_channels}). Received: {received}")
    size = (side or given for side, given in zip(sides, image.shape[:2], strict=True))
    return tf.cast(imaging.resize(image[None], *size), tf.float32)


def gradient_shares(network: keras.Model, images: tuple, layer: str | None) -> tuple[float, list[np.ndarray]]:
    """Cosine of the embeddings of two images, and gradient × activation of it (arXiv 2011.08891), (h, w) of each."""
    layer, found = layer or default_layer(network), []
    for image in images:
        with tf.GradientTape(persistent=True) as tape:

            def call(name, operation, *args, tape=tape, **kwargs):
                output = call_layer(name, operation, *args, **kwargs)
                if name == layer:
                    tape.watch(output)
                return output

            output, calls = run_layer_by_layer(network, see(network, image), call=call)
            unit = tf.math.l2_normalize(tf.cast(output, tf.float32), axis=1)
        found.append((tape, unit, calls[layer].output))
    shares = []
    for (tape, unit, maps), (_, other, _) in zip(found, reversed(found), strict=True):
        gradients = tape.gradient(unit, maps, output_gradients=other)
        shares.append(tf.reduce_sum(tf.cast(maps * gradients, tf.float32), axis=-1)[0].numpy())
    return float(tf.reduce_sum(found[0][1] * found[1][1])), shares


@functools.lru_cache(maxsize=8)
def _maps_function(network, layers, _):
    """The compiled function images (N, H, W, C) → feature maps of these layers, float32."""

    def maps(images):
        calls = run_layer_by_layer(network, images)[1]
        return [tf.cast(calls[name].output, tf.float32) for name in layers]

    signature = tf.TensorSpec((None, *network.inputs[0].shape[1:]), tf.float32)
    return tf.function(maps, autograph=False).get_concrete_function(signature)
