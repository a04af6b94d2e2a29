"""How a model is trained: the recipe, of which the options of ``train`` are made. Needs no TensorFlow."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

from utils.commands.common import SOURCES, option

BACKBONES = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "small_resnet")
# A network that has seen nothing yet learns from large steps, and not at all from images that hide most of themselves.
FROM_SCRATCH = {"learning_rate": 3e-3, "augmentation": 0.2}
FROM_WEIGHTS = {"learning_rate": 2e-4, "augmentation": 1.0}
UNTOLD = {"n_images": 600}  # of a model that does not tell its recipe


@dataclass(frozen=True)
class Recipe:
    """All that decides about a model; its folder keeps it in ``meta.json`` as "training"."""

    data: tuple[str, ...] = ()  # sources, in a saved recipe without their folders
    none: bool = option(False, "add rendered backgrounds as the class none", group="data")
    n_images: int = option(1200, "number of rendered hands", group="data")
    variety: float = option(1.0, "how much rendered hands differ, 0..2; above 1: share of rare poses", group="data")
    image_size: int = option(96, "side of the network's input in pixels", group="network")
    backbone: str = option("mobilenet_v2", "network to start from", choices=BACKBONES, group="network")
    alpha: float = option(1.0, "width of the backbone, as a factor", group="network")
    output_stride: int = option(16, "pixels per cell of the last maps", choices=(8, 16, 32), group="network")
    last_layer: str | None = option(None, "layer to cut the backbone after (default: its last)", group="network")
    local_contrast: bool = option(False, "even out haze, glare and shade of the images first", group="network")
    embedding_size: int = option(128, "number of values in an embedding", group="network")
    weights: str = option(
        "imagenet", "imagenet, none (from scratch), a weights file, or a model folder, to go on", group="network"
    )
    steps: int = option(400, "number of gradient steps", group="training")
    batch_size: int = option(32, "images per step", group="training")
    learning_rate: float | None = option(None, "size of a step (default: 2e-4, from scratch 3e-3)", group="training")
    scale: float = option(30.0, "ArcFace scale", group="training")
    margin: float = option(0.3, "ArcFace margin in radians", group="training")
    augmentation: float | None = option(
        None, "strength of random change, 0..1 (default: 1, from scratch 0.2)", group="training"
    )
    robust: bool = option(
        False, "vary rooms and cameras more: bars in the object's colours behind it, other colours and sharpness",
        group="training",
    )
    average: int = option(0, "keep the mean weights of about so many last steps (default: the last)", group="training")
    keep: float = option(
        0.0, "share of the weights of a model that goes on to keep, 0..1: it forgets less (WiSE-FT)", group="training"
    )
    patience: int = option(
        0, "end when so many of the ten evaluations in a row were perfect (default: take all steps)", group="training"
    )
    seed: int = option(0, "seed of everything random", group="training")
    layer: str | None = option(None, "layer of the heat maps (default: the backbone's own)", group="heat maps")
    details: str = option(
        "auto", "what sharpens their outline, with contrast. layer: a finer layer; objects: what tells objects from "
        "their surroundings, learnt from the photos; none; auto: what matters most to the network on held-out photos",
        choices=("auto", "layer", "objects", "none"), group="heat maps",
    )
    detail_layer: str | None = option(None, "the finer layer (default: the last at 1/8)", group="heat maps")
    clusters: int = option(10, "clusters per class", group="heat maps")
    top_channels: int | None = option(
        None, "channels to keep per cluster, the largest (default: all; the paper: 50)", group="heat maps"
    )
    weighting: str = option(
        "contrast", "channel weights. all: mean gradients; positive: without the negative ones; contrast: positive "
        "gradients x how much more a channel responds to the classes than to backgrounds",
        choices=("contrast", "positive", "all"), group="heat maps",
    )

    @classmethod
    def of(cls, model) -> "Recipe":
        """The settings stored with a `FasterGradCAM`, completed by defaults sufficient to load data for it."""
        told = UNTOLD | model.meta.get("training", {}) | {"image_size": model.input_size[0]}
        known = {part.name: told[part.name] for part in fields(cls) if part.name in told}
        return cls(**known | {"data": tuple(known.get("data", ()))})

    def chosen_by_weights(self) -> dict[str, float]:
        """learning_rate and augmentation; where the recipe leaves them open, what suits the weights."""
        defaults = FROM_SCRATCH if self.weights == "none" else FROM_WEIGHTS
        given = {name: getattr(self, name) for name in defaults}
        return {name: defaults[name] if value is None else value for name, value in given.items()}

    def stored(self) -> dict:
        """Ready for ``meta.json``: a model goes further than this machine's paths."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return values | {"data": [data_name(source) for source in self.data], "weights": Path(self.weights).name}


def data_name(source: str) -> str:
    """What a model remembers of a source: its name, of "." that of the folder, of a folder named janken "janken/"."""
    if source in SOURCES:
        return source
    name = Path(os.path.abspath(Path(source).expanduser())).name
    return f"{name}/" if name in SOURCES else name
