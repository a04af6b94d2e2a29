"""What each method of `gradcam.explain` costs: processor time of one image, as a multiple of Grad-CAM's.

    python tests/benchmarks/costs.py [METHOD...]

The shipped classifier at its own size, its default layer. Methods take turns, medians of all turns; what takes longer
than a second is measured once.
"""

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from utils import gradcam, networks  # noqa: E402
from utils.commands import report  # noqa: E402
from utils.commands.common import DEFAULT_MODEL  # noqa: E402
from utils.faster_gradcam import FasterGradCAM  # noqa: E402

N_TURNS, LONG = 7, 1000  # milliseconds


def measure(network, image) -> dict[str, list[float]]:
    """Milliseconds of each turn, by method; smooth=True as a method of its own."""
    ways = {name: {"method": name} for name in sys.argv[1:] or gradcam.METHODS}
    ways["gradcam, smooth=True"] = {"smooth": True}
    for how in ways.values():
        gradcam.explain(network, image, targets=0, **how)  # compiles
    times = {name: [] for name in ways}
    for _ in range(N_TURNS):
        for name, how in ways.items():
            if times[name] and times[name][0] > LONG:
                continue
            start = time.process_time()
            gradcam.explain(network, image, targets=0, **how)
            times[name].append(1000 * (time.process_time() - start))
    return times


def main():
    network = FasterGradCAM.load(DEFAULT_MODEL).classifier()
    side = network.input_shape[1]
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3)).astype(np.uint8)
    medians = {name: float(np.median(values)) for name, values in measure(network, image).items()}
    layer = networks.default_layer(network)
    n_channels = networks.get_layer(network, layer).output.shape[-1]
    print(f"{side} x {side} pixels, {layer} with {n_channels} channels, {os.cpu_count()} cores: {report.machine()}")
    rows = [[name, f"{value:.1f}", f"{value / medians['gradcam']:.1f}"] for name, value in medians.items()]
    print("\n".join(report.markdown(["method", "ms", "times Grad-CAM"], rows)))


if __name__ == "__main__":
    main()
