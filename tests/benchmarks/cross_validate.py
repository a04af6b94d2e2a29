"""5-fold cross-validation of the shipped model's recipe on the 167 real janken photos.

    python tests/benchmarks/cross_validate.py [--steps N]

A fold is a contiguous block of file numbers of each gesture: neighbouring photos are near duplicates. Each fold's
network is trained from ImageNet weights on the other blocks, rendered hands and the class none. The accuracy counts
the block's photos only; an answer "none" is wrong.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import repro  # isort: skip  first: it imports TensorFlow quietly
import numpy as np

from utils import arcface, data, networks

N_FOLDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--n-images", type=int, default=600, help="rendered hands beside the photos; 0: photos only")
    options = parser.parse_args()
    photos = data.load_janken("janken")
    fold = data.folds(photos.labels, N_FOLDS)
    accuracies = []
    for k in range(N_FOLDS):
        repro.seed_everything(k)
        part = replace(photos, train=np.flatnonzero(fold != k), test=np.flatnonzero(fold == k))
        rendered = [data.load_janken("synthetic", n_images=options.n_images)] if options.n_images else []
        dataset = data.add_none(data.join(part, *rendered))
        network = networks.embedding_network(weights="imagenet", seed=k)
        training = arcface.train(network, dataset, options.steps, seed=k)
        accuracies.append(arcface.accuracy(training.network, photos.images[part.test], photos.labels[part.test]))
        seconds = training.history[-1]["seconds"]
        print(f"fold {k}: accuracy {accuracies[-1]:.4f} on {len(part.test)} photos, {seconds:.0f} s", flush=True)
    print(f"mean accuracy {np.mean(accuracies):.4f}")


if __name__ == "__main__":
    main()
