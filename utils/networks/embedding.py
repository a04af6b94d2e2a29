"""The embedding network: images 0..255 in, embedding out, any layer's feature maps on the way.

MobileNetV2 (arXiv 1801.04381) or MobileNetV3 (arXiv 1905.02244) with its preprocessing inside, global average pooling
and one dense layer; or a small residual network (arXiv 1512.03385), which learns from scratch in a minute on a CPU:
there, gradients of full convolutions take a fifth of the time of those of depthwise ones.
"""

import collections
import functools
import inspect
import itertools
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

OUTPUT_STRIDES = (32, 16, 8)
FROZEN_STRIDE = 8  # layers finer than this keep the weights that they are given
# Layers that hand on images; the base class is that of all which prepare data: scaling, resizing, augmentation.
NOT_FEATURES = (keras.layers.InputLayer, keras.layers.Rescaling.__base__)
SQUASHING = ("softmax", "log_softmax", "sigmoid")
# What Keras calls the layers that MobileNetV3 leaves unnamed; the number counts what the process built before.
AUTO_NAME = re.compile(r"(activation|add|multiply|re_lu)(_\d+)?")


@dataclass(frozen=True)
class Backbone:
    """A network of keras.applications, made of inverted residual blocks."""

    build: Callable[..., keras.Model]
    default_layer: str  # in the original network the last layer at 1/16 of the image's resolution
    detail_layer: str  # the last at 1/8
    published_sizes: tuple[int, ...]  # Keras publishes ImageNet weights for these


def small_resnet(input_tensor, input_shape, alpha, include_top, weights):
    """Four stages, each of half the resolution of the one before; called as the networks of keras.applications are."""
    if weights is not None:
        raise Exception("nobody publishes any")  # as Keras does where it has none

    def convolution(maps, channels, stride, name, shortcut=None):
        maps = keras.layers.Conv2D(channels, 3, stride, "same", use_bias=False, name=name)(maps)
        maps = keras.layers.BatchNormalization(name=f"{name}_bn")(maps)
        maps = maps if shortcut is None else keras.layers.Add(name=f"{name}_add")([shortcut, maps])
        return keras.layers.ReLU(name=f"{name}_relu")(maps)

    maps = input_tensor
    for stage, channels in enumerate((16, 32, 64, 96)):
        maps = convolution(maps, max(8, round(alpha * channels)), 2, f"stage_{stage}")
        for block in range(2 if stage else 0):
            maps = convolution(maps, maps.shape[-1], 1, f"stage_{stage}_block_{block}", maps)
    return keras.Model(input_tensor, maps, name="small_resnet")


DEFAULT_LAYER = "block_13_expand_relu"
BACKBONES = {
    "small_resnet": Backbone(small_resnet, "stage_3_block_1_relu", "stage_2_block_1_relu", ()),
    "mobilenet_v2": Backbone(
        keras.applications.MobileNetV2, DEFAULT_LAYER, "block_6_expand_relu", (96, 128, 160, 192, 224)
    ),
    "mobilenet_v3_small": Backbone(
        functools.partial(keras.applications.MobileNetV3Small, include_preprocessing=False),
        "expanded_conv_8_expand_activation",
        "expanded_conv_3_expand_activation",
        (224,),
    ),
    "mobilenet_v3_large": Backbone(
        functools.partial(keras.applications.MobileNetV3Large, include_preprocessing=False),
        "expanded_conv_12_expand_activation",
        "expanded_conv_6_expand_activation",
        (224,),
    ),
}


@dataclass(frozen=True)
class Spec:
    """What it takes to build an embedding network again; stored in a model folder's ``meta.json``."""

    backbone: str = "mobilenet_v2"
    image_size: int = 96
    alpha: float = 1.0
    output_stride: int = 16
    embedding_size: int = 128
    last_layer: str | None = None  # of the backbone, where it ends; None: where keras.applications ends it

    def __post_init__(self):
        if self.backbone not in BACKBONES:
            raise ValueError(f"Unknown backbone; choose one of {sorted(BACKBONES)}. Received: {self.backbone!r}")
        if self.output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride must be one of {OUTPUT_STRIDES}. Received: {self.output_stride!r}")
        if self.backbone == "small_resnet" and self.output_stride != 16:
            raise ValueError(f"small_resnet has an output_stride of 16. Received: {self.output_stride!r}")
        if self.image_size < 32:
            raise ValueError(f"image_size must be at least 32 pixels. Received: {self.image_size!r}")
        if self.alpha <= 0 or self.embedding_size < 1:
            raise ValueError(
                f"alpha and embedding_size must be positive. Received: {self.alpha!r}, {self.embedding_size!r}"
            )

    def asdict(self) -> dict:
        return asdict(self)


def embedding_network(spec: Spec | None = None, weights: str | os.PathLike | None = None, seed: int = 0) -> keras.Model:
    """Build the network: float32 (N, S, S, 3) of values 0..255 → embedding float32 (N, D).

    Args:
        spec: what to build; ``Spec()`` if None.
        weights: None (random), ``"imagenet"`` (a file in ``$IMAGENET_WEIGHTS``, else Keras' own download), or the
            path of a ``.weights.h5`` / ``.h5`` file of keras.applications' backbone without top.
        seed: of the random initial weights.

    Returns:
        keras.Model whose ``spec`` attribute is the spec, with a layer "embedding" at its end. With weights given, its
        BatchNormalization layers are frozen: the published statistics are better than those of a few hundred
        photos, and in files with the batch norm folded into the kernels they must not be trained at all. So are
        the layers at a finer stride than 8: edges and colours are known, and training takes a third of the time.
    """
    spec = spec or Spec()
    inputs = keras.Input((spec.image_size, spec.image_size, 3), name="image")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocessing")(inputs)
    backbone = BACKBONES[spec.backbone].build(
        input_tensor=scaled, input_shape=(spec.image_size, spec.image_size, 3), alpha=spec.alpha,
        include_top=False, weights=None,
    )  # fmt: skip
    seeds = itertools.count(seed * 1000)
    changes = _changes(backbone, spec.output_stride)
    backbone = keras.models.clone_model(
        backbone, clone_function=lambda layer: _copy_layer(layer, changes[layer.name], seeds)
    )
    if weights is not None:
        _copy_weights(backbone, spec, weights)
    else:
        for layer in _batch_norms(backbone):
            # keras.applications fixes 0.999: after a few hundred steps the statistics would still be half initial.
            layer.momentum = 0.9
    features = get_layer(backbone, spec.last_layer).output if spec.last_layer else backbone.output
    pooled = keras.layers.GlobalAveragePooling2D(name="pooling")(features)
    initializer = keras.initializers.GlorotUniform(next(seeds))
    embedding = keras.layers.Dense(
        spec.embedding_size, use_bias=False, kernel_initializer=initializer, name="embedding"
    )(pooled)
    network = keras.Model(backbone.inputs[0], embedding, name=spec.backbone)
    network.spec = spec
    return network


class Call(NamedTuple):
    """One use of a layer (or of an operation of keras.ops) in a network: what it was given and what it made of it."""

    operation: Any
    inputs: Any
    output: Any


def call_layer(name: str, operation, *args, **kwargs):
    """Apply the layer in inference mode."""
    if "training" in inspect.signature(operation.call).parameters:
        kwargs["training"] = False
    return operation(*args, **kwargs)


def run(network: keras.Model, images, call: Callable = call_layer) -> tuple[Any, dict[str, Call]]:
    """Run a functional or Sequential network layer by layer, nested models too: the network itself is not touched.

    Args:
        images: tensor (N, H, W, C).
        call: (name, layer, its arguments) → output; stands for each layer's own call.

    Returns:
        The output, and every call by name, from input to output. A layer of a nested model is named "outer/inner", the
        second use of a shared layer or model "name#2". Models whose forward pass is code (subclassed) are one layer.
    """
    calls, uses = {}, collections.Counter()

    def run_model(model, prefix, inputs, **_):
        def wrap(operation):
            uses[prefix + operation.name] += 1
            count = uses[prefix + operation.name]
            name = prefix + operation.name + (f"#{count}" if count > 1 else "")
            if _graph(operation):
                return functools.partial(run_model, operation, name + "/")
            return functools.partial(apply, name, operation)

        inputs = [_as_type(x, like.dtype) for x, like in zip(keras.tree.flatten(inputs), model.inputs, strict=True)]
        return _graph(model)._run_through_graph(inputs, wrap)

    def apply(name, operation, *args, **kwargs):
        output = call(name, operation, *args, **kwargs)
        calls[name] = Call(operation, (*args, *kwargs.values())[0], output)
        return output

    output = keras.tree.flatten(run_model(network, "", images))[0]
    return output, calls


def _graph(operation):
    """The graph of layers of a functional or Sequential model; None for any other layer."""
    graph = getattr(operation, "_functional", None) or operation
    return graph if hasattr(graph, "_run_through_graph") else None


def _as_type(tensor, dtype):
    return tensor if tf.as_dtype(tensor.dtype) == tf.as_dtype(dtype) else keras.ops.cast(tensor, dtype)


def rehearse(network):
    """`run` without numbers: symbolic tensors from the time the layers were built."""
    return run(network, network.inputs, lambda name, operation, *args, **kwargs: operation.output)


def map_layers(network: keras.Model) -> list[str]:
    """Names of the layers that give feature maps (N, h, w, C), from input to output; in nested models "outer/inner"."""
    return [name for name, call in rehearse(network)[1].items() if _gives_maps(call)]


def _gives_maps(call):
    is_feature = isinstance(call.operation, keras.Layer) and not isinstance(call.operation, NOT_FEATURES)
    return is_feature and len(getattr(call.output, "shape", ())) == 4


def receptive_fields(network: keras.Model) -> dict[str, tuple[float, int]]:
    """Of each layer of `map_layers`: side in pixels of what one cell sees, and how many pixels its cells are apart.

    Along the height, away from the borders; a layer behind a global pooling, as in squeeze-and-excite, sees all: inf.
    """
    fields, by_name = {}, {}
    for name, call in rehearse(network)[1].items():
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
    for name in names:
        if name not in valid:
            raise ValueError(f"No layer of that name gives feature maps; choose one of {valid}. Received: {name!r}")


def get_layer(network: keras.Model, name: str) -> keras.Layer:
    """The layer of that name; ValueError that lists the valid names if it does not give feature maps."""
    check_layers(network, [name])
    return rehearse(network)[1][name].operation


def default_layer(network: keras.Model) -> str:
    """Where Grad-CAM looks if nobody says: our networks know their layer, in others it is the last that gives maps."""
    if getattr(network, "default_layer", None):  # of `classifiers.build`
        return network.default_layer
    if getattr(network, "spec", None):
        return network.spec.last_layer or BACKBONES[network.spec.backbone].default_layer
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


def head(output, calls: dict[str, Call]) -> Call:
    """Of what `run` returns: the call that made the output (dropout behind it, which now does nothing, made none)."""
    return next((call for call in calls.values() if call.output is output), Call(None, output, output))


def scores(head: Call):
    """The class scores: the head's output, or what its softmax or sigmoid receives (the logits)."""
    layer, inputs, output = head
    if type(layer).__name__ in ("Softmax", "LogSoftmax", "Sigmoid"):  # a layer or an operation of keras.ops
        return inputs
    if getattr(getattr(layer, "activation", None), "__name__", "") not in SQUASHING:
        return output
    if isinstance(layer, keras.layers.Activation):
        return inputs
    if not isinstance(layer, keras.layers.Dense):
        if layer.activation.__name__ == "sigmoid":  # of an output each for itself, it can stay
            return output
        raise ValueError(
            f"Cannot look behind the {layer.activation.__name__} of a {type(layer).__name__} layer; end the network in "
            f"Dense, or in a layer of its own for it. Received: {layer.name!r}"
        )
    logits = keras.ops.matmul(inputs, layer.kernel)
    return logits if layer.bias is None else logits + layer.bias


def score_output(network: keras.Model) -> keras.KerasTensor:
    """The class scores as a tensor of the network: its output, or what its last softmax or sigmoid receives."""
    last = head(*rehearse(network))
    logits = scores(last)
    return network.outputs[0] if logits is last.output else logits


def _batch_norms(network):
    return [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]


def _changes(backbone, output_stride):
    """By layer name: the entries of its config that differ from keras.applications' own."""
    changes = collections.defaultdict(dict)
    # The blocks are one chain; their shortcuts hold no layers. So the list's neighbours are the graph's.
    for front, layer in itertools.pairwise(backbone.operations):
        if AUTO_NAME.fullmatch(layer.name):
            name = changes[front.name].get("name", front.name).removesuffix("_bn")
            changes[layer.name]["name"] = f"{name}_{type(layer).__name__.lower()}"
        if isinstance(layer, keras.layers.Add):
            # From scratch each residual branch starts at zero: a deep network that begins as a shallow one learns
            # sooner (arXiv 1706.02677, section 5.1).
            changes[front.name]["gamma_initializer"] = "zeros"
    # Where the maps are fine enough already, a block does not halve them any more; the depthwise kernels behind it are
    # spread ("atrous") instead, so that ImageNet weights still see the neighbours they were trained on (DeepLab, arXiv
    # 1606.00915).
    stride, dilation = 2, 1  # behind the first convolution
    for layer in backbone.layers:
        if not isinstance(layer, keras.layers.DepthwiseConv2D):
            continue
        change = changes[layer.name]
        if dilation > 1:
            change["dilation_rate"] = (dilation, dilation)
        if layer.strides != (2, 2):
            continue
        if stride < output_stride:
            stride *= 2
            continue
        change["strides"] = (1, 1)
        # Stride 1 with "valid" needs half a kernel on each side.
        pad = backbone.layers[backbone.layers.index(layer) - 1]
        changes[pad.name]["padding"] = dilation * (layer.kernel_size[0] // 2)
        dilation *= 2
    return changes


def _copy_layer(layer, changes, seeds):
    """The layer with those changes of its config and seeded initial weights."""
    config = layer.get_config() | changes
    for key in {"kernel_initializer", "depthwise_initializer"} & set(config):
        config[key] = keras.initializers.HeNormal(next(seeds))
    return layer.__class__.from_config(config)


def _copy_weights(backbone, spec, weights):
    """Fill the backbone from keras.applications' model of those weights, layer by layer; freeze the batch norms."""
    source = imagenet_file(spec) or "imagenet" if weights == "imagenet" else Path(weights)
    if source == "imagenet" and os.environ.get("FASTER_GRAD_CAM_OFFLINE") == "1":
        raise FileNotFoundError(
            f"No ImageNet weights of {spec.backbone}, alpha {spec.alpha}, in $IMAGENET_WEIGHTS, and "
            "FASTER_GRAD_CAM_OFFLINE=1 forbids the download; put the file there, or take weights=None."
        )
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(f"No weights file {source}; expected 'imagenet' or a keras.applications weights file.")
    original = BACKBONES[spec.backbone]
    size = spec.image_size if spec.image_size in original.published_sizes else 224  # kernels do not depend on the size
    try:
        published = original.build(
            input_shape=(size, size, 3), alpha=spec.alpha, include_top=False, weights=str(source)
        )
    except Exception as error:  # Keras raises a bare Exception where its download fails
        what = "weights of" if source == "imagenet" else f"{source}: expected weights of"
        raise ValueError(
            f"Cannot load {what} {spec.backbone} without top at alpha {spec.alpha}: {str(error).splitlines()[0]}"
        ) from error
    for layer in published.layers:
        if layer.weights:
            backbone.get_layer(layer.name).set_weights(layer.get_weights())
    convolutions = [layer for layer in backbone.layers if layer.weights]
    fine = [i for i, layer in enumerate(convolutions) if layer.output.shape[1] > spec.image_size / FROZEN_STRIDE]
    for layer in [*_batch_norms(backbone), *convolutions[: fine[-1] + 1]]:
        layer.trainable = False


def imagenet_file(spec: Spec) -> Path | None:
    """The weights file of that backbone in the folder ``$IMAGENET_WEIGHTS``, or None."""
    folder = imagenet_folder()
    file = folder and folder / f"{spec.backbone}_{spec.alpha}_imagenet_no_top.weights.h5"
    return file if file and file.is_file() else None


def imagenet_folder() -> Path | None:
    """The folder that ``$IMAGENET_WEIGHTS`` names, None if it is not set; FileNotFoundError if there is none."""
    folder = os.environ.get("IMAGENET_WEIGHTS")
    if folder and not Path(folder).is_dir():
        raise FileNotFoundError(f"$IMAGENET_WEIGHTS must name a folder of weights files. Received: {folder}")
    return Path(folder) if folder else None


@functools.lru_cache(maxsize=8)
def _compiled(model):
    signature = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)
    return tf.function(lambda images: model(images, training=False)).get_concrete_function(signature)


def forward(model: keras.Model, images: np.ndarray, batch_size: int = 128):
    """Run a model on images (N, ...) in batches: its output, or list of outputs, as NumPy arrays.

    Compiled once a model, whatever the number of images: the last, shorter batch causes no new trace.
    """
    run = _compiled(model)
    parts = [run(tf.cast(images[i : i + batch_size], tf.float32)) for i in range(0, len(images), batch_size)]
    if isinstance(parts[0], list):
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
    return np.concatenate(parts)
