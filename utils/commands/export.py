"""``export``: a model as LiteRT files, float32 and int8."""

import argparse
from pathlib import Path

from utils import runtime
from utils.commands import common
from utils.commands.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(parser, "my_model --data my_photos", "data/models/janken --data janken synthetic")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="model folder; the files go into it")
    parser.add_argument(
        "--data", nargs="+", metavar="SOURCE",
        help=f"images to calibrate int8 on: {common.DATA_HELP} (default: the training data, if they can be found)",
    )


def main(options) -> int:
    from utils import export
    from utils.commands import training
    from utils.faster_gradcam import FasterGradCAM
    from utils.storage import store

    common.check_kind(options.folder, "label")
    faster = FasterGradCAM.load(options.folder)
    recipe = Recipe.of(faster)
    sources = options.data or recipe.data
    if options.data:
        datasets = [training.load_source(source, recipe) for source in sources]  # before anything is written
    else:
        datasets = training.find_sources(faster, options.folder)
    images = store.join([dataset.images[dataset.train] for dataset in datasets])
    print("converting ...", flush=True)
    file = export.export_float(faster, options.folder / runtime.FLOAT_FILE)
    print(f"{file}  {file.stat().st_size / 1e6:.1f} MB", flush=True)
    file = export.export_int8(file, images, options.folder / runtime.INT8_FILE)
    print(f"{file}  {file.stat().st_size / 1e6:.1f} MB, calibrated on images of {', '.join(sources)}")
    return 0
