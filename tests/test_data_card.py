"""The picture in `data` of a network with real weights is what the lines in its card make."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from utils import imaging

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.mark.real
@pytest.mark.slow
def test_imagenet_picture(imagenet_weights, tmp_path):
    blocks = re.findall("```python\n(.+?)```", (DATA / "README.md").read_text("utf-8"), re.DOTALL)
    (lines,) = [block for block in blocks if "imagenet.jpg" in block]
    lines = lines.replace("data/imagenet", f"{tmp_path}/imagenet")
    environment = os.environ | {"IMAGENET_WEIGHTS": str(imagenet_weights)}
    subprocess.run([sys.executable, "-c", lines], cwd=DATA.parent, env=environment, check=True)
    made, stored = (imaging.read_image(folder / "imagenet.jpg").astype(int) for folder in (tmp_path, DATA))
    assert made.shape == stored.shape and np.abs(made - stored).mean() < 2
