"""Reproducibility: seeds, deterministic kernels, versions, one stopwatch; and TensorFlow and Keras, handed out quietly.

Whoever needs them writes ``from utils.repro import keras, tf``. Then the order of imports does not matter.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from utils.runtime import silent_stderr

# The log differs between machines, and a notebook test compares stderr. TensorFlow 2.21 writes the first lines
# while its library is being loaded, whatever the log level is; the level is for those that come later.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if (backend := os.environ.get("KERAS_BACKEND") or "tensorflow") != "tensorflow":
    raise ImportError(f"KERAS_BACKEND is {backend}, but this project computes with TensorFlow: unset that variable.")
os.environ["KERAS_BACKEND"] = backend  # rather than what a settings file of Keras says
with silent_stderr():
    import keras
    import tensorflow as tf

TURN_SECONDS = 0.05  # a short function is called again and again for that long when it is its turn
PACKAGES = (
    "tensorflow", "keras", "numpy", "scikit-learn", "opencv-python", "opencv-python-headless", "matplotlib",
    "ai-edge-litert", "litert-quantizer",
)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and Keras and make TensorFlow's kernels deterministic.

    On one machine the same seed then gives the same weights, bit for bit. Another CPU may round differently.
    Deterministic mode stays on for the rest of the process.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def time_in_turn(runs: dict[str, Callable[[], object]], rounds: int = 9) -> dict[str, list[float]]:
    """Seconds of a call, for each function one figure per round: all of them once to warm up, then in turn.

    A turn lasts `TURN_SECONDS`, or one call that takes longer. Its figure is the median of the calls but the first,
    which finds the caches filled by another function.
    """
    for call in runs.values():
        call()
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, call in runs.items():
            turn = []
            while sum(turn) < TURN_SECONDS:
                start = time.perf_counter()
                call()
                turn.append(time.perf_counter() - start)
            seconds[name].append(statistics.median(turn[1:] or turn))
    return seconds


def pace(done: int, total: int, start: float) -> dict:
    """For ``progress``: how far a loop is that began at ``start`` (`time.perf_counter`), seconds gone and left."""
    seconds = time.perf_counter() - start
    return {"done": done, "total": total, "seconds": seconds, "seconds_left": seconds / done * (total - done)}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers: ``{name: version}``."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
