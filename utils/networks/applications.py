"""Networks of keras.applications, rebuilt: layers of lasting names, seeded initial weights, and where weights lie.

`embedding` and `classifiers` build on it.
"""

import collections
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utils.repro import keras

# Names that Keras gives to layers which keras.applications leaves unnamed; the number counts earlier layers of the
# process.
AUTO_NAME = re.compile(
    r"(activation|add|average_pooling2d|batch_normalization|concatenate|conv2d|max_pooling2d|multiply|normalization"
    r"|re_lu|rescaling|zero_padding2d)(?:_(\d+))?"
)
NAMED_AFTER_FRONT = ("activation", "add", "multiply", "re_lu")


def rebuild(model: keras.Model, *, initializer: Callable, changes: Mapping[str, dict] | None = None) -> keras.Model:
    """A copy of the model in which a layer's name does not depend on what the process built before.

    Args:
        model: functional.
        initializer: layer of the model → initializer of its kernel; asked once per layer with a kernel, in order.
        changes: by layer name, entries of its config that become others.
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
    """The layer or operation that gives an operation its last input: a block's main path, where a shortcut joins it."""
    return keras.tree.flatten(operation.input)[-1]._keras_history.operation


def _lasting_names(model):
    """By name in the model: a name that does not count what the process built before.

    An unnamed activation is called after the layer in front of it. The others, and the activations behind them,
    keep their kind and count from 0, as in a new process.
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
    """The path of a weights file; "imagenet" where Keras shall download it.

    Args:
        weights: "imagenet", or the path of a file.
        name: of the network, for errors.
        file_names: looked for in ``$IMAGENET_WEIGHTS``, the first one that is there wins.
        published: whether Keras has weights of this network to download.

    Raises:
        FileNotFoundError: no such file, and no download.
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
