"""The graph of any functional or Sequential Keras network: walked layer by layer, and run in batches."""

import collections
import contextlib
import functools
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from utils.networks import replicas
from utils.repro import keras, tf


class Call(NamedTuple):
    """One use of a layer (or of an operation of keras.ops) in a network.

    Attributes:
        operation: the layer or operation.
        arguments: positional and named arguments, (tuple, dict).
        output: what it gave.
    """

    operation: Any
    arguments: tuple[tuple, dict]
    output: Any

    @property
    def inputs(self) -> list:
        """The tensors among the arguments."""
        return [x for x in keras.tree.flatten(self.arguments) if isinstance(x, (tf.Tensor, keras.KerasTensor))]


def call_layer(name: str, operation, *args, **kwargs):
    """Apply the layer in inference mode."""
    if "training" in inspect.signature(operation.call).parameters:
        kwargs["training"] = False
    return operation(*args, **kwargs)


def run_layer_by_layer(
    network: keras.Model, images, *, call: Callable = call_layer, as_typed: bool = True
) -> tuple[Any, dict[str, Call]]:
    """Run a functional or Sequential network layer by layer, nested models too; the network itself is not touched.

    Models inside whose forward pass is code (subclassed) count as one layer.

    Args:
        call: (name, layer, its arguments) → output, replaces each layer's own call.
        as_typed: False leaves images float where the network takes integers, which have no gradient.

    Returns:
        The output, and every call by name, from input to output: a layer of a nested model is named "outer/inner", the
        second use of a shared layer or model "name#2".
    """
    calls, uses = {}, collections.Counter()

    def run_model(model, prefix, inputs, **_):
        inputs = [_as_type(x, like.dtype, as_typed) for x, like in zip(_flat(inputs), model.inputs, strict=True)]
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
        calls[name] = Call(operation, (args, kwargs), output)
        return output

    return _flat(run_model(network, "", images))[0], calls


def _flat(structure):
    return keras.tree.flatten(structure)


def _graph(operation):
    """The graph of layers of a functional or Sequential model; None for any other layer."""
    graph = getattr(operation, "_functional", None) or operation
    return graph if hasattr(graph, "_run_through_graph") else None


def _as_type(tensor, dtype, as_typed):
    is_typed = tf.as_dtype(tensor.dtype) == tf.as_dtype(dtype)
    is_kept = not as_typed and not tf.as_dtype(dtype).is_floating
    return tensor if is_typed or is_kept else keras.ops.cast(tensor, dtype)


def trace(network: keras.Model) -> tuple[Any, dict[str, Call]]:
    """`run_layer_by_layer` without numbers: each use of a layer gives symbolic tensors of its own."""

    def call(name, operation, *args, **kwargs):
        if getattr(operation, "data_format", "") == "channels_first":
            raise ValueError(f"Expected layers with channels last. Received: {name!r} with channels first")
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), operation.output)

    return run_layer_by_layer(network, network.inputs, call=call)


def _layers(network):
    """Layers of nested models, too."""
    return network._flatten_layers(include_self=False)


def structure(network: keras.Model) -> tuple:
    """What a function compiled from the network depends on, besides the values of its weights: the key of a cache.

    Layers can be taken away and added, change their activation, be quantised or get weights of low rank.
    """
    layers = _layers(network)
    activations = [vars(layer).get("activation") for layer in layers]
    counts = [(len(layer._trainable_variables), len(layer._non_trainable_variables)) for layer in layers]
    return *layers, *activations, *counts


def apply(call: Call, tensors: list):
    """The layer of a traced call on other tensors, in inference mode."""
    new = dict(zip(map(id, call.inputs), tensors, strict=True))
    arguments, named = keras.tree.map_structure(lambda x: new.get(id(x), x), call.arguments)
    return call_layer("", call.operation, *arguments, **named)


def per_network(function: Callable) -> Callable:
    """Keep what the function finds out of a network, for as long as that lives and its layers stay the same."""
    kept = weakref.WeakKeyDictionary()

    @functools.wraps(function)
    def of_network(network, *args):
        now = structure(network)
        before, results = kept.get(network, (None, {}))
        if before != now:
            kept[network] = now, (results := {})
        if args not in results:
            # Eagerly, also while a graph is being made; the scope would stop gradient tapes inside it, too.
            with tf.init_scope() if tf.inside_function() else contextlib.nullcontext():
                results[args] = function(network, *args)
        return results[args]

    return of_network


def check_network(network: keras.Model) -> None:
    """ValueError unless the network is built from layers and has one input of images and one output."""
    is_graph = network.built and _graph(network)
    if not is_graph or len(network.inputs) != 1 or len(network.outputs) != 1 or len(network.inputs[0].shape) != 4:
        raise ValueError(
            "Expected a built functional or Sequential network with one input (N, H, W, C) and one output, such as "
            "`networks.single` makes of several. "
            f"Received: {network.name!r}, {'built' if network.built else 'not built'}"
        )


def not_in_keras(network: keras.Model) -> str | None:
    """The first layer that cannot be read back from a file: its name and kind."""
    for layer in _layers(network):
        try:
            with warnings.catch_warnings(action="ignore"):  # of lambdas, which are refused on reading
                config = keras.saving.serialize_keras_object(layer)
            keras.saving.deserialize_keras_object(config, safe_mode=True)
        except Exception:  # whatever a layer's configuration raises
            if not layer._layers or isinstance(layer, keras.layers.Lambda):
                return f"{layer.name!r}, a {type(layer).__name__}"
    return None


def wrap(inputs, outputs, *, like: keras.Model, name: str | None = None) -> keras.Model:
    """A network from tensors of another, ``like``, whose spec (None if it has none) and name it keeps."""
    network = keras.Model(inputs, outputs, name=name or like.name)
    network.spec = getattr(like, "spec", None)
    return network


def compiled(model: keras.Model) -> Callable:
    """The model in inference mode as one TensorFlow graph, float32 (N, ...) → its outputs; the last eight are kept."""
    return _compiled(model, structure(model))


@functools.lru_cache(maxsize=8)
def _compiled(model, _):
    signature = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)
    return tf.function(lambda images: model(images, training=False)).get_concrete_function(signature)


def forward(model: keras.Model, images: np.ndarray, *, batch_size: int = 128):
    """Run a model, compiled once, on images (N, ...) in batches: its output, or list of outputs, as NumPy arrays."""
    parts = list(in_batches(model, images, batch_size=batch_size))
    if isinstance(parts[0], list):
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
    return np.concatenate(parts)


def in_batches(model: keras.Model, images: np.ndarray, *, batch_size: int = 128) -> Iterator:
    """What `forward` puts together, batch by batch: tensors, or lists of them. Several machines share the batches."""
    run, starts = compiled(model), range(0, len(images), batch_size)
    return replicas.in_shares(lambda i: run(tf.cast(images[i : i + batch_size], tf.float32)), starts)
