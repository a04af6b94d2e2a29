"""Which tensor is the class score: the logits that a softmax or sigmoid at the network's end squashes, or its output.

What squashes is found by what it computes, not by its name. Backwards from the output, each tensor that alone decides
about it is a candidate, and the way from there to the output is run on random values z. It is a

    softmax    if every row of it is at least 0 and sums to 1, grows where z grows, and is the same for z and z + c;
    log softmax, if this is so of exp(output);
    sigmoid    if every value of it lies in [0, 1], grows where z grows, and those for z and -z sum to 1.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from utils.networks.graph import Call, apply, per_network, trace
from utils.repro import keras, tf

N_PROBES, SHIFT, ANY_SIDE = 8, 3.0, 2
SCALES = (2.0, 0.02, 2e-4)  # of the random values: what comes behind may multiply them by a thousand
TOLERANCE = 2e-3  # of float16


class Logits(NamedTuple):
    """Where the logits are: the output of the call of this name, or what it gives without its own activation."""

    name: str
    without_activation: bool = False


def scores(network: keras.Model, output, calls: dict[str, Call]):
    """The class scores of a run, as `run_layer_by_layer` returns it: the logits where there are any, else the output.

    Raises:
        ValueError: the output is made of probabilities, and there are no logits to be found.
    """
    logits = find_logits(network)
    if logits is None:
        return output
    call = calls[logits.name]
    found = apply(_bare(call), call.inputs) if logits.without_activation else call.output
    sides = output.shape[1:]
    is_reshaped = found.shape[1:] != sides and None not in (*found.shape[1:], *sides)
    return tf.reshape(found, (-1, *sides)) if is_reshaped else found


def head(output, calls: dict[str, Call]) -> Call:
    """The call that made the output of `run_layer_by_layer` (dropout behind it does nothing and does not count)."""
    return next((call for call in calls.values() if call.output is output), Call(None, ((output,), {}), output))


def with_attributes(layer, **attributes):
    """A second object of the layer's class that shares all it holds but these attributes; the layer is not changed."""
    other = object.__new__(type(layer))
    vars(other).update(vars(layer) | attributes)
    return other


@per_network
def find_logits(network: keras.Model) -> Logits | None:
    """Where the logits are that a softmax or sigmoid squashes; None if nothing does: the output is the score."""
    output, calls = trace(network)
    undecided, later, found, tensor = {id(output)}, [], None, None
    for name, call in reversed(calls.items()):
        if id(call.output) not in undecided:
            continue
        has_weights = bool(getattr(call.operation, "weights", ()))
        if len(undecided) > 1:  # not one tensor alone decides about the output
            if has_weights:
                _refuse_probabilities(network, lambda images: network(images, training=False), network.inputs)
                return None
        elif found:
            if not _forgets_a_shift(call.output, later, tensor):
                return found
            found, tensor = Logits(name), call.output
        else:
            finish = functools.partial(_run, later, call.output)
            if later and _squashes(finish, call.output.shape):
                found, tensor = Logits(name), call.output
            elif has_weights and _ends_in_squashing(call, finish):
                return Logits(name, without_activation=True)
            elif has_weights:
                _refuse_probabilities(network, _composed(call, finish), call.inputs)
        if has_weights:
            return found
        undecided = undecided - {id(call.output)} | {id(x) for x in call.inputs}
        later.insert(0, call)
    return found


def _run(later, start, value, end=None):
    """What the calls behind the tensor ``start`` make of a value in its place: the last output, or the tensor end."""
    known = {id(start): value}
    for call in later:
        value = known[id(call.output)] = apply(call, [known.get(id(x), x) for x in call.inputs])
        if call.output is end:
            break
    return value


def _composed(call, finish):
    return lambda *tensors: finish(apply(call, tensors))


def _bare(call):
    """The call without its layer's own activation."""
    return call._replace(operation=with_attributes(call.operation, activation=lambda x: x))


def _random(tensor, scale=1.0, n=N_PROBES):
    """Values in place of a symbolic tensor."""
    shape = (n, *(side or ANY_SIDE for side in tensor.shape[1:]))
    values = scale * np.random.default_rng(0).standard_normal(shape)
    return keras.ops.convert_to_tensor(values, tensor.dtype if tf.as_dtype(tensor.dtype).is_floating else "float32")


def _numbers(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")).astype(np.float64)


def _squashes(function: Callable, shape) -> bool:
    """Whether it is a softmax, log softmax or sigmoid of tensors of this shape."""
    return any(_squashes_at(function, keras.KerasTensor(shape), scale) for scale in SCALES)


def _squashes_at(function, tensor, scale):
    z = _random(tensor, scale)
    same, moved, negative = (_numbers(function(values)) for values in (z, z + SHIFT, -z))
    if same.size != np.size(z) or not np.isfinite(same).all() or np.ptp(same) == 0:
        return False
    z = np.reshape(_numbers(z), same.shape)
    is_unmoved = np.allclose(same, moved, atol=TOLERANCE * np.ptp(same))
    shares = (same, np.exp(np.minimum(same, 1.0)))
    by_rows = [axis for axis in range(1, same.ndim) for rows in shares if _sums_to_one(rows, axis)]
    if by_rows:
        return is_unmoved and _grows(z, same, by_rows[0])
    in_range = same.min() >= 0 and same.max() <= 1
    return in_range and np.allclose(same + negative, 1, atol=TOLERANCE) and _grows(z.ravel(), same.ravel(), 0)


def _sums_to_one(rows, axis):
    is_share = rows.min() >= 0 and rows.shape[axis] > 1
    return is_share and np.allclose(rows.sum(axis=axis), 1, atol=TOLERANCE)


def _grows(z, values, axis):
    ordered = np.take_along_axis(values, z.argsort(axis=axis), axis=axis)
    return np.diff(ordered, axis=axis).min() >= -TOLERANCE * np.ptp(values)


def _forgets_a_shift(start, later, end):
    """Whether a constant added to ``start`` changes nothing at ``end``, as in front of exp in a careful softmax."""
    z = _random(start)
    same, moved = (_numbers(_run(later, start, values, end)) for values in (z, z + SHIFT))
    return same.shape == np.shape(z) and np.allclose(same, moved, atol=TOLERANCE)


def _ends_in_squashing(call, finish):
    """Whether the layer's own activation squashes, and can be left out.

    Raises:
        ValueError: it squashes, but the layer does more than to apply it at its end.
    """
    activation = getattr(call.operation, "activation", None)
    if not callable(activation) or not _squashes(lambda z: finish(activation(z)), call.output.shape):
        return False
    x = [_random(tensor) for tensor in call.inputs]
    given, made = (_numbers(y) for y in (apply(call, x), activation(apply(_bare(call), x))))
    if not np.allclose(given, made, atol=TOLERANCE):
        raise _cannot_look_behind(call.operation.name)
    return True


def _refuse_probabilities(network, function, tensors):
    """ValueError if what the function of these tensors gives are probabilities: their logits are not to be found."""
    values = _numbers(function(*map(_random, tensors)))
    if values.ndim > 1 and np.ptp(values) > 0 and any(_sums_to_one(values, axis) for axis in range(1, values.ndim)):
        raise _cannot_look_behind(network.name)


def _cannot_look_behind(name):
    return ValueError(
        "Cannot look behind the softmax or sigmoid at the network's end for the logits; let it be a layer of its own "
        f"behind them, such as Softmax. Received: {name!r}"
    )


class ScoreFunction:
    """Where compiled code finds the function of the scores that is asked for now.

    The function is called by the compiled code, not compiled with it: whatever it refers to may change.
    """

    def __init__(self):
        self.function = self.error = None

    def __call__(self, scores):
        try:
            score = self.function(scores)
            if getattr(score, "shape", tf.TensorShape(())).rank != 1:
                raise ValueError(f"Expected targets(scores) to give a tensor of shape (n,). Received: {score!r}")
            return tf.cast(score, tf.float32)
        except Exception as error:
            self.error = error
            raise

    def bind(self, compiled: Callable, function: Callable | None) -> Callable:
        """The compiled code, with this function of the scores."""

        def run(*args):
            self.function, self.error = function, None
            try:
                return compiled(*args)
            except tf.errors.OpError as error:
                raise self.error or error from None

        return run if function else compiled
