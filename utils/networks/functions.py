"""What a function of one tensor computes, found by trying it on numbers: not by its name, which anybody may choose."""

from collections.abc import Callable

import numpy as np

from utils.repro import tf

# Numbers that float16 holds exactly; a rectifier is surely cold at the lowest, and as high as it gets at the highest.
# Zero is left out: it stays as it is in any of them.
GRID = np.concatenate([[-1e3], np.linspace(-19.875, 19.875, 160), [1e3]]).astype(np.float32)


def rectifier_bounds(function: Callable, shape: tuple, dtype) -> tuple | None:
    """Of a rectifier (t, m); () of any other function that takes each number alone; None of what is none such.

    None, too, of a function of a rectifier, such as its square: all that is negative becomes 0.
    """
    sides = (*(1 for _ in shape[:-1]), shape[-1] or 1)

    def passes(numbers):
        """What is made of these numbers, and which of them stay as they are."""
        given = np.broadcast_to(numbers.reshape(-1, *(1 for _ in sides)), (len(numbers), *sides))
        made, given = (_floats(x).reshape(len(numbers), -1)[:, 0] for x in (function(tf.cast(given, dtype)), given))
        return made, made == given

    with tf.init_scope():  # eagerly, also while a graph is being made
        try:
            if not _takes_each_alone(function, shape, dtype):
                return None
            made, same = passes(GRID)
        except Exception:  # whatever an operation raises that does not take such a tensor
            return None
        kept = np.flatnonzero(same)
        others = () if made[GRID < 0].any() else None
        if len(kept) < 2 or len(kept) == len(GRID) or np.ptp(kept) + 1 > len(kept):
            return others
        cold, hot = made[: kept[0]], made[kept[-1] + 1 :]
        if not len(cold) or cold.any() or (len(hot) and np.ptp(hot)):
            return others
        lower = _edge(passes, GRID[kept[0] - 1], GRID[kept[0]])
        return lower, _edge(passes, GRID[kept[-1] + 1], GRID[kept[-1]]) if len(hot) else float("inf")


def _floats(x):
    return tf.cast(x, tf.float32).numpy()


def _edge(passes, outside, inside):
    """Where between two numbers the function starts to keep them."""
    for _ in range(3):
        numbers = np.linspace(outside, inside, 129, dtype=np.float32)
        first = max(int(np.argmax(passes(numbers)[1])), 1)
        outside, inside = numbers[first - 1 : first + 1]
    return round(float(inside), 3)


def _takes_each_alone(function, shape, dtype):
    """Whether a change of one number changes the result at its place only."""
    sides = (2, *(min(side or 3, 3) for side in shape[:-1]), shape[-1] or 1)
    numbers = np.random.default_rng(0).normal(0, 3, sides).astype(np.float32)
    other = numbers.copy()
    other[(0,) * len(sides)] += 9
    made, changed = (_floats(function(tf.cast(x, dtype))) for x in (numbers, other))
    is_same_shape = made.shape == numbers.shape
    return is_same_shape and bool(np.isfinite(made).all()) and not (made != changed).ravel()[1:].any()
