"""Networks of keras.applications, rebuilt: layers of lasting names, seeded initial weights, and where weights lie.

`embedding` and `classifiers` build on it.
"""

import collections
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utils.repro import keras

# Keras' own names for layers that keras.applications leaves unnamed; the number counts the process's earlier layers.
AUTO_NAME = re.compile(
    r"(activation|add|average_pooling2d|batch_normalization|concatenate|conv2d|max_pooling2d|multiply|normalization"
    r"|re_lu|rescaling|zero_padding2d)(?:_(\d+))?"
)
NAMED_AFTER_FRONT = ("activation", "add", "multiply", "re_lu")


def rebuild(model: keras.Model, *, initializer: Callable, changes: Mapping[str, dict] | None = None) -> keras.Model:
    """A copy of a functional model in which no layer's name depends on what the process built before.

    Args:
        initializer: layer → initializer of its kernel; asked once per layer with a kernel, in order.
        changes: by layer name, new entries of its config.
    """
    names, changes = _lasting_names(model), changes or {}

    def copy(layer):
        config = layer.get_config() | {"name": names[layer.name]} | changes.get(layer.name, {})
        key = "depthwise_initializer" if isinstance(layer, keras.layers.DepthwiseConv2D) else "kernel_initializer"
        if key in config:
            config[key] = initializer(layer)
        return layer.__class__.from_config(config)

    return keras.models.clone_model(model, clone_function=copy)


def front(operation) -> keras.Operation:
    """The layer or operation behind an operation's last input: of a residual block the main path, not the shortcut."""
    return keras.tree.flatten(operation.input)[-1]._keras_history.operation


def _lasting_names(model):
    """{name in the model: lasting name}. An unnamed activation is called after the layer in front of it.

    The other unnamed layers, and the activations behind them, keep their kind and count from 0, as in a new process.
    """
    unnamed = {o.name: match for o in model.operations if (match := AUTO_NAME.fullmatch(o.name))}
    first = collections.defaultdict(lambda: float("inf"))
    for kind, number in (match.groups("0") for match in unnamed.values()):
        first[kind] = min(first[kind], int(number))
    names = {}
    for operation in model.operations:
        if operation.name not in unnamed:
            names[operation.name] = operation.name
            continue
        kind, number = unnamed[operation.name].groups("0")
        before = names[front(operation).name]
        if kind in NAMED_AFTER_FRONT and not AUTO_NAME.fullmatch(before):
            names[operation.name] = f"{before.removesuffix('_bn')}_{type(operation).__name__.lower()}"
        else:
            index = int(number) - first[kind]
            names[operation.name] = f"{kind}_{index}" if index else kind
    return names


def find_weights(
    weights: str | os.PathLike, name: str, *, file_names: Sequence[str], published: bool = True
) -> Path | str:
    """The path of a weights file: the given one, or for "imagenet" one of the file_names in ``$IMAGENET_WEIGHTS``.

    Returns "imagenet" if Keras has published weights to download; FileNotFoundError if it has not, or must not.
    """
    if weights != "imagenet":
        if not Path(weights).is_file():
            raise FileNotFoundError(f"No weights file {weights}; expected 'imagenet' or a file of weights of {name}.")
        return Path(weights)
    if folder := imagenet_folder():
        for file in (folder / file_name for file_name in file_names):
            if file.is_file():
                return file
    if not published:
        raise FileNotFoundError(
            f"Keras publishes no weights of {name}: put {' or '.join(file_names)} into $IMAGENET_WEIGHTS, or name the "
            "file instead of 'imagenet'."
        )
    if is_offline():
        raise FileNotFoundError(
            f"No file {file_names[0]} in $IMAGENET_WEIGHTS, and FASTER_GRAD_CAM_OFFLINE=1 forbids the download; put "
            "the file there, or take weights=None."
        )
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
