"""Image classifiers with 1,000 ImageNet classes, for Grad-CAM at any layer: images 0..255 in, logits out.

Most are networks of keras.applications. Their preprocessing is inside, and their layers have names that stay the same.
"""

import contextlib
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.networks import torchvision_nets
from utils.networks.embedding import find_weights, imagenet_folder, is_offline, rebuild
from utils.repro import keras

applications, layers = keras.applications, keras.layers
N_CLASSES = 1000
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet's RGB in [0, 1]


@keras.saving.register_keras_serializable("faster_grad_cam")
class RescaledBGR(layers.Rescaling):
    """RGB → BGR, then scale and offset: what networks trained in Caffe expect."""

    def call(self, images):
        return super().call(keras.ops.flip(images, axis=-1))


TORCH_SCALE, TORCH_OFFSET = (1 / 255 / DEVIATION).tolist(), (-MEAN / DEVIATION).tolist()
PREPROCESSING = {
    "caffe": lambda: RescaledBGR(1.0, [-103.939, -116.779, -123.68], name="preprocessing"),
    "torch": lambda: layers.Rescaling(TORCH_SCALE, TORCH_OFFSET, name="preprocessing"),
    "tf": lambda: layers.Rescaling(1 / 127.5, -1.0, name="preprocessing"),
}


def _dense(inputs, name, seeds, *, size=N_CLASSES, activation=None):
    return layers.Dense(size, activation, kernel_initializer=_initial(seeds), name=name)(inputs)


def _pooled(maps, seeds):
    return _dense(layers.GlobalAveragePooling2D(name="avg_pool")(maps), "predictions", seeds)


def _pooled_twice_dense(maps, seeds):
    """MobileNetV3's classifier."""
    hidden = _dense(layers.GlobalAveragePooling2D(name="avg_pool")(maps), "conv_2", seeds, size=1280)
    return _dense(layers.Activation("hard_swish", name="conv_2_activation")(hidden), "predictions", seeds)


def _vgg_head(maps, seeds):
    """VGG's three dense layers, moved over maps of any size from 7×7; the logits of all places, averaged."""
    one_place = maps.shape[1:3] == (7, 7)
    if one_place:  # as a convolution this costs ten times as much
        hidden = _dense(layers.Flatten(name="flatten")(maps), "fc1", seeds, size=4096, activation="relu")
    else:
        hidden = layers.Conv2D(4096, 7, activation="relu", kernel_initializer=_initial(seeds), name="fc1")(maps)
    logits = _dense(_dense(hidden, "fc2", seeds, size=4096, activation="relu"), "predictions", seeds)
    return logits if one_place else layers.GlobalAveragePooling2D(name="avg_pool")(logits)


@dataclass(frozen=True)
class Network:
    """An entry of the registry."""

    build: Callable  # of keras.applications, or of torchvision_nets
    default_layer: str  # the last one with feature maps
    preprocessing: str | None  # a key of PREPROCESSING; None: `build` includes it
    image_size: int = 224
    smallest: int = 32  # side of an image, in pixels
    head: Callable = _pooled

    @property
    def from_torchvision(self) -> bool:
        return self.build.__module__ == torchvision_nets.__name__


NETWORKS = {
    "vgg16": Network(applications.VGG16, "block5_conv3", "caffe", smallest=224, head=_vgg_head),
    "vgg19": Network(applications.VGG19, "block5_conv4", "caffe", smallest=224, head=_vgg_head),
    "resnet18": Network(torchvision_nets.resnet18, "layer4_1_relu2", "torch"),
    "resnet50": Network(applications.ResNet50, "conv5_block3_out", "caffe"),
    "resnet101": Network(applications.ResNet101, "conv5_block3_out", "caffe"),
    "densenet121": Network(applications.DenseNet121, "relu", "torch"),
    "inception_v3": Network(applications.InceptionV3, "mixed10", "tf", image_size=299, smallest=75),
    "mobilenet_v2": Network(applications.MobileNetV2, "out_relu", "tf"),
    "mobilenet_v3": Network(applications.MobileNetV3Large, "conv_1_activation", None, head=_pooled_twice_dense),
    "shufflenet_v2": Network(torchvision_nets.shufflenet_v2, "conv5_relu", "torch"),
    "efficientnet": Network(applications.EfficientNetB0, "top_activation", None),
}
# A weights file in $IMAGENET_WEIGHTS is named "{stem}_imagenet{suffix}"; stems that are not the network's name:
FILE_STEMS = {"mobilenet_v2": "mobilenet_v2_1.0"}
KERAS_SUFFIXES, TORCHVISION_SUFFIXES = (".weights.h5", ".h5"), (".safetensors", ".pth")


def build(
    name: str, weights: str | os.PathLike | None = None, *,
    image_size: int | tuple[int | None, int | None] | None = None, seed: int = 0,
) -> keras.Model:
    """Build one of `NETWORKS`: float32 RGB (N, H, W, 3) of values 0..255 → logits float32 (N, 1000).

    Its attribute ``default_layer`` is the layer that Grad-CAM uses by default. VGG reads images larger than 224×224
    place by place: its logits are the mean over all places.

    Args:
        weights: None (random); ``"imagenet"``: a file ``{name}_imagenet.weights.h5`` in ``$IMAGENET_WEIGHTS``, else
            Keras' own download; or the path of a file: keras.applications' ``.h5`` or ``.weights.h5`` with top, for
            resnet18 and shufflenet_v2 torchvision's ``.pth`` or ``.safetensors``, or a ``.weights.h5`` that this
            network saved. FileNotFoundError if there is none, or FASTER_GRAD_CAM_OFFLINE=1 forbids the download;
            ValueError if they are of something else.
        image_size: side in pixels, or (height, width), where None stands for any; None: the size it was trained at.

    Example:
        >>> network = build("resnet18", image_size=32)
        >>> network.output_shape, network.default_layer
        ((None, 1000), 'layer4_1_relu2')
    """
    if name not in NETWORKS:
        raise ValueError(f"Unknown network; choose one of {', '.join(NETWORKS)}. Received: {name!r}")
    network, images = NETWORKS[name], keras.Input((*_sides(name, image_size), 3), name="image")
    if weights is not None:
        suffixes = (*TORCHVISION_SUFFIXES, *KERAS_SUFFIXES) if network.from_torchvision else KERAS_SUFFIXES
        files = [f"{FILE_STEMS.get(name, name)}_imagenet{suffix}" for suffix in suffixes]
        weights = find_weights(weights, name, file_names=files, published=not network.from_torchvision)
    seeds = itertools.count(1000 * seed) if weights is None else None
    features = _features(network, images, seeds)
    model = keras.Model(features.inputs[0], network.head(features.output, seeds), name=name)
    model.default_layer = network.default_layer
    if weights is not None:
        _load(model, weights)
    return model


def class_names() -> list[str]:
    """Names of the 1,000 classes: from ``imagenet_labels.txt`` in ``$IMAGENET_WEIGHTS`` (its line 0 is "background"),
    else Keras' own, cached or downloaded, else "class_243" for class 243."""
    if (folder := imagenet_folder()) and (file := folder / "imagenet_labels.txt").is_file():
        names = file.read_text(encoding="utf-8").splitlines()[1:]
        if len(names) != N_CLASSES:
            raise ValueError(f"{file} must hold a line of background and {N_CLASSES} names. Received: {len(names)}")
        return names
    cached = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models" / "imagenet_class_index.json"
    if not is_offline() or cached.is_file():
        falling_scores = np.arange(N_CLASSES, 0, -1)[None]  # class 0 scores highest, so Keras lists all in their order
        with contextlib.suppress(Exception):  # Keras' download raises a bare Exception; numbers serve as well
            (decoded,) = applications.imagenet_utils.decode_predictions(falling_scores, top=N_CLASSES)
            return [name.replace("_", " ") for _, name, _ in decoded]
    return [f"class_{i}" for i in range(N_CLASSES)]


def _sides(name, image_size):
    """Height and width, None where any will do."""
    smallest, size = NETWORKS[name].smallest, NETWORKS[name].image_size if image_size is None else image_size
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(s is None or isinstance(s, int) and s >= smallest for s in sides):
        expected = f"at least {smallest} pixels a side: image_size is a whole number, or a height and a width"
        raise ValueError(f"{name} takes images of {expected}. Received: {image_size!r}")
    return sides


def _features(network, images, seeds):
    """The network up to its last maps."""
    scaled = PREPROCESSING[network.preprocessing]()(images) if network.preprocessing else images
    if network.from_torchvision:
        original = keras.Model(images, network.build(scaled))
    else:
        original = network.build(input_tensor=scaled, input_shape=images.shape[1:], include_top=False, weights=None)
    # EfficientNet's statistics lie in the weights file; Keras mends them, with one more layer, to this.
    statistics = {"mean": MEAN.tolist(), "variance": np.square(DEVIATION).tolist()}
    changes = {layer.name: statistics for layer in original.layers if isinstance(layer, layers.Normalization)}
    return rebuild(original, initializer=lambda layer: _initial(seeds, layer), changes=changes)


def _initial(seeds, layer=None):
    """He's initial values of a kernel, uniform because VGG has 140 million to draw; zeros if weights come anyway."""
    if seeds is None:
        return "zeros"
    # Keras counts all channels as inputs of each output, which sees one: the signal would fade from block to block.
    scale = 2.0 * (layer.kernel.shape[-2] if isinstance(layer, layers.DepthwiseConv2D) else 1)
    return keras.initializers.VarianceScaling(scale, distribution="uniform", seed=next(seeds))


def _load(model, source):
    """Fill the model with the weights of a file, or of Keras' download ("imagenet")."""
    network = NETWORKS[model.name]
    if network.from_torchvision and source.suffix != ".h5":
        torchvision_nets.assign_state_dict(model, torchvision_nets.read_state_dict(source))
        return
    try:
        if network.from_torchvision:
            model.load_weights(source)
        else:
            _copy_published(network, source, model)
    except Exception as error:  # Keras raises whatever its file format or its download raises
        raise ValueError(f"Cannot load {source} as weights of {model.name}: {str(error).splitlines()[0]}") from error


def _copy_published(network, source, model):
    """Fill the model from keras.applications' own, layer by layer; kernels take the model's shape.

    VGG's first dense layer may be a convolution here, and MobileNetV3's last convolutions are dense.
    """

    def filled(network):
        return [layer for layer in network.layers if layer.weights and not isinstance(layer, layers.Normalization)]

    shape = (network.image_size, network.image_size, 3)
    published = network.build(weights=str(source), input_shape=shape, classifier_activation=None)
    for original, layer in zip(filled(published), filled(model), strict=True):
        values = zip(original.get_weights(), layer.weights, strict=True)
        layer.set_weights([value.reshape(weight.shape) for value, weight in values])
