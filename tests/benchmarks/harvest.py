"""Speed and memory of harvesting.

    python tests/benchmarks/harvest.py

Speed: images a second of `gradcam.harvest` over those of a bare compiled forward and backward pass to the same layer,
alternating in one run, warmed up; ratio of the medians. Memory: peak of a process that streams 10,000 images
against one that streams 1,000.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from utils import arcface, gradcam, networks, repro
from utils.repro import keras, tf

BATCH_SIZE = 32
N_BATCHES = 8
ROUNDS = 9


def build():
    network = networks.embedding_network(networks.Spec())
    return keras.Model(network.input, arcface.ArcFace(4)(network.output))


def batches(n_images):
    rng = np.random.default_rng(0)
    for _ in range(0, n_images, BATCH_SIZE):
        yield rng.integers(0, 255, (BATCH_SIZE, 96, 96, 3)).astype(np.uint8), rng.integers(0, 4, BATCH_SIZE)


def bare(network, layer):
    """What any implementation has to do: forward, and backward to the layer."""
    model = keras.Model(network.input, [network.get_layer(layer).output, network.output])

    @tf.function
    def step(images, labels):
        with tf.GradientTape() as tape:
            tape.watch(images)
            maps, scores = model(images, training=False)
            score = tf.gather(scores, labels, axis=1, batch_dims=1)
        return tape.gradient(score, maps)

    return step


def measure_speed(layer):
    network = build()
    step, material = bare(network, layer), list(batches(BATCH_SIZE * N_BATCHES))
    ready = [(tf.constant(images, tf.float32), tf.constant(labels, tf.int32)) for images, labels in material]

    def run_bare():
        for images, labels in ready:
            step(images, labels).numpy()

    def run_harvest():
        gradcam.harvest(network, material, layer=layer)

    turns = repro.time_in_turn({"bare": run_bare, "harvest": run_harvest}, ROUNDS)
    seconds = {name: np.median(values) for name, values in turns.items()}
    bare_rate, harvest_rate = (BATCH_SIZE * N_BATCHES / seconds[name] for name in ("bare", "harvest"))
    print(f"{layer}: bare {bare_rate:.0f}, harvest {harvest_rate:.0f} images/s, ratio {harvest_rate / bare_rate:.2f}")


def peak_megabytes(n_images):
    command = [sys.executable, __file__, "--peak", str(n_images)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        gradcam.harvest(build(), batches(options.peak))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    for layer in (networks.DEFAULT_LAYER, "out_relu"):
        measure_speed(layer)
    few, many = peak_megabytes(1_000), peak_megabytes(10_000)
    print(f"peak memory: 1,000 images {few:.0f} MB, 10,000 images {many:.0f} MB, difference {many - few:.0f} MB")


if __name__ == "__main__":
    main()
