"""One gradient step on one device, on all GPUs of a machine, or on several machines: data-parallel, synchronous.

Each replica sees its share of the same batch. Losses are divided by the size of the whole batch and gradients summed:
a step does not depend on the number of replicas, but for rounding. Keras' own ``fit`` and ``train_on_batch`` cannot run
on several machines, so there the step is a function in ``strategy.run``, with the Keras optimizer inside. What looks at
all images without a step, as evaluation and harvest do, is shared by the machines as well (see `in_shares`).
"""

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from utils.repro import keras, tf

PORT, MOST_TASKS = 29500, 1 << 10  # of the first task on a machine, and how many a machine may have, with SLURM
SLURM = "_STEP_NUM_TASKS", "D_NODENAME", "_LOCALID"  # what SLURM tells of a step: tasks, this machine, the task on it
LOST = (
    tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError, tf.errors.DeadlineExceededError,
    tf.errors.CancelledError,
)


def strategy() -> tf.distribute.Strategy:
    """What suits this machine: several machines where ``TF_CONFIG`` or SLURM names them, all GPUs, or one device.

    To be called before anything else of TensorFlow. A network is built and trained in its ``scope()``; what only one
    process does stays outside, because each new variable in there is a message to the others.

    Raises:
        ValueError: ``TF_CONFIG``, or SLURM's variables, do not tell the workers and which one this is.
    """
    slurm = tuple(os.environ.get(f"SLURM{name}", "") for name in SLURM)
    return _strategy(os.environ.get("TF_CONFIG"), slurm)


@functools.cache
def _strategy(config, slurm):
    if config:
        _check_config(config)
        return tf.distribute.MultiWorkerMirroredStrategy()
    if slurm[0] not in ("", "1"):
        return tf.distribute.MultiWorkerMirroredStrategy(_slurm_cluster(*slurm))
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


def _slurm_cluster(_, host, number):
    """All tasks of this SLURM step, each at a port of its own, and which of them this is."""
    try:
        # The GPUs are those that SLURM gives a task: here nothing is counted or hidden.
        found = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=PORT, gpus_per_node=MOST_TASKS, gpus_per_task=1, auto_set_gpu=False
        )
        cluster = found.cluster_spec()
        # It sorts hosts by name, n10 before n2; SLURM's own number of a task does not.
        index = cluster.job_tasks("worker").index(f"{host}:{PORT + int(number)}")
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"SLURM does not tell the workers and which one this is: {error}") from None
    return tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, task_type="worker", task_id=index)


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
        if not is_several(strategy()):
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
    if chosen.num_replicas_in_sync == 1 and not is_several(chosen):
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


def is_several(chosen: tf.distribute.Strategy) -> bool:
    """Whether a strategy is one of several machines."""
    return isinstance(chosen, tf.distribute.MultiWorkerMirroredStrategy)


def in_shares(function: Callable, items: Iterable) -> Iterator:
    """``map``, shared by the machines, in whose strategy's scope it is called by all, for the same items.

    All machines get all results, in order; one item is a round, and then nothing is shared.

    Args:
        function: item → an array or tensor (n, ...), or a list of some; n is any, the rest the same for all items.

    Yields:
        What the function gives; of several machines, that of an item for each of them behind each other.

    Example:
        >>> [*in_shares(lambda n: np.zeros((n, 2)), [1, 3])][1].shape
        (3, 2)
    """
    chosen = tf.distribute.get_strategy()
    if not is_several(chosen):
        yield from map(function, items)
        return
    place, n_workers = _place(chosen.cluster_resolver)
    items = iter(items)
    while group := list(itertools.islice(items, n_workers)):
        result = function(group[min(place, len(group) - 1)])
        yield result if len(group) == 1 else _gather(chosen, result, is_mine=place < len(group))


def _place(resolver):
    """The number of this process among all, as TensorFlow orders them, and how many there are."""
    cluster = resolver.cluster_spec().as_dict()
    n_chiefs = len(cluster.get("chief", ()))
    return resolver.task_id + n_chiefs * (resolver.task_type == "worker"), n_chiefs + len(cluster["worker"])


def _gather(chosen, result, *, is_mine):
    """What all processes have computed, in the form of the result; of one with nothing of its own, no rows."""
    several = isinstance(result, list)
    arrays = [np.asarray(array) for array in (result if several else [result])]
    n_local = len(chosen.extended.worker_devices)

    def of(context, array):
        is_first = context.replica_id_in_sync_group % n_local == 0
        return tf.constant(array if is_mine and is_first else array[:0])

    values = [
        chosen.experimental_distribute_values_from_function(functools.partial(of, array=array)) for array in arrays
    ]
    with together():
        found = _gathering(chosen, len(arrays))(*values)
        gathered = [chosen.experimental_local_results(value)[0].numpy() for value in found]
    return gathered if several else gathered[0]


@functools.cache
def _gathering(chosen, _):  # a function of one array cannot become one of three
    def of_replica(*values):
        placed = [tf.identity(value) for value in values]  # it refuses tensors that are on no device
        return tf.distribute.get_replica_context().all_gather(placed, axis=0)

    return tf.function(lambda *values: chosen.run(of_replica, args=values), reduce_retracing=True)


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
