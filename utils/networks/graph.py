"""The graph of any functional or Sequential Keras network: walked layer by layer, asked for layers, run in batches."""

import collections
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from utils.repro import keras, tf

# Layers that hand on images; the base class is that of all which prepare data: scaling, resizing, augmentation.
NOT_FEATURES = (keras.layers.InputLayer, keras.layers.Rescaling.__base__)
SQUASHING = ("softmax", "log_softmax", "sigmoid")


class Call(NamedTuple):
    """One use of a layer (or of an operation of keras.ops) in a network: its inputs and its output."""

    operation: Any
    inputs: Any
    output: Any


def call_layer(name: str, operation, *args, **kwargs):
    """Apply the layer in inference mode."""
    if "training" in inspect.signature(operation.call).parameters:
        kwargs["training"] = False
    return operation(*args, **kwargs)


def run_layer_by_layer(network: keras.Model, images, *, call: Callable = call_layer) -> tuple[Any, dict[str, Call]]:
    """Run a functional or Sequential network layer by layer, nested models too; the network itself is not touched.

    ``call``: (name, layer, its arguments) → output, replaces each layer's own call. Models inside whose forward pass is
    code (subclassed) count as one layer. Returns the output, and every call by name, from input to output: a layer of a
    nested model is named "outer/inner", the second use of a shared layer or model "name#2".
    """
    calls, uses = {}, collections.Counter()

    def run_model(model, prefix, inputs, **_):
        inputs = [_as_type(x, like.dtype) for x, like in zip(keras.tree.flatten(inputs), model.inputs, strict=True)]
        return _graph(model)._run_through_graph(inputs, functools.partial(step_of, prefix))

    def step_of(prefix, operation):
        """What stands for the operation on the walk: another walk if it is a model."""
        name = prefix + operation.name
        uses[name] += 1
        name += f"#{uses[name]}" if uses[name] > 1 else ""
        if _graph(operation):
            return functools.partial(run_model, operation, name + "/")
        return functools.partial(record, name, operation)

    def record(name, operation, *args, **kwargs):
        output = call(name, operation, *args, **kwargs)
        calls[name] = Call(operation, (*args, *kwargs.values())[0], output)
        return output

    return keras.tree.flatten(run_model(network, "", images))[0], calls


def _graph(operation):
    """The graph of layers of a functional or Sequential model; None for any other layer."""
    graph = getattr(operation, "_functional", None) or operation
    return graph if hasattr(graph, "_run_through_graph") else None


def _as_type(tensor, dtype):
    return tensor if tf.as_dtype(tensor.dtype) == tf.as_dtype(dtype) else keras.ops.cast(tensor, dtype)


def trace(network: keras.Model) -> tuple[Any, dict[str, Call]]:
    """`run_layer_by_layer` without numbers: the symbolic tensors from the time the layers were built."""
    return run_layer_by_layer(network, network.inputs, call=lambda name, operation, *args, **kwargs: operation.output)


def map_layers(network: keras.Model) -> list[str]:
    """Names of the layers with feature maps (N, h, w, C), from input to output; in nested models "outer/inner".

    Example:
        >>> from utils.networks import Spec, embedding_network
        >>> map_layers(embedding_network(Spec("small_resnet", image_size=32)))[-2:]
        ['stage_3_block_1_add', 'stage_3_block_1_relu']
    """
    return [name for name, call in trace(network)[1].items() if _gives_maps(call)]


def _gives_maps(call):
    is_feature = isinstance(call.operation, keras.Layer) and not isinstance(call.operation, NOT_FEATURES)
    return is_feature and len(getattr(call.output, "shape", ())) == 4


def receptive_fields(network: keras.Model) -> dict[str, tuple[float, int]]:
    """For each layer of `map_layers`: the side of the square that one cell sees, and the cells' distance, in pixels.

    Along the height, away from the borders. A layer behind a global pooling, as in squeeze-and-excite, sees all: inf.
    """
    fields, by_name = {}, {}
    for name, call in trace(network)[1].items():
        operation, inputs, output = call
        below = [fields.get(id(tensor), (1, 1)) for tensor in keras.tree.flatten(inputs)]
        size, stride = (max(values) for values in zip(*below, strict=True))
        kernel = np.ravel(getattr(operation, "kernel_size", getattr(operation, "pool_size", 1)))[0]
        dilation, step = (np.ravel(getattr(operation, key, 1))[0] for key in ("dilation_rate", "strides"))
        is_global = type(operation).__name__.startswith("Global")
        size = float("inf") if is_global else size + int(dilation * (kernel - 1)) * stride
        fields[id(output)] = size, int(stride * step)
        if _gives_maps(call):
            by_name[name] = fields[id(output)]
    return by_name


def check_layers(network: keras.Model, names: Iterable[str]) -> None:
    """ValueError that lists the valid names unless all these layers give feature maps."""
    valid = map_layers(network)
    if unknown := [name for name in names if name not in valid]:
        raise ValueError(f"No layer of that name gives feature maps; choose one of {valid}. Received: {unknown[0]!r}")


def get_layer(network: keras.Model, name: str) -> keras.Layer:
    """The layer of that name; ValueError that lists the valid names if it does not give feature maps."""
    check_layers(network, [name])
    return trace(network)[1][name].operation


def default_layer(network: keras.Model) -> str:
    """The layer that Grad-CAM uses by default: the registry's choice, or the last layer with feature maps."""
    for registered in (network, getattr(network, "spec", None)):  # of `classifiers.build`, of `embedding_network`
        if getattr(registered, "default_layer", None):
            return registered.default_layer
    layers = map_layers(network)
    if not layers:
        raise ValueError(f"The network {network.name!r} has no layer that gives feature maps (N, h, w, C).")
    return layers[-1]


def check_network(network: keras.Model) -> None:
    """ValueError unless the network is built from layers and has one input of images and one output."""
    is_graph = network.built and _graph(network)
    if not is_graph or len(network.inputs) != 1 or len(network.outputs) != 1 or len(network.inputs[0].shape) != 4:
        raise ValueError(
            "Expected a built functional or Sequential network with one input (N, H, W, C) and one output. "
            f"Received: {network.name!r}, {'built' if network.built else 'not built'}"
        )


def wrap(inputs, outputs, *, like: keras.Model, name: str | None = None) -> keras.Model:
    """A network from tensors of another, ``like``, whose spec (None if it has none) and name it keeps."""
    network = keras.Model(inputs, outputs, name=name or like.name)
    network.spec = getattr(like, "spec", None)
    return network


def head(output, calls: dict[str, Call]) -> Call:
    """The call that made the output of `run_layer_by_layer` (dropout behind it does nothing and does not count)."""
    return next((call for call in calls.values() if call.output is output), Call(None, output, output))


def scores(head: Call):
    """The class scores: the head's output, or the logits that its softmax or sigmoid receives."""
    layer, inputs, output = head
    if type(layer).__name__ in ("Softmax", "LogSoftmax", "Sigmoid"):  # a layer or an operation of keras.ops
        return inputs
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    if activation not in SQUASHING:
        return output
    if isinstance(layer, keras.layers.Activation):
        return inputs
    if not isinstance(layer, keras.layers.Dense):
        if activation == "sigmoid":  # it squashes each output alone: it can stay
            return output
        raise ValueError(
            f"Cannot look behind the {activation} of a {type(layer).__name__} layer; end the network in Dense, or give "
            f"the {activation} a layer of its own. Received: {layer.name!r}"
        )
    logits = keras.ops.matmul(inputs, layer.kernel)
    return logits if layer.bias is None else logits + layer.bias


def score_output(network: keras.Model) -> keras.KerasTensor:
    """The class scores as a tensor of the network: its output, or what its last softmax or sigmoid receives."""
    last = head(*trace(network))
    logits = scores(last)
    return network.outputs[0] if logits is last.output else logits


@functools.lru_cache(maxsize=8)
def compiled(model: keras.Model) -> Callable:
    """The model in inference mode as one TensorFlow graph, float32 (N, ...) → its outputs; the last eight are kept."""
    signature = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)
    return tf.function(lambda images: model(images, training=False)).get_concrete_function(signature)


def forward(model: keras.Model, images: np.ndarray, *, batch_size: int = 128):
    """Run a model, compiled once, on images (N, ...) in batches: its output, or list of outputs, as NumPy arrays."""
    run = compiled(model)
    parts = [run(tf.cast(images[i : i + batch_size], tf.float32)) for i in range(0, len(images), batch_size)]
    if isinstance(parts[0], list):
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
    return np.concatenate(parts)
