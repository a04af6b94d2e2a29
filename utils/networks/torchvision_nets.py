"""ResNet-18 (arXiv 1512.03385) and ShuffleNetV2 x1.0 (arXiv 1807.11164), which keras.applications lacks.

They compute what torchvision's networks compute, so that its weights fit. A layer with weights bears torchvision's
name, an underscore for each dot ("layer4_1_conv2"); each ReLU is a layer of its own ("layer4_1_relu2").
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.repro import keras

layers, ops = keras.layers, keras.ops
SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}  # its data types that weights come in
# Axes of torchvision's arrays in the order of Keras: (out, in, h, w) → (h, w, in, out), (C, 1, h, w) → (h, w, C, 1).
AXES, DEPTHWISE_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}, (2, 3, 0, 1)


@keras.saving.register_keras_serializable("faster_grad_cam")
class SplitChannels(layers.Layer):
    """Maps (N, h, w, C) → the first and the second half of their channels, both (N, h, w, C/2)."""

    def call(self, maps):
        return ops.split(maps, 2, axis=-1)


@keras.saving.register_keras_serializable("faster_grad_cam")
class ShuffleChannels(layers.Layer):
    """Maps (N, h, w, C) → the same shape, the two halves of the channels interleaved: 0, C/2, 1, C/2 + 1, ..."""

    def call(self, maps):
        *sides, channels = ops.shape(maps)
        pairs = ops.reshape(maps, (*sides, 2, channels // 2))
        return ops.reshape(ops.swapaxes(pairs, -1, -2), (*sides, channels))

    def compute_output_shape(self, maps_shape):
        return maps_shape


def _convolve(maps, channels, size, names, *, stride=1):
    """Convolution (depthwise where channels is None) without bias, batch norm and, if it has a name, ReLU."""
    convolution, norm, *relu = names
    if stride > 1 and size > 1:  # "same" would pad one side more than the other
        maps = layers.ZeroPadding2D(size // 2, name=f"{convolution}_pad")(maps)
    kind = layers.DepthwiseConv2D if channels is None else functools.partial(layers.Conv2D, channels)
    maps = kind(size, stride, "same" if stride == 1 else "valid", use_bias=False, name=convolution)(maps)
    maps = layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=norm)(maps)
    return layers.ReLU(name=relu[0])(maps) if relu else maps


def _max_pool(maps):
    maps = layers.ZeroPadding2D(1, name="maxpool_pad")(maps)  # behind a ReLU, zeros never are the maximum
    return layers.MaxPooling2D(3, 2, name="maxpool")(maps)


def resnet18(images: keras.KerasTensor) -> keras.KerasTensor:
    """ResNet-18 without its classifier: images (N, H, W, 3) → maps (N, ⌈H/32⌉, ⌈W/32⌉, 512)."""
    maps = _max_pool(_convolve(images, 64, 7, ("conv1", "bn1", "relu"), stride=2))
    for stage, channels in enumerate((64, 128, 256, 512), 1):
        for block in (0, 1):
            maps = _basic_block(maps, channels, 2 if stage > 1 and block == 0 else 1, f"layer{stage}_{block}")
    return maps


def _basic_block(maps, channels, stride, name):
    shortcut = maps
    if stride > 1:
        shortcut = _convolve(maps, channels, 1, (f"{name}_downsample_0", f"{name}_downsample_1"), stride=stride)
    maps = _convolve(maps, channels, 3, (f"{name}_conv1", f"{name}_bn1", f"{name}_relu1"), stride=stride)
    maps = _convolve(maps, channels, 3, (f"{name}_conv2", f"{name}_bn2"))
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([maps, shortcut]))


def shufflenet_v2(images: keras.KerasTensor) -> keras.KerasTensor:
    """ShuffleNetV2 x1.0 without its classifier: images (N, H, W, 3) → maps (N, ⌈H/32⌉, ⌈W/32⌉, 1024)."""
    maps = _max_pool(_convolve(images, 24, 3, ("conv1_0", "conv1_1", "conv1_relu"), stride=2))
    for stage, channels, blocks in ((2, 116, 4), (3, 232, 8), (4, 464, 4)):
        for block in range(blocks):
            maps = _shuffle_unit(maps, channels // 2, 2 if block == 0 else 1, f"stage{stage}_{block}")
    return _convolve(maps, 1024, 1, ("conv5_0", "conv5_1", "conv5_relu"))


def _shuffle_unit(maps, channels, stride, name):
    """Half of the channels pass unchanged where the size stays; where it halves, both branches see all of them."""
    first, second = f"{name}_branch1", f"{name}_branch2"
    if stride == 1:
        left, right = SplitChannels(name=f"{name}_split")(maps)
    else:
        left, right = _convolve(maps, None, 3, (f"{first}_0", f"{first}_1"), stride=stride), maps
        left = _convolve(left, channels, 1, (f"{first}_2", f"{first}_3", f"{first}_relu"))
    right = _convolve(right, channels, 1, (f"{second}_0", f"{second}_1", f"{second}_relu1"))
    right = _convolve(right, None, 3, (f"{second}_3", f"{second}_4"), stride=stride)
    right = _convolve(right, channels, 1, (f"{second}_5", f"{second}_6", f"{second}_relu2"))
    return ShuffleChannels(name=f"{name}_shuffle")(layers.Concatenate(name=f"{name}_concat")([left, right]))


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a ``.safetensors`` file, or of a ``.pth`` file if PyTorch is there, by name; else ValueError."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        import torch
    except ModuleNotFoundError:
        hint = "pip install torch, or save the weights as .safetensors"
        raise ValueError(f"A .pth file is read by PyTorch: {hint}. Received: {path}") from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in tensors.items()}
    except Exception as error:  # torch passes on whatever the unpickler and the zip reader raise
        raise ValueError(f"Expected a state dict, tensors by name, saved by torch.save. Received: {path}") from error


def _read_safetensors(path):
    """8 bytes: length of the header; the header, JSON: type, shape and place of each tensor; then their values."""
    data, tensors = path.read_bytes(), {}
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        entries = json.loads(data[8:start])
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            first, last = entry["data_offsets"]
            values = np.frombuffer(data[start + first : start + last], SAFETENSORS[entry["dtype"]])
            tensors[name] = values.reshape(entry["shape"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = f"a whole safetensors file with tensors of the types {', '.join(SAFETENSORS)}"
        raise ValueError(f"Expected {expected}. Received: {path}") from error
    return tensors


def assign_state_dict(network: keras.Model, state_dict: Mapping[str, np.ndarray]) -> None:
    """Fill the network with torchvision's weights; ValueError, and nothing is assigned, unless all of them fit."""
    variables = _variables(network)
    given = {name for name in state_dict if not name.endswith("num_batches_tracked")}
    wrong = [f"{name} is missing" for name in variables if name not in given]
    wrong += [f"{name} is unexpected" for name in sorted(given - set(variables))]
    values = {}
    for name, (variable, axes) in variables.items():
        if name in given:
            values[name] = state_dict[name].transpose(axes) if state_dict[name].ndim == len(axes) else state_dict[name]
            if values[name].shape != variable.shape:
                wrong.append(f"{name} has the shape {state_dict[name].shape}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"Expected torchvision's weights of {network.name}. Received: {'; '.join(wrong[:5])}{more}")
    for name, value in values.items():
        variables[name][0].assign(value)


def _variables(network):
    """By torchvision's name: the variable, and the order in which it holds the axes of torchvision's array."""
    variables = {}
    for layer in network.layers:
        name = "fc" if layer.name == "predictions" else layer.name.replace("_", ".")
        for part, variable in zip(("weight", "bias", "running_mean", "running_var"), layer.weights, strict=False):
            is_depthwise = isinstance(layer, layers.DepthwiseConv2D)
            variables[f"{name}.{part}"] = variable, DEPTHWISE_AXES if is_depthwise else AXES[len(variable.shape)]
    return variables
