"""The backward rule of guided backpropagation (arXiv 1412.6806), layer by layer.

A rectifier y = min(max(x, 0), m), with m = 6 in ReLU6 and ∞ in ReLU, hands back the gradient of y

    plain   where 0 < x < m          guided   where 0 < x < m and the gradient itself is positive
"""

from utils import networks
from utils.repro import keras, tf

RELU, RELU6 = ("relu", "Relu"), ("relu6", "Relu6")  # a function and the operation of keras.ops


def guided_copy(operation):
    """The same layer (same weights, same output) with the guided rule in place of its ReLU; None if it has none.

    A ReLU layer, the "relu" or "relu6" of any layer with an ``activation``, and keras.ops.relu and relu6 count. A ReLU
    with a negative slope is another function, and so are swish, gelu and the like: they keep their gradient.

    Raises:
        ValueError: there is a ReLU inside a layer whose forward pass is code, where nothing can be replaced.
    """
    if _bounds(operation):
        return _with(operation, call=_guided(operation.call, *_bounds(operation)))
    activation = getattr(operation, "activation", None)
    if _bounds(activation):
        return _with(operation, activation=_guided(activation, *_bounds(activation)))
    if isinstance(operation, keras.Layer):
        inner = [layer for layer in operation._flatten_layers(include_self=False) if guided_copy(layer) is not None]
        if inner:
            raise ValueError(
                "Guided backpropagation cannot reach a ReLU inside a layer that is no functional or Sequential model. "
                f"Received: {inner[0].name!r} inside {operation.name!r}, a {type(operation).__name__}"
            )
    return None


def call_layer(replaced: list):
    """A ``call`` for `networks.run_layer_by_layer` that follows the guided rule and notes which layers it changed."""

    def call(name, operation, *args, **kwargs):
        substitute = guided_copy(operation)
        if substitute is None:
            return networks.call_layer(name, operation, *args, **kwargs)
        replaced.append(name)
        return networks.call_layer(name, substitute, *args, **kwargs)

    return call


def _bounds(function):
    """Between which inputs a rectifier has slope 1: (lower, upper); None if it is no rectifier."""
    if isinstance(function, keras.layers.ReLU):
        rectifies = function.negative_slope == 0
        upper = float("inf") if function.max_value is None else function.max_value
        return (function.threshold, upper) if rectifies else None
    names = (getattr(function, "__name__", ""), type(function).__name__)
    if set(names) & set(RELU6):
        return 0.0, 6.0
    return (0.0, float("inf")) if set(names) & set(RELU) else None


def _guided(rectifier, lower, upper):
    @tf.custom_gradient
    def guided(x):
        def backward(gradient):
            passes = (x > lower) & (x < upper) & (gradient > 0)
            return tf.where(passes, gradient, tf.zeros_like(gradient))

        return rectifier(x), backward

    return guided


def _with(operation, **attributes):
    """A second object of the layer's class that shares all it holds but these attributes; the layer is not changed."""
    other = object.__new__(type(operation))
    vars(other).update(vars(operation) | attributes)
    return other
