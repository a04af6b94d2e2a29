"""The loop of a training: steps, mean weights, the best weights so far, and checkpoints to go on from.

A checkpoint holds all that a step depends on: weights, optimiser, the mean weights and the best ones, as arrays in one
file that is never half-written. Batches are a function of their number, so a training that goes on ends in the same
weights, bit for bit on one device, as one that was never cut off.
"""

import itertools
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import imaging, repro
from utils.networks import replicas
from utils.repro import keras

EVERY = 10  # steps: how often weights go into their mean
EARLY = 5  # steps: after so many it is told how long the rest takes; the first one is compiled


class Best(NamedTuple):
    """The entry of the history with the highest accuracy so far, and the weights it was measured with.

    By loss, which a few confident errors dominate, early weights would win, and they generalise worse.
    """

    entry: dict
    weights: list[np.ndarray]


class State(NamedTuple):
    """What a training is at between two steps: variables, best weights (or None), mean weights (or None), history."""

    variables: list[np.ndarray]
    best: Best | None
    mean: list[np.ndarray] | None
    history: list[dict]


def done(state: State | None) -> int:
    """Steps behind a state."""
    return state.history[-1]["done"] if state else 0


def run(
    scores: keras.Model, step_by: Callable, batches: Iterator, evaluate: Callable[[], dict], *, look_at: list[int],
    average: int, patience: int, progress: Callable[[dict], None], begin: State | None, save: Callable[[State], None],
) -> tuple[list[dict], Best | None, bool]:
    """Train on the batches; returns the history, the `Best` (None if there is none), and whether Ctrl-C came.

    Args:
        scores: the network whose weights are kept.
        step_by: of `replicas.stepper`.
        batches: what is left of them.
        evaluate: "validation_loss" and "validation_accuracy".
        look_at: the steps after which it is called.
        average, patience, progress: as of `arcface.train`.
        begin: the state to go on from, already in the network; None: the first step comes.
        save: called with the state after each evaluation, which lacks the variables.
    """
    _, best, mean, history = begin or State([], None, None, [])
    start = time.perf_counter() - (history[-1]["seconds"] if history else 0)
    losses, history, compiled = [], list(history), None
    try:
        wanted = itertools.takewhile(lambda _: not _is_enough(history, patience), batches)
        for step, (images, labels) in enumerate(wanted, done(begin) + 1):
            losses.append(step_by(images, labels))
            compiled = compiled or time.perf_counter()
            if step == done(begin) + EARLY and step < look_at[-1] // 5:
                progress({"loss": float(np.mean(losses))} | _pace(step, look_at[-1], start, compiled))
            if average and step % EVERY == 0:
                mean = blend(mean, scores.get_weights(), min(1, EVERY / min(average, step)))
            if step not in look_at:
                continue
            if mean:
                newest = scores.get_weights()
                scores.set_weights(mean)
            history.append({"loss": float(np.mean(losses))} | evaluate() | repro.pace(step, look_at[-1], start))
            losses.clear()
            entry, bar = history[-1], best.entry["validation_accuracy"] if best else 0
            if np.isfinite(entry["validation_loss"]) and entry["validation_accuracy"] >= bar:
                best = Best(entry, scores.get_weights())
            if mean:
                scores.set_weights(newest)
            save(State([], best, mean, history))
            progress(history[-1])
    except KeyboardInterrupt:
        return history, best, True
    return history, best, False


def _is_enough(history, patience):
    """Whether the last evaluations, as many as patience says, were all perfect."""
    return 0 < patience <= len(history) and all(entry["validation_accuracy"] == 1 for entry in history[-patience:])


def _pace(step, steps, start, compiled):
    """As `repro.pace` after `EARLY` steps, by the time since the first of them, which is compiled, was done."""
    per_step = (time.perf_counter() - compiled) / (EARLY - 1)
    return repro.pace(step, steps, start) | {"seconds_left": per_step * (steps - step)}


def blend(mean: list[np.ndarray] | None, weights: list[np.ndarray], share: float) -> list[np.ndarray]:
    """The mean weights with a share of new ones; without a mean the new ones."""
    if mean is None:
        return weights
    return [(1 - share) * old + share * new for old, new in zip(mean, weights, strict=True)]


class Checkpoint:
    """The state of a training in a file.

    Args:
        path: None: nothing is kept.
        variables: of network and optimiser, all that a step changes.
        settings: ready for JSON, of the training; one with others cannot go on.
    """

    def __init__(self, path: Path | None, variables: list, *, settings: dict):
        self.path, self.variables, self.settings = path, variables, settings

    def save(self, state: State) -> None:
        """Write the state, with the variables as they are now; the file appears as a whole or not. The chief writes."""
        if not self.path or not replicas.is_chief():
            return
        groups = {
            "variables": [variable.numpy() for variable in self.variables], "mean": state.mean or [],
            "best": state.best.weights if state.best else [],
        }
        about = {
            "settings": self.settings, "history": state.history, "best": state.best and state.best.entry,
            "sizes": {name: len(values) for name, values in groups.items()},
        }
        arrays = {f"{name}_{i}": value for name, values in groups.items() for i, value in enumerate(values)}
        with imaging.atomic_write(self.path) as draft, draft.open("wb") as file:
            np.savez(file, about=np.frombuffer(json.dumps(about).encode("ascii"), np.uint8), **arrays)

    def restore(self) -> State | None:
        """Set the variables to what the file holds, and return its state; None if there is no file.

        Raises:
            ValueError: it is damaged, or of another training.
        """
        if not self.path or not self.path.exists():
            return None
        about, groups = self._read()
        shapes = [tuple(variable.shape) for variable in self.variables]
        changed = [name for name, value in self.settings.items() if about["settings"].get(name) != value]
        if changed or shapes != [value.shape for value in groups["variables"]]:
            what = f"another {changed[0]}" if changed else "another network"
            raise ValueError(f"{self.path} is of a training with {what}; leave out --resume to start anew.")
        for variable, value in zip(self.variables, groups["variables"], strict=True):
            variable.assign(value)
        best = Best(about["best"], groups["best"]) if about["best"] else None
        return State(groups["variables"], best, groups["mean"] or None, about["history"])

    def _read(self):
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                about = json.loads(arrays["about"].tobytes())
                sizes = about["sizes"].items()
                return about, {name: [arrays[f"{name}_{i}"] for i in range(size)] for name, size in sizes}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            raise ValueError(f"{self.path} is damaged; leave out --resume to start anew.") from None
