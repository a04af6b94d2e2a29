"""Where the real data lies, and a quiet TensorFlow for the tests and the notebooks' kernels alike."""

import os
from pathlib import Path

import numpy as np
import pytest

# Before the first import of TensorFlow; the kernels that run the notebooks inherit it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A backend chosen in the shell would keep figures out of the notebooks, a kernel from elsewhere would run them.
for variable in ("MPLBACKEND", "JUPYTER_PATH"):
    os.environ.pop(variable, None)


def folder(variable: str, what: str, default: Path | None = None) -> Path:
    """The folder that an environment variable names; without it the test is skipped."""
    path = os.environ.get(variable) or default
    if not path:
        pytest.skip(f"${variable} is not set: it names the folder of {what}")
    if not Path(path).is_dir():
        pytest.skip(f"{path} is no folder: ${variable} names that of {what}")
    return Path(path)


@pytest.fixture(scope="session")
def janken_dataset() -> Path:
    return folder("JANKEN_DATASET", "the real janken photos")


@pytest.fixture(scope="session")
def janken_masks(janken_dataset: Path) -> Path:
    return folder("JANKEN_MASKS", "the photos' hand masks", default=janken_dataset.parent / "janken_masks")


@pytest.fixture(scope="session")
def imagenet_weights() -> Path:
    return folder("IMAGENET_WEIGHTS", "the ImageNet weights")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
