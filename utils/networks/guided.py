"""The backward rule of guided backpropagation (arXiv 1412.6806), layer by layer.

A rectifier, y = x where t < x < m, 0 below and m above, with t = 0, m = 6 in ReLU6 and m = ∞ in ReLU, hands back the
gradient of y

    plain   where t < x < m          guided   where t < x < m and the gradient itself is positive

What is a rectifier is found by what it computes, not by its name: whatever has no weights and takes one tensor is tried
on numbers, and so is the activation of any layer. A ReLU with a negative slope is another function, and so are swish,
gelu and the like: they keep their gradient.
"""

from utils import networks
from utils.networks.functions import rectifier_bounds
from utils.networks.scores import with_attributes
from utils.repro import keras, tf

PIECES = {"Greater", "GreaterEqual", "Less", "LessEqual", "Absolute", "Abs", "Sign"}  # of a ReLU in several operations


def call_layer(replaced: list):
    """A ``call`` for `networks.run_layer_by_layer` that follows the guided rule and notes which layers it changed.

    Raises:
        ValueError: there is a ReLU where it cannot be replaced: inside a layer whose forward pass is code, or written
            out in several operations.
    """

    def call(name, operation, *args, **kwargs):
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, tf.Tensor)]
        is_bare = len(tensors) == 1 and tensors[0].dtype.is_floating and not getattr(operation, "weights", ())
        activation = getattr(operation, "activation", None)

        def of_tensor(x):
            arguments, named = keras.tree.map_structure(lambda old: x if old is tensors[0] else old, (args, kwargs))
            return networks.call_layer(name, operation, *arguments, **named)

        if type(operation).__name__ in PIECES and tensors[0].dtype.is_floating:
            raise _out_of_reach(f"{name!r}, of which one may be made")
        bounds = rectifier_bounds(of_tensor, tensors[0].shape[1:], tensors[0].dtype) if is_bare else None
        if bounds:
            replaced.append(name)
            return _guided(of_tensor, *bounds)(tensors[0])
        if not is_bare and callable(activation) and (of_activation := rectifier_bounds(activation, (1,), tf.float32)):
            replaced.append(name)
            operation = with_attributes(operation, activation=_guided(activation, *of_activation))
        graph = tf.compat.v1.get_default_graph()
        n_before = len(graph.get_operations())
        output = networks.call_layer(name, operation, *args, **kwargs)
        if bounds is None and _is_code(operation) and any(map(_is_relu, graph.get_operations()[n_before:])):
            raise _out_of_reach(f"{name!r}, a {type(operation).__name__}")
        return output

    return call


def _is_code(operation):
    """Whether its forward pass is somebody's code."""
    return isinstance(operation, keras.layers.Lambda) or not type(operation).__module__.startswith(("keras.", "utils."))


def _is_relu(step):
    """Whether an operation of TensorFlow rectifies."""
    if step.type == "Maximum":
        constants = [tf.get_static_value(x) for x in step.inputs]
        return any(value is not None and not value.any() for value in constants)
    return step.type in ("Relu", "Relu6")


def _out_of_reach(what):
    return ValueError(
        "Guided backpropagation cannot reach a ReLU inside a layer whose forward pass is code, nor one written out in "
        f"several operations; let it be a layer, or the activation of one. Received: {what}"
    )


def _guided(rectifier, lower, upper):
    @tf.custom_gradient
    def guided(x):
        def backward(gradient):
            keeps = (x > lower) & (x < upper) & (gradient > 0)
            return tf.where(keeps, gradient, tf.zeros_like(gradient))

        return rectifier(x), backward

    return guided
