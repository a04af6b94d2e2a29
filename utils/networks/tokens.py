"""Layers of transformers: tokens (N, T, C), one for each patch of the image, as feature maps (N, h, w, C).

Patches follow each other row by row. What T exceeds h·w by, class tokens and registers, stands in front of them.
"""

import math

import numpy as np

from utils.networks.graph import call_layer, per_network, run_layer_by_layer, trace
from utils.repro import keras, tf

Grid = tuple[int, int] | None  # rows and columns of the patches; None: as many of each
MOST_EXTRA = 5  # a class token, and four registers


def grid_of(n_tokens: int, grid: Grid = None) -> tuple[int, int]:
    """Rows and columns of so many tokens.

    Raises:
        ValueError: no square grid fits, or the stated one does not.

    Example:
        >>> grid_of(197), grid_of(16), grid_of(13, (3, 4))
        ((14, 14), (4, 4), (3, 4))
    """
    side = math.isqrt(n_tokens)
    rows, columns = grid or (side, side)
    if rows < 1 or columns < 1 or not 0 <= n_tokens - rows * columns <= MOST_EXTRA:
        raise ValueError(
            f"Expected grid=(rows, columns) of the patches, with at most {MOST_EXTRA} tokens besides. "
            f"Received: {grid} for {n_tokens} tokens"
        )
    return rows, columns


def as_map(tensor, grid: Grid = None):
    """Tokens (N, T, C) without those that stand for no patch, as (N, h, w, C); a map stays as it is."""
    if tensor.shape.rank != 3:
        return tensor
    rows, columns = grid_of(tensor.shape[1], grid)
    patches = tensor[:, tensor.shape[1] - rows * columns :]
    return tf.reshape(patches, (-1, rows, columns, tensor.shape[2]))


def find_grid(network: keras.Model, layer: str, grid: Grid = None) -> Grid:
    """The stated grid of a layer's tokens, else that of the last maps before it with as many cells; None for maps."""
    calls = trace(network)[1]
    shape = calls[layer].output.shape
    if len(shape) != 3:
        return None
    for name, call in calls.items() if grid is None else ():
        sides = getattr(call.output, "shape", ())[1:]
        if name == layer:
            break
        if len(sides) == 3 and None not in sides and 0 <= shape[1] - sides[0] * sides[1] <= min(MOST_EXTRA, sides[0]):
            grid = sides[:2]
    return grid_of(shape[1], grid)


@per_network
def token_layers(network: keras.Model) -> tuple[str, ...]:
    """Names of the layers that give tokens (N, T, C), from input to output."""
    shapes = {name: getattr(call.output, "shape", ()) for name, call in trace(network)[1].items()}
    return tuple(name for name, shape in shapes.items() if len(shape) == 3 and None not in shape[1:] and shape[1] > 3)


@per_network
def default_tokens(network: keras.Model) -> str | None:
    """The last layer of tokens whose patches all count for the output; None where no layer with weights gives tokens.

    Behind the last attention a class token is alone: the patches' own tokens change nothing any more. Found by a
    gradient on a random image.
    """
    names, calls, outputs = token_layers(network), trace(network)[1], {}
    image = network.inputs[0]
    if None in image.shape[1:] or not any(getattr(calls[name].operation, "weights", ()) for name in names):
        return None
    pixels = tf.constant(np.random.default_rng(0).uniform(0, 1, (1, *image.shape[1:])), tf.float32)
    with tf.GradientTape() as tape:

        def call(name, operation, *args, **kwargs):
            output = call_layer(name, operation, *args, **kwargs)
            if name in names:
                tape.watch(output)
                outputs[name] = output
            return output

        output, _ = run_layer_by_layer(network, pixels, call=call)
        weights = tf.constant(np.random.default_rng(1).normal(size=(1, *output.shape[1:])), output.dtype)
        score = tf.reduce_sum(output * weights)
    slopes = tape.gradient(score, list(outputs.values()), unconnected_gradients=tf.UnconnectedGradients.ZERO)
    counts = {name: np.abs(slope).max(axis=2)[0, -(math.isqrt(len(slope[0])) ** 2) :].all()
              for name, slope in zip(outputs, slopes, strict=True)}
    return next((name for name in reversed(counts) if counts[name]), None)
