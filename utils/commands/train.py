"""``train``: from folders of photos to a model folder."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from utils.commands import common, exits
from utils.commands.recipe import Recipe

CHECKPOINT = "checkpoint.npz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(
        parser, "--data my_photos --out my_model", "--data janken synthetic --none --steps 1200 --seed 1 --out my_model"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the model goes")
    parser.add_argument(
        "--resume", action="store_true", help="go on where a training with the same options was stopped, in --out"
    )
    parser.add_argument_group("data").add_argument(
        "--data", nargs="+", required=True, metavar="SOURCE",
        help=f"{common.DATA_HELP}; several are joined if they have the same classes",
    )
    common.add_options(parser, Recipe)


def main(options) -> int:
    from utils.networks import replicas

    checkpoint = options.out / CHECKPOINT
    if options.resume and not checkpoint.exists():
        raise FileNotFoundError(f"There is no training to go on with in {options.out}: it holds no {CHECKPOINT}.")
    replicas.check_batch(options.batch_size)
    if not options.resume and replicas.is_chief():
        checkpoint.unlink(missing_ok=True)
    replicas.wait_for_all()
    code = _train(options, checkpoint)
    if code == 0 and replicas.is_chief():
        checkpoint.unlink(missing_ok=True)
    replicas.wait_for_all()
    return code


def _train(options, checkpoint) -> int:
    from utils import arcface
    from utils.commands import comparison, training
    from utils.networks import replicas

    common.return_memory()
    recipe = common.chosen(options, Recipe)
    sources = [training.load_source(source, recipe) for source in recipe.data]
    dataset = training.join_sources(sources, recipe)
    with replicas.strategy().scope():
        untrained = training.build_network(recipe)
    options.out.mkdir(parents=True, exist_ok=True)  # better now than after the training
    print(f"{len(dataset.train)} training and {len(dataset.test)} test images of {', '.join(dataset.class_names)}")
    trained, faster = training.train_model(
        untrained, dataset, recipe, progress=_print_progress, checkpoint=checkpoint
    )
    test = dataset.images[dataset.test], dataset.labels[dataset.test]
    with replicas.strategy().scope():
        accuracy = arcface.accuracy(trained.network, *test) if len(dataset.test) else None
    if not replicas.is_chief():  # the chief writes
        return 0
    if trained.interrupted:
        kept = f"the best weights so far (step {trained.best_step})" if trained.best_step else "the last weights"
        print(f"interrupted: {kept} are kept")
    elif (done := trained.history[-1]["done"]) < recipe.steps:
        print(f"ended after {done} of {recipe.steps} steps: the last {recipe.patience} evaluations were perfect")
    if losses := faster.meta.get("embedding_loss"):
        recipe = replace(recipe, details=max(losses, key=losses.get))
        told = ", ".join(f"{kind} {loss:.4f}" for kind, loss in losses.items())
        print(f"maps with --details {recipe.details}: without their hottest parts embeddings turn by {told}")
    info = {"best_step": trained.best_step, "interrupted": trained.interrupted}
    info = {"training": recipe.stored() | info, "data_fingerprint": dataset.fingerprint}
    info[training.FINGERPRINTS] = [source.fingerprint for source in sources]
    if accuracy is not None:
        info["test_accuracy"] = round(accuracy, 4)
        print(f"test accuracy (no label, no margin): {accuracy:.4f} on {len(dataset.test)} images")
    faster.save(options.out, **info)
    print(f"saved in {options.out}", flush=True)
    if any(source.masks is None for source in sources):
        dataset = replace(dataset, masks=None)  # guessed ones are good enough to train with, not to judge by
    measures = comparison.brief(faster, dataset, dataset.test)
    n_images = measures.pop("n_images")
    if n_images:
        print(f"heat maps of {n_images} test images:", *(f"{name} {value}" for name, value in measures.items()))
    return 130 if trained.interrupted else 0


def _print_progress(entry):
    left = round(entry["seconds_left"])
    accuracy = entry.get("validation_accuracy")  # not known at first
    seen = " " * 28 if accuracy is None else f"   validation accuracy {accuracy:.4f}"
    line = f"step {entry['done']:5d}   loss {entry['loss']:7.4f}{seen}   {left // 60}:{left % 60:02d} left"
    try:
        print(line, flush=True)
    except BrokenPipeError:  # whoever read has seen enough; the training goes on
        exits.drop_unread(sys.stdout)
