"""Does a model see the hand, whoever's it is and wherever; and do its maps show what it sees?

    python tests/benchmarks/generality.py                       # the shipped model, on the photos that it did not see
    python tests/benchmarks/generality.py --folds 5 --train-data FOLDER...     # on all photos, by models without them

Measured are, with the table of `python -m utils evaluate` for each model and their mean, weighted by images:

- the photos of janken, and the same hands pasted on rendered backgrounds that no training used;
- each hand on ten such backgrounds: share of the most frequent label, correlation of the maps;
- backgrounds alone: share called *none*;
- rendered hands of six skin tones, very pale to very dark: accuracy and pixel AP of each;
- the network with all its weights shuffled and the stored channel weights kept: rank correlation with the true maps;
- folders of other photos, one sub-folder a class (--photos): accuracy among all classes, and among the gestures only.

Masks of the photos: from $JANKEN_MASKS, or the folder janken_masks beside $JANKEN_DATASET, else estimated.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from utils import augment, data, imaging, metrics
from utils.commands import comparison, report, training
from utils.commands.common import DEFAULT_MODEL
from utils.commands.recipe import Recipe
from utils.faster_gradcam import FasterGradCAM
from utils.metrics import sanity
from utils.render import hands

SEED = 999  # of backgrounds; no training has it
TONES, N_A_TONE, TONE_SEED = 6, 200, 500
N_BACKGROUNDS = 10
N_SHUFFLES = 10  # of the weights: single ones differ, by chance, by half of the scale


def janken_masks(dataset):
    """The fixed masks of the photos, where they lie."""
    default = Path(os.environ.get("JANKEN_DATASET", "")).parent / "janken_masks"
    folder = Path(os.environ.get("JANKEN_MASKS", default))
    if not folder.is_dir():
        return dataset.masks
    files = [folder / (name.partition("/")[0] + f"_{Path(name).stem}.png") for name in dataset.names]
    masks = np.stack([imaging.read_image(file)[..., 0] > 127 for file in files])
    return imaging.resize(masks, *dataset.images.shape[1:3])


def load_others(tested: str, folders: list[str], recipe: Recipe) -> list[data.Dataset]:
    """What the recipe trains on beside the tested source; ``folders`` tells where those of its names lie."""
    paths = {Path(folder).name: folder for folder in folders}
    return [training.load_source(paths.get(source, source), recipe) for source in recipe.data if source != tested]


def cross_validate(
    tested: data.Dataset, others: list[data.Dataset], recipe: Recipe, n_folds: int
) -> Iterator[tuple[FasterGradCAM, np.ndarray]]:
    """For each fold of ``tested`` a model that was trained on its other folds and on ``others``.

    A fold is a contiguous block of each class, because neighbouring photos are near duplicates.

    Yields:
        The model, and the indices of the images it has not seen.
    """
    fold = data.folds(tested.labels, n_folds)
    for k in range(n_folds):
        part = replace(tested, train=np.flatnonzero(fold != k), test=np.flatnonzero(fold == k))
        dataset = training.join_sources([part, *others], recipe)
        yield training.train_model(training.build_network(recipe), dataset, recipe)[1], part.test


def pool(results: list[dict]) -> dict:
    """One result of `comparison.measure` of several: means of what is defined, weighted by the number of images."""
    counts = [result["n_images"] for result in results]

    def mean_of(values):
        known = [i for i, value in enumerate(values) if value is not None]
        if not known:
            return None
        return round(float(np.average([values[i] for i in known], weights=[counts[i] for i in known])), 4)

    measures = {
        way: {name: mean_of([result["measures"][way][name] for result in results]) for name in values}
        for way, values in results[0]["measures"].items()
    }
    accuracy = mean_of([result["accuracy"] for result in results])
    parts = {"n_images": sum(counts), "accuracy": accuracy, "measures": measures, "machine": report.machine()}
    return results[0] | parts


def paste(dataset, backgrounds, rng):
    """Every hand before a random background: uint8 (N, S, S, 3)."""
    chosen = backgrounds[rng.integers(len(backgrounds), size=len(dataset.images))]
    return np.stack([
        augment.replace_background(*parts) for parts in zip(dataset.images, dataset.masks, chosen, strict=True)
    ])


def on_many_backgrounds(faster, dataset, unseen, backgrounds, rng):
    """Of each image: share of its most frequent label on ten backgrounds, mean correlation of the ten maps."""
    same, alike = [], []
    for i in unseen:
        chosen = backgrounds[rng.choice(len(backgrounds), N_BACKGROUNDS, replace=False)]
        images = np.stack([augment.replace_background(dataset.images[i], dataset.masks[i], other) for other in chosen])
        result = faster.explain(images)
        same.append(np.unique(result.labels, return_counts=True)[1].max() / N_BACKGROUNDS)
        pairs = np.triu_indices(N_BACKGROUNDS, 1)
        alike.append(metrics.pearson(result.heatmaps[pairs[0]], result.heatmaps[pairs[1]]))
    return {"same label": np.mean(same), "correlation of maps": np.nanmean(alike)}


def by_tone(faster):
    """Accuracy and pixel AP of rendered hands, a dict for each tone."""
    names = [hands.GESTURES[i % 3] for i in range(N_A_TONE)]
    results = []
    for tone in np.linspace(0, 1, TONES):
        images, masks = hands.render_hands(names, faster.input_size[0], seed=TONE_SEED, tone=tone)
        explanation = faster.explain(images)
        right = np.mean(np.array(explanation.names) == names)
        results.append({"accuracy": right, "pixel AP": metrics.pixel_ap(explanation.heatmaps, masks).mean()})
    return {key: [result[key] for result in results] for key in results[0]}


def on_photos(faster, folder):
    """Accuracy of the best class of all, and of the best class of those that the folder holds."""
    photos = data.load_folder(folder, image_size=faster.input_size[0])
    truth, names = np.array(photos.class_names)[photos.labels], np.array(faster.class_names)
    explanation, held = faster.explain(photos.images), np.isin(names, photos.class_names)
    among = names[held][explanation.scores[:, held].argmax(axis=1)]
    return {"accuracy": np.mean(np.array(explanation.names) == truth), "among its classes": np.mean(among == truth)}


def judge(faster, dataset, unseen, folders):
    """All of it for one model: dict."""
    size, rng = faster.input_size[0], np.random.default_rng(SEED)
    backgrounds = augment.render_backgrounds(size, seed=SEED)
    pasted = replace(dataset, images=paste(dataset, backgrounds, rng))
    blank = np.array(faster.explain(backgrounds).names) == data.NONE
    images = dataset.images[unseen]
    explain, first = sanity.stored_weights(faster, images), next(x.name for x in faster.network.layers if x.weights)
    shuffled = [sanity.cascade(faster.network, explain, layers=[first], seed=seed)[first] for seed in range(N_SHUFFLES)]
    return {
        "photos": comparison.measure(faster, dataset, unseen), "pasted": comparison.measure(faster, pasted, unseen),
        "called none": np.mean(np.array(faster.explain(pasted.images[unseen]).names) == data.NONE),
        "ten backgrounds": on_many_backgrounds(faster, dataset, unseen, backgrounds, rng),
        "backgrounds called none": blank.mean(), "tones": by_tone(faster),
        "shuffled": np.nanmean(shuffled),
        **{Path(folder).name: on_photos(faster, folder) for folder in folders},
    }


def mean(parts, counts):
    """Means of what the models have in common, weighted by the number of their images."""
    first = parts[0]
    if isinstance(first, dict) and "measures" in first:
        return pool(parts)
    if isinstance(first, dict):
        return {key: mean([part[key] for part in parts], counts) for key in first}
    return np.round(np.average(parts, axis=0, weights=counts), 4).tolist()


def show(name, result):
    print(f"\n{name}")
    for key, value in result.items():
        print(f"{key}:\n{comparison.table(value)}" if key in ("photos", "pasted") else f"{key}: {value}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER")
    parser.add_argument("--folds", type=int, help="train as many models by the recipe of this one")
    parser.add_argument("--train-data", nargs="*", default=[], metavar="FOLDER", help="the recipe's other folders")
    parser.add_argument("--photos", nargs="*", default=[], metavar="FOLDER", help="more photos")
    for name, what in (("seed", "of the trainings"), ("steps", "of a training"), ("n-images", "rendered hands")):
        parser.add_argument(f"--{name}", type=int, help=f"{what}; default: the recipe's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    options = parser.parse_args()
    faster = FasterGradCAM.load(options.model)
    recipe = Recipe.of(faster)
    dataset = training.load_source("janken", recipe)  # with the seed of the model, whatever that of the trainings
    changes = {name: getattr(options, name) for name in ("seed", "steps", "n_images")}
    recipe = replace(recipe, **{name: value for name, value in changes.items() if value is not None})
    judged = replace(dataset, masks=janken_masks(dataset))  # trainings use their own
    models = [(faster, dataset.test)]
    if options.folds:
        others = load_others("janken", options.train_data, recipe)
        models = cross_validate(dataset, others, recipe, options.folds)
    parts, counts = [], []
    for i, (model, unseen) in enumerate(models):
        parts.append(judge(model, judged, unseen, options.photos))
        counts.append(len(unseen))
        show(f"model {i}", mean(parts[-1:], counts[-1:]))
    result = mean(parts, counts)
    show("mean", result)
    if options.json:
        with imaging.atomic_write(options.json) as draft:
            draft.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
