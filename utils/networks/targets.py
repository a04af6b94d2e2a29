"""What is explained, if not one class: differences of classes in words, and regions of dense outputs.

Each function returns one of the scores, (n, ...) → (n,), as ``targets`` of `gradcam.explain`.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from utils.repro import tf

TERM = re.compile(r"(?:(\d+(?:\.\d+)?)\s*\*\s*)?(.+)")


def parse(text: str, class_names: Sequence[str]) -> Callable:
    """A sum of classes in words, such as "cat - dog", "-cat" (what lowers it) or "cat + 0.5 * dog".

    Of a dense output it is the mean over all places. Classes are named or given by their ids. + and - have a space on
    both sides; a first - may touch the name.

    Raises:
        ValueError: a class that is not there.

    Example:
        >>> parse("cat - 0.5 * dog", ["cat", "dog"])(tf.constant([[3.0, 4.0]])).numpy().tolist()
        [1.0]
    """
    factors, text = np.zeros(len(class_names), np.float32), text.strip()
    text = f" - {text[1:].strip()}" if text.startswith("-") else f" + {text}"
    _, *parts = re.split(r"\s([+-])\s", text)
    for sign, term in zip(parts[::2], parts[1::2], strict=True):
        factor, name = TERM.fullmatch(term.strip()).groups() if term.strip() else (None, "")
        factors[_class_id(name.strip(), class_names)] += (-1 if sign == "-" else 1) * float(factor or 1)
    if not factors.any():
        raise ValueError(f'Expected a target such as "a - b" of the classes. Received: {text!r}')

    def score(scores):
        values = tf.linalg.matvec(scores, tf.constant(factors))
        return tf.reduce_mean(values, axis=range(1, values.shape.rank))

    return score


def _class_id(name, class_names):
    names = [str(known) for known in class_names]
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise ValueError(f"The target names a class that is not there; the classes are {known}. Received: {name!r}")


def region(class_id: int, *, mask: np.ndarray | None = None, box: tuple[int, int, int, int] | None = None) -> Callable:
    """Mean score of a class in a region of a dense output (n, h, w, K): of a segmentation, or a grid of detections.

    Args:
        class_id: the last axis' index.
        mask: bool (h, w), of the output's size; or
        box: (x0, y0, x1, y1) in the output's pixels, half open. Neither: all of it.

    Raises:
        ValueError: both of them, or an empty one; when it is asked, a mask or box that does not fit the output.

    Example:
        >>> scores = tf.reshape(tf.range(8.0), (1, 2, 2, 2))
        >>> region(1, box=(0, 0, 2, 1))(scores).numpy().tolist()
        [2.0]
    """
    if mask is not None:
        mask = np.asarray(mask)
    is_empty = (mask is not None and not mask.any()) or (box and not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]))
    if (mask is not None and box) or is_empty:
        raise ValueError(f"Expected a mask or a box that is not empty. Received: mask {np.shape(mask)}, box {box}")

    def score(scores):
        shape = tuple(scores.shape)
        weights = np.zeros(shape[1:3], np.float32)
        if mask is not None:
            weights = mask.astype(np.float32)
        else:
            x0, y0, x1, y1 = box or (0, 0, *reversed(shape[1:3]))
            weights[y0:y1, x0:x1] = 1
        is_outside = box and (box[2] > shape[2] or box[3] > shape[1])
        if len(shape) != 4 or weights.shape != shape[1:3] or is_outside or not 0 <= class_id < shape[3]:
            what = f"class {class_id}, mask {np.shape(mask)}, box {box}"
            raise ValueError(f"Expected a region and a class of the output {shape}. Received: {what}")
        return tf.einsum("nhw,hw->n", scores[..., class_id], tf.constant(weights / weights.sum()))

    return score
