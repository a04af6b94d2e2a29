"""The live demo's steady answer: a vote over the last frames, and what may help where the answer is *none*.

`page.html` does the same in a browser, with the numbers and words of `settings`.
"""

from collections import deque
from collections.abc import Sequence

import cv2
import numpy as np

from utils import imaging, runtime
from utils.render.hands import GESTURES, NONE

SECONDS = 0.5  # frames of this time vote
SIDE = 96  # pixels: the light is judged on an image as small as the network's
# Of 1,305 photos in six rooms the darkest has a mean of 50 and the softest a sharpness of 5.7.
DARK, SOFT = 45, 5  # mean grey level; standard deviation of the Laplacian
WHITE, GLARE = 250, 0.2  # a pixel is overexposed from here on, a picture with more than this share of them
TOO_DARK, TOO_BRIGHT, BLURRED = "too dark: more light", "too bright: less light", "blurred: hold still, come nearer"


class Votes:
    """Mean probabilities of the last half second, so that a label does not flicker.

    Example:
        >>> votes = Votes()
        >>> [votes.count(np.array(p), time)[0] for p, time in (([0.9, 0.1], 0.0), ([0.4, 0.6], 0.1), ([0.2, 0.8], 1.0))]
        [0, 0, 1]
    """

    def __init__(self):
        self._recent = deque()  # (seconds, probabilities)

    def count(self, probabilities: np.ndarray, seconds: float) -> tuple[int, float]:
        """One more frame's probabilities (K,) at a time; the class with the highest mean, and that mean."""
        self._recent.append((seconds, probabilities))
        while self._recent[0][0] < seconds - SECONDS:
            self._recent.popleft()
        mean = np.mean([p for _, p in self._recent], axis=0)
        return int(mean.argmax()), float(mean.max())


def answer(result: runtime.Explanation, frame: np.ndarray, votes: Votes, seconds: float) -> str:
    """What is written on the frame: the name that the last frames agree on and how sure; for *none* "no hand", and why.

    "No hand" stands for *none* where the other classes are gestures; a `hint` at the light follows if there is one.
    """
    label, sure = votes.count(result.probabilities()[0], seconds)
    name = result.class_names[label]
    if name != NONE:
        return f"{name} {sure:.2f}"
    return f"{nothing(result.class_names)} {sure:.2f}" + (f" ({reason})" if (reason := hint(frame)) else "")


def nothing(class_names: Sequence[str]) -> str:
    """What *none* is called where the classes have these names."""
    return "no hand" if set(GESTURES) <= set(class_names) else NONE


def settings(class_names: Sequence[str]) -> dict:
    """The numbers and words of this module, for the page."""
    return {
        "milliseconds": 1000 * SECONDS, "side": SIDE, "dark": DARK, "white": WHITE, "glare": GLARE, "soft": SOFT,
        "none": NONE, "nothing": nothing(class_names), "tooDark": TOO_DARK, "tooBright": TOO_BRIGHT, "blurred": BLURRED,
    }


def hint(frame: np.ndarray) -> str:
    """What may be wrong with the light in a frame uint8 RGB (H, W, 3), in a few words; "" where nothing stands out.

    Example:
        >>> hint(np.zeros((60, 80, 3), np.uint8))
        'too dark: more light'
    """
    grey = cv2.cvtColor(imaging.resize(frame[None], SIDE, SIDE)[0], cv2.COLOR_RGB2GRAY)
    if grey.mean() < DARK:
        return TOO_DARK
    if (grey >= WHITE).mean() > GLARE:
        return TOO_BRIGHT
    if cv2.Laplacian(grey, cv2.CV_32F).std() < SOFT:
        return BLURRED
    return ""
