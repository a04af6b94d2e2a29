"""Where in a network the feature maps are, and which part of the image each of them shows.

A tensor (N, h, w, C) is a map if its first side grows with the image's height alone, its second with the width alone,
and there is more than one cell. So rows of a transposed map, scores of an attention and the 1 x 1 maps of
squeeze-and-excitation are none. Sides are followed symbolically, for the image's size and for twice its height or
width.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from utils.networks.graph import apply, per_network, run_layer_by_layer, trace
from utils.networks.tokens import default_tokens, token_layers
from utils.repro import keras, tf

# Layers that hand on images; the base class is that of all which prepare data: scaling, resizing, augmentation.
NOT_FEATURES = (keras.layers.InputLayer, keras.layers.Rescaling.__base__)
ANY_SIDE = 64  # of an image of a network that takes any
POOLING = keras.layers.MaxPooling2D.__base__
# Layers whose maps are stretched over what they see, as everywhere in the field, though their borders shift by a cell.
KEEP_PLACES = (
    POOLING, keras.layers.UpSampling2D, keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU,
    keras.layers.Rescaling, keras.layers.Dropout, keras.layers.SpatialDropout2D,
)
PADDING = keras.layers.ZeroPadding2D
SMALLEST = 0.05  # of the strongest influence: what a pixel must have to count as one that a cell sees


class Window(NamedTuple):
    """What part of the image a map shows, in shares of its height and width.

    Below 0 and above 1 lies what was padded; top and bottom, or left and right, are exchanged in a mirrored map.
    """

    top: float = 0.0
    bottom: float = 1.0
    left: float = 0.0
    right: float = 1.0


def map_layers(network: keras.Model) -> list[str]:
    """Names of the layers with feature maps (N, h, w, C), from input to output; in nested models "outer/inner".

    Example:
        >>> from utils.networks import Spec, embedding_network
        >>> map_layers(embedding_network(Spec("small_resnet", image_size=32)))[-2:]
        ['stage_3_block_1_add', 'stage_3_block_1_relu']
    """
    return list(_find_maps(network))


def default_layer(network: keras.Model) -> str:
    """The layer that Grad-CAM uses by default: the registry's choice, the last layer of tokens or with feature maps.

    Raises:
        ValueError: there is none, or it cannot be told; then the sentence lists those that come into question.
    """
    for registered in (network, getattr(network, "spec", None)):  # of `classifiers.build`, of `embedding_network`
        if getattr(registered, "default_layer", None):
            return registered.default_layer
    maps = {name: is_certain for name, is_certain in _find_maps(network).items() if is_certain is not None}
    if tokens := _last_tokens(network):
        return tokens
    if not maps:
        raise ValueError(f"The network {network.name!r} has no layer that gives feature maps (N, h, w, C).")
    last = max((i for i, is_certain in enumerate(maps.values()) if is_certain), default=0)
    candidates = list(maps)[last:]
    if len(candidates) > 1 or not maps[candidates[0]]:
        raise ValueError(f"Cannot tell which layer gives the last feature maps; choose one of {candidates} as layer.")
    return candidates[0]


@per_network
def _last_tokens(network):
    """`default_tokens`, where no layer behind them gives maps."""
    tokens, order = default_tokens(network), list(trace(network)[1])
    return tokens if tokens and not set(order[order.index(tokens) :]) & set(_find_maps(network)) else None


def check_layers(network: keras.Model, names: Iterable[str]) -> None:
    """ValueError that lists the valid names unless all these layers give feature maps, or tokens."""
    valid = [*map_layers(network), *token_layers(network)]
    if unknown := [name for name in names if name not in valid]:
        raise ValueError(f"No layer of that name gives feature maps; choose one of {valid}. Received: {unknown[0]!r}")


def get_layer(network: keras.Model, name: str) -> keras.Layer:
    """The layer of that name; ValueError that lists the valid names if it does not give feature maps."""
    call = trace(network)[1].get(name)
    if call is None or len(getattr(call.output, "shape", ())) != 4:
        check_layers(network, [name])
    return call.operation


def receptive_fields(network: keras.Model) -> dict[str, tuple[float, int]]:
    """For each layer that gives (N, h, w, C): the side of the square a cell sees, and the cells' distance, in pixels.

    Along the height, away from the borders. A layer behind a global pooling, as in squeeze-and-excite, sees all: inf.
    """
    fields, by_name = {}, {}
    for name, call in trace(network)[1].items():
        operation = call.operation
        below = [fields.get(id(tensor), (1, 1)) for tensor in call.inputs]
        size, stride = (max(values) for values in zip(*below, strict=True))
        kernel = np.ravel(getattr(operation, "kernel_size", getattr(operation, "pool_size", 1)))[0]
        dilation, step = (np.ravel(getattr(operation, key, 1))[0] for key in ("dilation_rate", "strides"))
        is_global = type(operation).__name__.startswith("Global")
        size = float("inf") if is_global else size + int(dilation * (kernel - 1)) * stride
        fields[id(call.output)] = size, int(stride * step)
        if not isinstance(operation, NOT_FEATURES) and len(getattr(call.output, "shape", ())) == 4:
            by_name[name] = fields[id(call.output)]
    return by_name


def window(network: keras.Model, layer: str, height: int, width: int) -> Window:
    """What part of an image of this size the maps of a layer show: not all where the network crops, pads or mirrors.

    Convolutions and poolings count as if they kept the whole image, as everywhere in the field.
    """
    return _windows(network, (height, width)).get(layer, Window())


@per_network
def _windows(network, size):
    """{name: `Window`} of the calls whose maps show another part of the image than all of it."""
    resampling = _resampling(network, size)
    windows, by_name = {}, {}
    for name, call in trace(network)[1].items():
        below = next((windows[id(x)] for x in call.inputs if id(x) in windows), Window())
        if name in resampling:
            rows, columns = resampling[name]
            below = Window(*_part(below[:2], rows), *_part(below[2:], columns))
        if below != Window():
            by_name[name] = windows[id(call.output)] = below
    return by_name


def _part(edges, part):
    """The part (start, end) of what lies between the edges."""
    start, end = edges
    return tuple(start + (end - start) * share for share in part)


@per_network
def _find_maps(network):
    """{name: whether it surely gives maps} of the layers that may give some, from input to output.

    None stands for what surely does, but is not to be chosen: maps of one cell, and those that were only padded.
    """
    if len(network.inputs[0].shape) != 4:
        return {}
    size = tuple(side or ANY_SIDE for side in network.inputs[0].shape[1:3])
    given, taller, wider = (_shapes(network, size, factors) for factors in ((1, 1), (2, 1), (1, 2)))
    found, learnt = {}, set()
    for name, call in trace(network)[1].items():
        is_feature = not isinstance(call.operation, NOT_FEATURES)
        if any(id(x) in learnt for x in call.inputs) or (is_feature and getattr(call.operation, "weights", ())):
            learnt.update(map(id, keras.tree.flatten(call.output)))
        shape = given[name] or getattr(call.output, "shape", ())
        is_image = id(call.output) not in learnt or not is_feature
        if is_image or len(shape) != 4:
            continue
        is_cell = max(side or ANY_SIDE for side in shape[1:3]) < 2
        if not (given[name] and taller[name] and wider[name]):
            found |= {} if is_cell else {name: False}
        elif _changed(shape, taller[name]) == [1] and _changed(shape, wider[name]) == [2]:
            found[name] = None if is_cell or isinstance(call.operation, PADDING) else True
    return found


def _changed(shape, other):
    """The axes along which shapes differ."""
    return [axis for axis, sides in enumerate(zip(shape, other, strict=True)) if sides[0] != sides[1]]


def _shapes(network, size, factors=(1, 1)):
    """Shape of what each call would give for an image so many times as high and wide; None where it cannot be told."""
    resampling = _resampling(network, size) if factors != (1, 1) else ()
    unknown, shapes = set(), {}

    def call(name, operation, *args, **kwargs):
        shapes[name] = None
        try:
            output = operation.compute_output_spec(*args, **kwargs)
        except Exception:  # whatever an operation raises that takes one size only
            output = None
        if output is None or any(id(x) in unknown for x in keras.tree.flatten((args, kwargs))):
            output = keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), operation.output)
            unknown.update(map(id, keras.tree.flatten(output)))
        elif isinstance(output, keras.KerasTensor):
            shape = list(output.shape)
            for axis in (1, 2) if name in resampling else ():
                if shape[axis] == operation.output.shape[axis]:  # resized to one size: count as if it had grown
                    shape[axis] *= factors[axis - 1]
            output = keras.KerasTensor(shape, output.dtype)
            shapes[name] = tuple(shape)
        return output

    sides = [factor * side for factor, side in zip(factors, size, strict=True)]
    run_layer_by_layer(
        network, keras.KerasTensor((None, *sides, network.inputs[0].shape[3]), network.inputs[0].dtype), call=call
    )
    return shapes


@per_network
def _resampling(network, size):
    """Of the calls that may crop, pad, resize or mirror: which part of their input they show, in rows and columns."""
    calls, found, shapes = trace(network)[1], {}, None
    for name, call in calls.items():
        operation, tensors = call.operation, call.inputs
        ranks = [len(x.shape) for x in (*tensors, *keras.tree.flatten(call.output))]
        if ranks != [4, 4] or getattr(operation, "weights", ()) or isinstance(operation, KEEP_PLACES):
            continue
        if isinstance(operation, PADDING) and _is_of_convolution(operation, call.output, calls):
            continue
        shape = tensors[0].shape
        if None in shape[1:]:
            shapes = shapes or _shapes(network, size)
            makers = {id(other.output): shapes[key] for key, other in calls.items()}
            shape = makers.get(id(tensors[0])) or (None, *size, shape[3])
        parts = None if None in shape[1:] else _measure(call, shape)
        if parts:
            found[name] = parts
    return found


def _is_of_convolution(padding, output, calls):
    """Whether the padding is what all the layers behind it, which know none, would have done themselves."""
    behind = [call.operation for call in calls.values() if any(x is output for x in call.inputs)]
    margin = max(map(sum, padding.padding))
    sides = [getattr(layer, "kernel_size", getattr(layer, "pool_size", (1,))) for layer in behind]
    spread = [np.max(getattr(layer, "dilation_rate", 1)) for layer in behind]
    return all(margin < 1 + dilation * (max(side) - 1) + 1 for side, dilation in zip(sides, spread, strict=True))


def _measure(call, shape):
    """Which part of its input a call shows, ((top, bottom), (left, right)), by what changes with its cells.

    None where rows of the output are not made of rows of the input, and columns of columns.
    """
    rng = np.random.default_rng(0)
    image = tf.constant(rng.uniform(0.5, 1.5, (1, *shape[1:])), tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(image)
        try:
            output = apply(call, [tf.cast(image, call.inputs[0].dtype)])
        except Exception:  # whatever an operation raises for values it does not take
            return None
        chosen = [(n // 4, n - 1 - n // 4) for n in output.shape[1:3]]
        lines = [[tf.gather(output, i, axis=axis) for i in pair] for axis, pair in zip((1, 2), chosen, strict=True)]
    parts = []
    for axis, (first, last), pair in zip((1, 2), chosen, lines, strict=True):
        places = [_place(tape, line, image, axis) for line in pair]
        if first == last or None in places or abs(places[1] - places[0]) < 1e-3:
            return None
        slope = (places[1] - places[0]) / (last - first)
        start = places[0] - slope * (first + 0.5)
        edges = np.array([start, start + slope * output.shape[axis]]) / shape[axis]
        is_whole = np.abs(edges - (0, 1)).max() < 0.51 / shape[axis]
        parts.append((0, 1) if is_whole else tuple(edges.tolist()))
    return tuple(parts)


def _place(tape, line, image, axis):
    """Where along an axis of the image the pixels lie that change a line of the output; None if there are none."""
    gradient = tape.gradient(line, image)
    if gradient is None:
        return None
    influence = np.abs(gradient).sum(axis=tuple({0, 1, 2, 3} - {axis}))
    influence[influence < SMALLEST * influence.max()] = 0
    middles = np.arange(len(influence)) + 0.5
    return float(influence @ middles / influence.sum()) if influence.any() else None
