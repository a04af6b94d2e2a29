"""``evaluate``: the heat maps of a model beside other kinds, in numbers."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from utils.commands import common
from utils.commands.recipe import Recipe, data_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(parser, "--model my_model --data my_photos", "--data synthetic --json numbers.json")
    common.add_shared(parser, ["--model", "--json", "--plot"])
    parser.add_argument(
        "--data", default="synthetic", metavar="SOURCE",
        help=f"{common.DATA_HELP}; if the model was trained on it, only its held-out images are used. A folder may "
        'hold masks, or boxes in pixels: boxes.json, {"class/photo.jpg": [[x0, y0, x1, y1], ...]}, a COCO file, or '
        "Pascal VOC files",
    )


def main(options) -> int:
    import numpy as np

    from utils.commands import comparison, report, training, truth
    from utils.faster_gradcam import FasterGradCAM

    common.check_kind(options.model, "label")
    common.prepare_results(options)
    faster = FasterGradCAM.load(options.model)
    recipe = Recipe.of(faster)
    dataset = training.load_source(options.data, recipe)
    if dataset.masks is None:
        dataset = replace(dataset, masks=truth.boxed(Path(options.data).expanduser(), dataset))
    is_seen = training.is_seen(faster, options.data, dataset)
    if not is_seen and data_name(options.data) in recipe.data:
        print(f"{options.data} is not as the model knows it: all its images count as unseen", file=sys.stderr)
    unseen = dataset.test if is_seen else np.arange(len(dataset.images))
    result = comparison.measure(faster, dataset, unseen)
    print(comparison.table(result), flush=True)
    result |= {"accuracy": round(result["accuracy"], 4), "machine": report.machine()}
    common.write_results(options, result, lambda: comparison.draw(faster, dataset, unseen))
    return 0
