"""The demo's vote over half a second, and its hints at the light."""

import numpy as np
import pytest

from utils.commands import advice
from utils.runtime import Explanation


def explanation(*scores):
    empty = np.zeros((1, 0), np.float32)
    return Explanation(
        labels=np.array([np.argmax(scores)]), class_names=("choki", "gu", "pa", "none"),
        scores=np.array([scores], np.float32), heatmaps=np.zeros((1, 8, 8), np.float32), clusters=np.array([0]),
        embeddings=empty,
    )


def test_a_single_frame_is_outvoted_and_old_frames_have_no_vote():
    votes = advice.Votes()
    assert votes.count(np.array([0.9, 0.1]), 0.0) == (0, pytest.approx(0.9))
    assert votes.count(np.array([0.8, 0.2]), 0.2) == (0, pytest.approx(0.85))
    assert votes.count(np.array([0.1, 0.9]), 0.4) == (0, pytest.approx(0.6))
    assert votes.count(np.array([0.1, 0.9]), 0.6) == (1, pytest.approx(2 / 3))  # the first is gone
    assert votes.count(np.array([1.0, 0.0]), 5.0) == (0, pytest.approx(1.0))


def test_none_is_written_as_no_hand_and_says_why():
    grey = np.random.default_rng(0).integers(60, 200, (60, 80, 3), np.uint8)
    assert advice.answer(explanation(0, 1, 0, 0), grey, advice.Votes(), 0.0) == "gu 1.00"
    assert advice.answer(explanation(0, 0, 0, 1), grey, advice.Votes(), 0.0) == "no hand 1.00"
    dark = advice.answer(explanation(0, 0, 0, 1), grey // 8, advice.Votes(), 0.0)
    assert dark == "no hand 1.00 (too dark: more light)"


def test_hints_by_hand(rng):
    sharp = rng.integers(60, 200, (96, 96, 3), np.uint8)
    assert advice.hint(sharp) == ""
    glaring = sharp.copy()
    glaring[:30] = 255
    assert advice.hint(glaring).startswith("too bright") and advice.hint(sharp // 5).startswith("too dark")
    assert advice.hint(np.full((96, 96, 3), 128, np.uint8)).startswith("blurred")
