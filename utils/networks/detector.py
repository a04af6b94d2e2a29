"""The network that finds what was changed in an image: what `anomaly` trains."""

import os

from utils.networks.embedding import Spec, embedding_network
from utils.networks.graph import wrap
from utils.networks.spatial import get_layer
from utils.repro import keras

# Maps of three resolutions, 1/4, 1/8 and 1/16 of the image's; distances are taken in the last two.
LAYERS = {
    "small_resnet": ("stage_1_block_1_relu", "stage_2_block_1_relu", "stage_3_block_1_relu"),
    "mobilenet_v2": ("block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu"),
}
CHANNELS = 48, 32  # of the map's head: where the resolutions meet, and behind that


def build(spec: Spec, weights: str | os.PathLike | None = None, *, seed: int = 0) -> keras.Model:
    """The core (see `anomaly.AnomalyDetector`). With weights nothing of the backbone is trained."""
    network = embedding_network(spec, weights, seed=seed)
    if weights:
        for layer in network.layers[:-1]:
            layer.trainable = False
    maps = [get_layer(network, name).output for name in LAYERS[spec.backbone]]
    seeds = iter(range(1000 * seed + 900, 1000 * seed + 1000))
    size = maps[0].shape[1]

    def convolution(maps, channels, kernel_size):
        how = {"padding": "same", "use_bias": False, "kernel_initializer": keras.initializers.HeNormal(next(seeds))}
        maps = keras.layers.Conv2D(channels, kernel_size, **how)(maps)
        return keras.layers.BatchNormalization(momentum=0.9)(maps)

    levels = [convolution(level, CHANNELS[0], 1) for level in maps]
    grown = [keras.layers.UpSampling2D(size // x.shape[1], interpolation="bilinear")(x) for x in levels[1:]]
    met = keras.layers.ReLU()(keras.layers.Add()([levels[0], *grown]))
    met = keras.layers.ReLU()(convolution(met, CHANNELS[1], 3))
    rare = keras.initializers.Constant(-3)  # few cells are changed
    initializer = keras.initializers.HeNormal(next(seeds))
    logits = keras.layers.Conv2D(1, 1, kernel_initializer=initializer, bias_initializer=rare, name="changed")(met)
    outputs = [logits, *maps[1:], network.outputs[0]]
    return wrap(network.inputs[0], outputs, like=network, name="anomaly_core")
