"""Sanity checks for saliency maps (arXiv 1810.03292): a network that forgets what it learned must be explained anew."""

from collections.abc import Callable, Sequence

import numpy as np

from utils import imaging, metrics, networks
from utils.repro import keras

Explain = Callable[[keras.Model], np.ndarray]


def cascade(
    network: keras.Model, explain: Explain, *, layers: Sequence[str] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """How similar maps remain while the network forgets: all its layers are shuffled, one by one, from the top down.

    Within each of its arrays a layer's weights change places, so their distribution stays.

    Args:
        explain: network → maps float (N, H, W), such as
            ``functools.partial(gradcam.explain, images=images, layer=layer, targets=labels)``, or `stored_weights`.
        layers: the maps are compared after each of these, "outer/inner" in nested models; None: after every layer.
            ValueError where one is not there or has no weights.

    Returns:
        {layer: float (N,)}, from the top down: `metrics.spearman` of the maps of the untouched network and of a copy
        with all layers down to this one shuffled; near 1 where the map does not depend on them.
    """
    copy, rng = keras.models.clone_model(network), np.random.default_rng(seed)
    copy.set_weights(network.get_weights())
    by_name = {name: call.operation for name, call in networks.trace(copy)[1].items()}
    weighted = [name for name, layer in by_name.items() if getattr(layer, "weights", None) and "#" not in name]
    layers = weighted if layers is None else layers
    if unknown := [name for name in layers if name not in weighted]:
        raise ValueError(f"No layer of that name has weights; choose of {weighted}. Received: {unknown}")
    before, agreement = explain(network), {}
    for name in reversed(weighted):
        weights = [rng.permutation(array.ravel()).reshape(array.shape) for array in by_name[name].get_weights()]
        by_name[name].set_weights(weights)
        if name in layers:
            agreement[name] = metrics.spearman(before, explain(copy))
    return agreement


def stored_weights(faster, images: np.ndarray) -> Explain:
    """``explain`` for `cascade` of ``faster.network``: the stored channel weights meet another network's feature maps.

    Each image keeps its cluster, so that a map changes only because the feature maps do; layers above them take no
    part. ``faster`` is a `FasterGradCAM`, ``images`` are uint8 RGB (N, H, W, 3) of any size.
    """
    clusters, resized = faster.explain(images).clusters, imaging.resize(images, *faster.input_size)

    def explain(network):
        maps, _, *details = networks.forward(network, resized)
        return imaging.resize(faster.heat_maps(clusters, maps, *details), *images.shape[1:3])

    return explain
