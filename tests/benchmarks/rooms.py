"""Does a model see the hands of other people in other rooms?

    python tests/benchmarks/rooms.py rooms/*              # the shipped model; rooms that trained it prove nothing
    python tests/benchmarks/rooms.py rooms/* --folds 2 --train-data signs hands_cgi     # models without those rooms

A room is a folder with one sub-folder a class. Measured are, for each room and in the mean over rooms:

- 3-way: share of hands whose best gesture is right; 4-way: the same where *none* for a hand is wrong;
- called none: share of hands; none: share of the room's other poses and empty walls that are called *none*.

With --folds whole rooms are held out in turn, every n-th of them, because the frames of one room are near duplicates.
The recipe is that of the model: of its sources those that are rooms given here train only while they are not held out.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from utils import data, imaging
from utils.commands import training
from utils.commands.common import DEFAULT_MODEL
from utils.commands.recipe import Recipe
from utils.faster_gradcam import FasterGradCAM
from utils.render import hands

COLUMNS = ("3-way", "4-way", "called none", "none")


def measure(scores: np.ndarray, truth: np.ndarray, class_names: tuple[str, ...]) -> dict[str, float]:
    """The four columns from scores (N, K) and the names of what is really there (N,); NaN where there is no image.

    Example:
        >>> scores = np.array([[0.9, 0.1, 0.2], [0.3, 0.4, 0.5], [0.1, 0.2, 0.9]])
        >>> measure(scores, np.array(["gu", "pa", "none"]), ("gu", "pa", "none"))
        {'3-way': 1.0, '4-way': 0.5, 'called none': 0.5, 'none': 1.0}
    """
    names = np.array(class_names)
    answers, is_gesture = names[scores.argmax(axis=1)], np.isin(names, hands.GESTURES)
    best_gesture = names[is_gesture][scores[:, is_gesture].argmax(axis=1)]
    hand = truth != data.NONE

    def share(right):
        return float(right.mean()) if len(right) else float("nan")

    values = (best_gesture == truth)[hand], (answers == truth)[hand], answers[hand] == data.NONE
    return dict(zip(COLUMNS, map(share, (*values, answers[~hand] == data.NONE)), strict=True))


def judge(faster, folder):
    """The columns of one room."""
    photos = data.load_folder(folder, image_size=faster.input_size[0])
    truth = np.array(photos.class_names)[photos.labels]
    return measure(faster.explain(photos.images).scores, truth, faster.class_names)


def train_without(held_out: list[str], rooms: list[str], others: list[str], recipe: Recipe) -> FasterGradCAM:
    """A model of the recipe, trained on all rooms but those held out and on the recipe's other sources."""
    paths = {Path(folder).name: folder for folder in (*rooms, *others)}
    names = [name for name in recipe.data if paths.get(name) not in held_out]
    recipe = replace(recipe, data=tuple(paths.get(name, name) for name in names))
    sources = [training.load_source(source, recipe) for source in recipe.data]
    return training.train_model(training.build_network(recipe), training.join_sources(sources, recipe), recipe)[1]


def show(results: dict[str, dict]) -> None:
    """A table, one line a room, then the mean and the worst."""
    print(f"{'room':24s}", *(f"{name:>12s}" for name in COLUMNS))
    values = np.array([list(result.values()) for result in results.values()])
    rows = [*zip(results, values, strict=True), ("mean", np.nanmean(values, axis=0))]
    rows.append(("worst", np.where(np.array(COLUMNS) == "called none", np.nanmax(values, 0), np.nanmin(values, 0))))
    for name, row in rows:
        print(f"{name:24s}", *(f"{value:12.3f}" for value in row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="+", metavar="ROOM", help="folders of photos, one sub-folder a class")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER")
    parser.add_argument("--folds", type=int, help="train as many models, each without every n-th room")
    parser.add_argument("--train-data", nargs="*", default=[], metavar="FOLDER", help="the recipe's other folders")
    parser.add_argument("--weights", help="where the trainings start; default: the recipe's")
    parser.add_argument("--steps", type=int, help="of a training; default: the recipe's")
    parser.add_argument("--seed", type=int, help="of the trainings; default: the recipe's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    options = parser.parse_args()
    faster = FasterGradCAM.load(options.model)
    changes = {name: getattr(options, name) for name in ("steps", "seed", "weights")}
    recipe = replace(Recipe.of(faster), **{name: value for name, value in changes.items() if value is not None})
    rooms = sorted(folder.rstrip("/") for folder in options.rooms if Path(folder).is_dir())
    results = {}
    for fold in range(options.folds or 1):
        held_out = rooms[fold :: options.folds or 1]
        model = train_without(held_out, rooms, options.train_data, recipe) if options.folds else faster
        results |= {Path(room).name: judge(model, room) for room in held_out}
    show(results)
    if options.json:
        with imaging.atomic_write(options.json) as draft:
            draft.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
