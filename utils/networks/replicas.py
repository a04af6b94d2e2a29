"""One gradient step on one device, on all GPUs of a machine, or on several machines: data-parallel, synchronous.

Each replica sees its share of the same batch. Losses are divided by the size of the whole batch and gradients summed:
a step does not depend on the number of replicas, but for rounding. Keras' own ``fit`` and ``train_on_batch`` cannot run
on several machines, so there the step is a function in ``strategy.run``, with the Keras optimizer inside.
"""

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from utils.repro import keras, tf

LOST = (
    tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError, tf.errors.DeadlineExceededError,
    tf.errors.CancelledError,
)


def strategy() -> tf.distribute.Strategy:
    """What suits this machine: several machines where ``TF_CONFIG`` names them, all GPUs where there are some, or none.

    To be called before anything else of TensorFlow. A network is built and trained in its ``scope()``; what only one
    process does stays outside, because each new variable in there is a message to the others.

    Raises:
        ValueError: ``TF_CONFIG`` does not tell the workers and which one this is.
    """
    return _strategy(os.environ.get("TF_CONFIG"))


@functools.cache
def _strategy(config):
    if config:
        _check_config(config)
        return tf.distribute.MultiWorkerMirroredStrategy()
    n_gpus = len(tf.config.list_physical_devices("GPU"))
    return tf.distribute.MirroredStrategy() if n_gpus > 1 else tf.distribute.get_strategy()


def _check_config(text):
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        hosts, index = cluster.get("chief", []) + cluster["worker"], task["index"]
        if task["type"] in ("chief", "worker") and 0 <= index < len(cluster[task["type"]]) and all(hosts):
            return
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        'TF_CONFIG must be as {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}. '
        f"Received: {text}"
    )


def is_chief() -> bool:
    """Whether this process is the one that writes."""
    resolver = strategy().cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    return resolver.task_type == "chief" or (resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs)


@contextmanager
def together() -> Iterator[None]:
    """Turn what TensorFlow raises when another worker is gone into one sentence.

    Raises:
        OSError: that sentence.
    """
    try:
        yield
    except LOST as error:
        if not os.environ.get("TF_CONFIG"):
            raise
        raise OSError(
            f"Another worker is lost ({type(error).__name__}); start all of them again with --resume."
        ) from None


def stepper(trainer: keras.Model, optimizer: keras.Optimizer) -> Callable[[np.ndarray, np.ndarray], float]:
    """A gradient step of the current strategy.

    Args:
        trainer: images (N, S, S, 3), labels (N,) → logits (N, K).
        optimizer: of its weights.

    Returns:
        A function of the whole batch, float32 images and int labels, the same in all processes, that changes the
        weights and returns the mean loss. Its batch must be a multiple of the number of replicas.
    """
    optimizer.build(trainer.trainable_variables)  # else the first step creates them, and everything is traced twice
    chosen = tf.distribute.get_strategy()
    if chosen.num_replicas_in_sync == 1 and not isinstance(chosen, tf.distribute.MultiWorkerMirroredStrategy):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # On a CPU, XLA compiles longer than the whole training takes.
        trainer.compile(optimizer, loss, jit_compile=False)
        return lambda images, labels: trainer.train_on_batch([images, labels], labels)
    return _distributed(trainer, optimizer, chosen)


def _distributed(trainer, optimizer, chosen):
    n_replicas = chosen.num_replicas_in_sync
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")

    def of_replica(images, labels, batch_size):
        with tf.GradientTape() as tape:
            value = loss(labels, trainer([images, labels], training=True)) / tf.cast(batch_size, tf.float32)
            value += sum(trainer.losses) / n_replicas  # regularisers
        gradients = tape.gradient(value, trainer.trainable_variables)
        optimizer.apply(gradients, trainer.trainable_variables)  # it sums them over the replicas
        return value

    @tf.function
    def of_all(images, labels, batch_size):
        with synchronised(trainer):
            values = chosen.run(of_replica, args=(images, labels, batch_size))
        return chosen.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

    def step(images, labels):
        shares = [np.array_split(values, n_replicas) for values in (images, labels)]
        mine = (
            chosen.experimental_distribute_values_from_function(
                lambda context, parts=parts: tf.constant(parts[context.replica_id_in_sync_group])
            )
            for parts in shares
        )
        with together():
            return float(of_all(*mine, tf.constant(len(images))))

    return step


@contextmanager
def synchronised(network: keras.Model) -> Iterator[None]:
    """While the network is traced, its batch normalisation takes mean and variance of all replicas together."""
    layers = [layer for layer in network._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    before = [layer.synchronized for layer in layers]
    for layer in layers:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.synchronized = value


def wait_for_all() -> None:
    """Return when all processes have called it."""
    chosen = strategy()
    if chosen.num_replicas_in_sync > 1:
        with together(), chosen.scope():
            chosen.reduce(tf.distribute.ReduceOp.SUM, chosen.run(tf.function(lambda: tf.constant(1.0))), axis=None)


def check_batch(batch_size: int) -> None:
    """ValueError unless every replica gets an equal share."""
    n_replicas = strategy().num_replicas_in_sync
    if batch_size % n_replicas:
        raise ValueError(f"The batch must be a multiple of the {n_replicas} replicas. Received: {batch_size}")
