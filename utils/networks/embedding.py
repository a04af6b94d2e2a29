"""The embedding network: images 0..255 → embedding; and networks of keras.applications, rebuilt with lasting names.

MobileNetV2 (arXiv 1801.04381) or MobileNetV3 (arXiv 1905.02244), or a small residual network (arXiv 1512.03385), which
learns from scratch in a minute on a CPU: there, gradients of full convolutions take a fifth of the time of those of
depthwise ones. Preprocessing is inside; global average pooling and one dense layer follow.
"""

import functools
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from utils.networks.spatial import get_layer
from utils.repro import keras, tf

layers, applications = keras.layers, keras.applications

OUTPUT_STRIDES = (32, 16, 8)
FROZEN_STRIDE = 8  # layers finer than this keep the weights that they are given
# Keras' own names for layers that keras.applications leaves unnamed; the number counts the process's earlier layers.
AUTO_NAME = re.compile(
    r"(activation|add|average_pooling2d|batch_normalization|concatenate|conv2d|max_pooling2d|multiply|normalization"
    r"|re_lu|rescaling|zero_padding2d)(?:_(\d+))?"
)
NAMED_AFTER_FRONT = ("activation", "add", "multiply", "re_lu")


@dataclass(frozen=True)
class Backbone:
    """A network that is called like those of keras.applications."""

    build: Callable[..., keras.Model]
    default_layer: str  # in the original network the last layer at 1/16 of the image's resolution
    finer_layers: tuple[str, str]  # the last at 1/8 and the last at 1/4
    published_sizes: tuple[int, ...]  # Keras publishes ImageNet weights for these


def small_resnet(input_tensor, input_shape, alpha, include_top, weights):
    """Four stages, each of half the resolution of the one before."""
    if weights is not None:
        raise Exception("nobody publishes any")  # as Keras does where it has none

    def convolve(maps, channels, name, *, stride=1, shortcut=None):
        maps = layers.Conv2D(channels, 3, stride, "same", use_bias=False, name=name)(maps)
        maps = layers.BatchNormalization(name=f"{name}_bn")(maps)
        maps = maps if shortcut is None else layers.Add(name=f"{name}_add")([shortcut, maps])
        return layers.ReLU(name=f"{name}_relu")(maps)

    maps = input_tensor
    for stage, channels in enumerate((16, 32, 64, 96)):
        maps = convolve(maps, max(8, round(alpha * channels)), f"stage_{stage}", stride=2)
        for block in range(2 if stage else 0):
            maps = convolve(maps, maps.shape[-1], f"stage_{stage}_block_{block}", shortcut=maps)
    return keras.Model(input_tensor, maps, name="small_resnet")


DEFAULT_LAYER = "block_13_expand_relu"
BACKBONES = {
    "small_resnet": Backbone(
        small_resnet, "stage_3_block_1_relu", ("stage_2_block_1_relu", "stage_1_block_1_relu"), (),
    ),
    "mobilenet_v2": Backbone(
        applications.MobileNetV2, DEFAULT_LAYER, ("block_6_expand_relu", "block_3_expand_relu"),
        (96, 128, 160, 192, 224),
    ),
    "mobilenet_v3_small": Backbone(
        functools.partial(applications.MobileNetV3Small, include_preprocessing=False),
        "expanded_conv_8_expand_activation",
        ("expanded_conv_3_expand_activation", "expanded_conv_1_expand_relu"), (224,),
    ),
    "mobilenet_v3_large": Backbone(
        functools.partial(applications.MobileNetV3Large, include_preprocessing=False),
        "expanded_conv_12_expand_activation",
        ("expanded_conv_6_expand_activation", "expanded_conv_3_expand_relu"), (224,),
    ),
}


@dataclass(frozen=True)
class Spec:
    """All settings of an embedding network's architecture; stored in a model folder's ``meta.json``."""

    backbone: str = "mobilenet_v2"
    image_size: int = 96
    alpha: float = 1.0
    output_stride: int = 16
    embedding_size: int = 128
    last_layer: str | None = None  # of the backbone, where it ends; None: where keras.applications ends it
    local_contrast: bool = False  # whether `LocalContrast` comes first

    def __post_init__(self):
        if self.backbone not in BACKBONES:
            raise ValueError(f"Unknown backbone; choose one of {sorted(BACKBONES)}. Received: {self.backbone!r}")
        strides = (16,) if self.backbone == "small_resnet" else OUTPUT_STRIDES
        if self.output_stride not in strides:
            raise ValueError(f"output_stride must be one of {strides}. Received: {self.output_stride!r}")
        if self.image_size < 32:
            raise ValueError(f"image_size must be at least 32 pixels. Received: {self.image_size!r}")
        if self.alpha <= 0 or self.embedding_size < 1:
            received = f"{self.alpha!r}, {self.embedding_size!r}"
            raise ValueError(f"alpha and embedding_size must be positive. Received: {received}")

    @property
    def default_layer(self) -> str:
        return self.last_layer or BACKBONES[self.backbone].default_layer

    def asdict(self) -> dict:
        return asdict(self)


@keras.saving.register_keras_serializable("faster_grad_cam")
class LocalContrast(layers.Layer):
    """Haze, glare and shade taken out of images (N, S, S, 3) of 0..255: each part gets about the same contrast.

    Of the grey values in each of 4 × 4 tiles mean m and standard deviation s are taken, and interpolated between the
    tiles, as CLAHE does with its histograms (Zuiderveld 1994). A pixel x becomes (x − m)·g + (m + 127) / 2 with
    g = 50 / s, but at least 0.7 and at most 1.7: flat parts must not become noise.
    """

    TILES, DEVIATION, GAINS, MIDDLE = 4, 50.0, (0.7, 1.7), 127.0

    def call(self, images):
        images, side = tf.cast(images, tf.float32), -(-images.shape[1] // self.TILES)
        # Written for LiteRT, which takes half as long as for sums and quotients.
        grey = tf.nn.conv2d(images, tf.reshape([0.299, 0.587, 0.114], (1, 1, 3, 1)), 1, "SAME")
        mean, square = (
            tf.image.resize(tf.nn.avg_pool2d(values, side, side, "SAME"), images.shape[1:3])
            for values in (grey, tf.square(grey))
        )
        gain = self.DEVIATION * tf.math.rsqrt(tf.maximum(square - tf.square(mean), 1.0))
        gain = tf.clip_by_value(gain, *self.GAINS)
        return tf.clip_by_value(images * gain + (mean * (0.5 - gain) + self.MIDDLE / 2), 0.0, 255.0)


def embedding_network(
    spec: Spec | None = None, weights: str | os.PathLike | None = None, *, seed: int = 0
) -> keras.Model:
    """Build the network: float32 (N, S, S, 3) of values 0..255 → embedding float32 (N, D).

    ``weights`` are None (random), ``"imagenet"`` (a file in ``$IMAGENET_WEIGHTS``, else Keras' own download), or the
    path of a ``.weights.h5`` / ``.h5`` file of keras.applications' backbone without top. The network has an attribute
    ``spec`` and a layer "embedding" at its end. With weights given, batch norms are frozen: their statistics are better
    than those of a few hundred photos, and where they are folded into the kernels training would spoil them. Layers at
    a finer stride than 8 are frozen, too: they know edges and colours, and training takes a third of the time.

    Example:
        >>> embedding_network(Spec("small_resnet", image_size=32), seed=1).output_shape
        (None, 128)
    """
    spec, seeds = spec or Spec(), itertools.count(seed * 1000)
    backbone = _backbone(spec, seeds)
    if weights is not None:
        _copy_weights(backbone, spec, weights)
    else:
        for layer in _of_kind(backbone, layers.BatchNormalization):
            layer.momentum = 0.9  # of keras.applications' 0.999, after some hundred steps half would still be initial
    features = get_layer(backbone, spec.last_layer).output if spec.last_layer else backbone.output
    pooled = layers.GlobalAveragePooling2D(name="pooling")(features)
    initial = keras.initializers.GlorotUniform(next(seeds))
    embedding = layers.Dense(spec.embedding_size, use_bias=False, kernel_initializer=initial, name="embedding")(pooled)
    network = keras.Model(backbone.inputs[0], embedding, name=spec.backbone)
    network.spec = spec
    return network


def _backbone(spec, seeds):
    """The network up to its last maps, with random weights."""
    inputs = keras.Input((spec.image_size, spec.image_size, 3), name="image")
    seen = LocalContrast(name="preprocessing_contrast")(inputs) if spec.local_contrast else inputs
    scaled = layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocessing")(seen)
    how = {"input_shape": inputs.shape[1:], "alpha": spec.alpha, "include_top": False, "weights": None}
    original = BACKBONES[spec.backbone].build(input_tensor=scaled, **how)
    # From scratch each residual branch starts at zero (arXiv 1706.02677, section 5.1).
    ends = [front(layer).name for layer in _of_kind(original, layers.Add)]
    changes = {name: {"gamma_initializer": "zeros"} for name in ends} | _spread_strides(original, spec.output_stride)
    return rebuild(original, initializer=lambda layer: keras.initializers.HeNormal(next(seeds)), changes=changes)


def _of_kind(network, kind):
    return [layer for layer in network.layers if isinstance(layer, kind)]


def _spread_strides(backbone, output_stride):
    """Changes for `rebuild`: the maps are not halved below 1 / output_stride of the image.

    Where they are fine enough, a block gets stride 1, and the depthwise kernels behind it are spread ("atrous"), so
    that ImageNet weights still see the neighbours they were trained on (DeepLab, arXiv 1606.00915).
    """
    changes, stride, dilation = {}, 2, 1  # behind the first convolution
    for layer in _of_kind(backbone, layers.DepthwiseConv2D):
        changes[layer.name] = {"dilation_rate": (dilation, dilation)}
        if layer.strides == (2, 2) and stride < output_stride:
            stride *= 2
        elif layer.strides == (2, 2):
            changes[layer.name]["strides"] = (1, 1)
            # Stride 1 with "valid" needs half a kernel on each side.
            changes[front(layer).name] = {"padding": dilation * (layer.kernel_size[0] // 2)}
            dilation *= 2
    return changes


def _copy_weights(backbone, spec, weights):
    """Fill the backbone from keras.applications' model of those weights, layer by layer; freeze the batch norms."""
    what, original = f"{spec.backbone} without top at alpha {spec.alpha}", BACKBONES[spec.backbone]
    file_name = f"{spec.backbone}_{spec.alpha}_imagenet_no_top.weights.h5"
    source = find_weights(weights, what, file_names=[file_name])
    size = spec.image_size if spec.image_size in original.published_sizes else 224  # kernels do not depend on the size
    how = {"input_shape": (size, size, 3), "alpha": spec.alpha, "include_top": False}
    try:
        published = original.build(weights=str(source), **how)
    except Exception as error:  # Keras raises a bare Exception where its download fails
        raise ValueError(f"Cannot load {source}: expected weights of {what}: {str(error).splitlines()[0]}") from error
    for layer in published.layers:
        if layer.weights:
            backbone.get_layer(layer.name).set_weights(layer.get_weights())
    _freeze(backbone)


def continue_from(network: keras.Model, trained: keras.Model) -> None:
    """Give an embedding network the weights of a trained one of the same spec; what was frozen there is so again.

    Raises:
        ValueError: the trained network has another spec, and not only in `Spec.local_contrast`, which has no weights.
    """
    known = getattr(trained, "spec", None)
    if known is None or replace(known, local_contrast=network.spec.local_contrast) != network.spec:
        raise ValueError(f"Expected a trained network of {network.spec}. Received: {known}")
    for layer in network.layers:
        if layer.weights:
            layer.set_weights(trained.get_layer(layer.name).get_weights())
    _freeze(network)


def _freeze(network):
    """Batch norms, and the layers of finer maps than `FROZEN_STRIDE`, keep what they have."""
    size = network.inputs[0].shape[1]
    with_maps = [layer for layer in network.layers if layer.weights and len(layer.output.shape) == 4]
    fine = [i for i, layer in enumerate(with_maps) if layer.output.shape[1] > size / FROZEN_STRIDE]
    for layer in (*_of_kind(network, layers.BatchNormalization), *with_maps[: fine[-1] + 1]):
        layer.trainable = False


def rebuild(model: keras.Model, *, initializer: Callable, changes: Mapping[str, dict]) -> keras.Model:
    """A copy of a functional model in which no layer's name depends on what the process built before.

    ``initializer`` gives for a layer, in order, that of its kernel; ``changes`` holds new config entries by layer name.
    """
    names = _lasting_names(model)

    def copy(layer):
        config = layer.get_config() | {"name": names[layer.name]} | changes.get(layer.name, {})
        key = "depthwise_initializer" if isinstance(layer, layers.DepthwiseConv2D) else "kernel_initializer"
        if key in config:
            config[key] = initializer(layer)
        return layer.__class__.from_config(config)

    return keras.models.clone_model(model, clone_function=copy)


def front(operation) -> keras.Operation:
    """The layer or operation behind an operation's last input: of a residual block the main path, not the shortcut."""
    return keras.tree.flatten(operation.input)[-1]._keras_history.operation


def _lasting_names(model):
    """{name in the model: lasting name}. An unnamed activation is called after the named layer in front of it.

    Other unnamed layers keep their kind and count from 0, as in a new process.
    """
    names = {operation.name: operation.name for operation in model.operations}
    unnamed = [(o, *match.groups("0")) for o in model.operations if (match := AUTO_NAME.fullmatch(o.name))]
    for operation, kind, number in unnamed:
        before = names[front(operation).name]
        if kind in NAMED_AFTER_FRONT and not AUTO_NAME.fullmatch(before):
            names[operation.name] = f"{before.removesuffix('_bn')}_{type(operation).__name__.lower()}"
        else:
            index = int(number) - min(int(other) for _, same, other in unnamed if same == kind)
            names[operation.name] = f"{kind}_{index}" if index else kind
    return names


def find_weights(
    weights: str | os.PathLike, name: str, *, file_names: Sequence[str], published: bool = True
) -> Path | str:
    """The path of a weights file: the given one, or for "imagenet" one of the file_names in ``$IMAGENET_WEIGHTS``.

    Without such a file "imagenet", which Keras downloads; FileNotFoundError if none is published, or downloads are off.
    """
    if weights != "imagenet":
        if not Path(weights).is_file():
            raise FileNotFoundError(f"No weights file {weights}; expected 'imagenet' or a file of weights of {name}.")
        return Path(weights)
    folder = imagenet_folder()
    if folder and (files := [folder / file for file in file_names if (folder / file).is_file()]):
        return files[0]
    if not published:
        hint = f"put {' or '.join(file_names)} into $IMAGENET_WEIGHTS, or name the file instead of 'imagenet'"
        raise FileNotFoundError(f"Keras publishes no weights of {name}: {hint}.")
    if is_offline():
        reason = f"No file {file_names[0]} in $IMAGENET_WEIGHTS, and FASTER_GRAD_CAM_OFFLINE=1 forbids the download"
        raise FileNotFoundError(f"{reason}; put the file there, or take weights=None.")
    return "imagenet"


def imagenet_folder() -> Path | None:
    """The folder that ``$IMAGENET_WEIGHTS`` names, None if it is not set; FileNotFoundError if there is none."""
    folder = os.environ.get("IMAGENET_WEIGHTS")
    if folder and not Path(folder).is_dir():
        raise FileNotFoundError(f"$IMAGENET_WEIGHTS must name a folder of weights files. Received: {folder}")
    return Path(folder) if folder else None


def is_offline() -> bool:
    """Whether the environment forbids downloads."""
    return os.environ.get("FASTER_GRAD_CAM_OFFLINE") == "1"
