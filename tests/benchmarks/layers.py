"""Speed of heat maps at one layer and at sixteen, and memory over many calls.

    python tests/benchmarks/layers.py

MobileNetV2 with its classifier, one image of 224x224, alternating in one run, warmed up; ratios of the medians.
Bare: a compiled forward and backward pass to the same layer. Memory: what the process grows by over 1,000 calls.
"""

import argparse
import functools
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from harvest import bare

from utils import gradcam, networks, repro
from utils.networks import cams
from utils.repro import keras, tf

LAYER = "block_16_expand_relu"


def resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--calls", type=int, default=1000)
    options = parser.parse_args()

    network = keras.applications.MobileNetV2(weights=None, classifier_activation=None)
    layers = [name for name in networks.map_layers(network) if name.endswith("expand_relu")]
    image = np.random.default_rng(0).integers(0, 255, (1, 224, 224, 3)).astype(np.uint8)
    step, ready, label = bare(network, LAYER), tf.constant(image, tf.float32), tf.constant([0])
    runs = {
        "bare": lambda: step(ready, label).numpy(),
        **{m: functools.partial(gradcam.explain, network, image, layer=LAYER, method=m) for m in cams.RAW_MAPS},
        f"{len(layers)} layers": lambda: gradcam.explain_layers(network, image, layers=layers),
        "guided_backprop": lambda: gradcam.guided_backprop(network, image),
    }
    seconds = {name: np.median(turns) for name, turns in repro.time_in_turn(runs, options.rounds).items()}
    for name, value in seconds.items():
        ratios = f"{value / seconds['bare']:.2f} x bare, {value / seconds['gradcam']:.2f} x gradcam"
        print(f"{name:16} {1000 * value:7.1f} ms  {ratios}", flush=True)

    before = resident_megabytes()
    for _ in range(options.calls):
        gradcam.explain(network, image, layer=LAYER)
    print(f"memory after {options.calls} more calls: {resident_megabytes() - before:+.1f} MB")


if __name__ == "__main__":
    main()
