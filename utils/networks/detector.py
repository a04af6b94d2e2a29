"""The network that finds what was changed in an image, which `anomaly` trains."""

import os
from collections.abc import Callable, Iterable

import numpy as np

from utils import imaging
from utils.networks.embedding import Spec, embedding_network
from utils.networks.graph import wrap
from utils.networks.spatial import get_layer
from utils.repro import keras, tf

# Maps of three resolutions, 1/4, 1/8 and 1/16 of the image's.
LAYERS = {
    "small_resnet": ("stage_1_block_1_relu", "stage_2_block_1_relu", "stage_3_block_1_relu"),
    "mobilenet_v2": ("block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu"),
}
SIDES = 224, 320, 448  # of the input of a network with weights
DETAIL_LOST = 0.1  # of an image's standard deviation may be lost by a resize to its input
ARCFACE_WEIGHT = 0.1  # of the loss
CHANNELS = 48, 32  # of the map's head: where the resolutions meet, and behind that


def build(spec: Spec, weights: str | os.PathLike | None = None, *, seed: int = 0) -> keras.Model:
    """The core: images → logits (N, g, g, 1), maps of the three `LAYERS`, embedding (N, D).

    With weights nothing of the backbone is trained.
    """
    network = embedding_network(spec, weights, seed=seed)
    if weights:
        for layer in network.layers[:-1]:
            layer.trainable = False
    maps = [get_layer(network, name).output for name in LAYERS[spec.backbone]]
    logits = map_head([level.shape[-1] for level in maps], seed=seed)(maps)
    return wrap(network.inputs[0], [logits, *maps, network.outputs[0]], like=network, name="anomaly_core")


def map_head(channels: list[int], *, seed: int) -> keras.Model:
    """Maps of three resolutions, each half as wide as the one before → logits of "changed", of the first's size."""
    seeds = iter(range(1000 * seed + 900, 1000 * seed + 1000))
    maps = [keras.Input((None, None, n)) for n in channels]

    def convolution(maps, channels, kernel_size):
        how = {"padding": "same", "use_bias": False, "kernel_initializer": keras.initializers.HeNormal(next(seeds))}
        maps = keras.layers.Conv2D(channels, kernel_size, **how)(maps)
        return keras.layers.BatchNormalization(momentum=0.9)(maps)

    first, *smaller = [convolution(level, CHANNELS[0], 1) for level in maps]
    grown = [keras.layers.UpSampling2D(2**n, interpolation="bilinear")(x) for n, x in enumerate(smaller, 1)]
    met = keras.layers.ReLU()(keras.layers.Add()([first, *grown]))
    met = keras.layers.ReLU()(convolution(met, CHANNELS[1], 3))
    rare = keras.initializers.Constant(-3)  # few cells are changed
    initializer = keras.initializers.HeNormal(next(seeds))
    logits = keras.layers.Conv2D(1, 1, kernel_initializer=initializer, bias_initializer=rare)(met)
    return keras.Model(maps, logits, name="changed")


def side_of_tile(tile: int | None) -> int | None:
    """The smallest of `SIDES` that keeps the pixels of a tile, the largest if none does; None: there are no tiles."""
    return tile and next((side for side in SIDES if side >= tile), SIDES[-1])


def side_for(images: Iterable[np.ndarray]) -> int:
    """The smallest of `SIDES` at which images keep their detail, uint8 RGB (1, H, W, 3); the largest if none does.

    Detail is lost where an image differs from itself made small and large again. In half of the images at most
    `DETAIL_LOST` of the standard deviation may be.
    """
    for side in SIDES[:-1]:
        lost = []
        for image in images:
            again = imaging.resize(imaging.resize(image, side, side), *image.shape[1:3]).astype(np.float32)
            is_enlarged = side * side >= image.shape[1] * image.shape[2]
            lost.append(0.0 if is_enlarged else (again - image).std() / max(image.std(), 1.0))
        if np.median(lost) <= DETAIL_LOST:
            return side
    return SIDES[-1]


def training_step(core: keras.Model, heads: list[keras.Model], arcface: keras.layers.Layer, *, steps: int) -> Callable:
    """A step of the training: images, masks and labels of a batch, as tensors → loss.

    The loss: cross-entropy of the map's cells, changed ones counted up to five times; the Dice loss of the same, for
    which small defects do not matter less; and ArcFace. The heads learn the same map, each from its half of the batch.
    """
    variables = [arcface.kernel, *(variable for part in (core, *heads) for variable in part.trainable_variables)]
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps), amsgrad=True)
    optimizer.build(variables)
    cell = core.inputs[0].shape[1] // core.outputs[0].shape[1]

    @tf.function(reduce_retracing=True)
    def step(images, masks, labels):
        # A thin line fills no cell: half a cell counts as a whole one.
        target = tf.minimum(1.0, 2 * tf.nn.avg_pool2d(tf.cast(masks, tf.float32)[..., None], cell, cell, "VALID"))
        with tf.GradientTape() as tape:
            logits, *maps, embeddings = core(tf.cast(images, tf.float32), training=True)
            angular = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, arcface(embeddings, labels))
            loss = _map_loss(logits, target) + ARCFACE_WEIGHT * tf.reduce_mean(angular)
            half = len(images) // 2
            for part, judge in zip((slice(half), slice(half, None)), heads, strict=True):
                seen = judge([tf.stop_gradient(level[part]) for level in maps], training=True)
                loss += _map_loss(seen, target[part])
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    return step


def _map_loss(logits, target):
    found = tf.sigmoid(logits)
    dice = 1 - (2 * tf.reduce_sum(found * target) + 1) / (tf.reduce_sum(found) + tf.reduce_sum(target) + 1)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(target, logits)
    return tf.reduce_mean((1 + 4 * target) * entropy) + 0.3 * dice
