"""What the boxes of `python -m utils annotate` are worth, and what they cost.

    python tests/benchmarks/annotate.py                            # the shipped model, on rendered hands
    python tests/benchmarks/annotate.py --data janken --folds 5    # on photos, by models that did not train on them

Boxes: mean IoU with the box round the true mask, over the kept images; share of images kept; accuracy of the kept
labels. Beside it the centre box: one for all images, of the sides that do best on the training part. Rendered hands:
500 of a seed of their own, variety 1. Photos: masks from $JANKEN_MASKS, or the folder janken_masks beside
$JANKEN_DATASET, else estimated.

Speed: from a frame of the network's size in memory to label, boxes and polygon, two threads; in turn the same with
tf-keras-vis, if it is there:

    pip install tf-keras-vis==0.8.7
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from benchmarks import generality

from utils import metrics, networks, repro, runtime
from utils.commands import annotate, timing, training
from utils.commands.common import DEFAULT_MODEL, SOURCES
from utils.commands.recipe import Recipe
from utils.faster_gradcam import FasterGradCAM
from utils.render import hands

SEED, N_HANDS = 500, 500  # no training has it


def centre_box(truth, side):
    """The centred box (4,) with the highest mean IoU with these boxes (N, 4)."""
    halves = np.arange(1, 11) * side / 20
    boxes = [np.array([side / 2 - w, side / 2 - h, side / 2 + w, side / 2 + h]) for w in halves for h in halves]
    return max(boxes, key=lambda box: metrics.box_iou(box[None], truth).mean())


def judge(explainer, settings, images, masks, names, training_masks):
    """(boxes' IoU, centre box' IoU with the same images, whether the label is right) of the kept, number of all."""
    found = [annotate.find(image, explainer, settings) for image in images]
    kept = [i for i, record in enumerate(found) if "reason" not in record]
    boxes = np.array([found[i]["boxes"][0] for i in kept])
    truth, centre = metrics.mask_boxes(masks[kept]), centre_box(metrics.mask_boxes(training_masks), images.shape[1])
    right = [found[i]["label"] == names[i] for i in kept]
    return metrics.box_iou(boxes, truth), metrics.box_iou(centre[None], truth), right, len(images)


def report(name, parts):
    boxes, centre, right = (np.concatenate([part[i] for part in parts]) for i in range(3))
    n = sum(part[3] for part in parts)
    print(
        f"{name}: kept {len(boxes) / n:.3f} of {n} images; mean IoU {boxes.mean():.3f} (quartiles "
        f"{np.percentile(boxes, 25):.2f} {np.percentile(boxes, 75):.2f}), centre box {centre.mean():.3f}; "
        f"labels right {np.mean(right):.3f}", flush=True,
    )


def judge_boxes(options, settings):
    file = options.model / runtime.FLOAT_FILE
    recipe = Recipe.of(FasterGradCAM.load(options.model))
    if options.data == "synthetic":
        gestures = [hands.GESTURES[i % 3] for i in range(N_HANDS)]
        images, masks = hands.render_hands(gestures, recipe.image_size, seed=SEED)
        seen = training.load_source("synthetic", recipe).masks
        report("rendered hands", [judge(runtime.Explainer(file), settings, images, masks, gestures, seen)])
        return
    dataset = training.load_source("janken", recipe)
    names, masks, parts = np.array(dataset.class_names)[dataset.labels], generality.janken_masks(dataset), []
    if options.folds:
        others = generality.load_others("janken", options.train_data, recipe)
        models = generality.cross_validate(dataset, others, recipe, options.folds)
    else:  # what `train` held out
        models = [(runtime.Explainer(file), dataset.test)]
    for model, unseen in models:
        rest = np.setdiff1d(np.arange(len(masks)), unseen)
        parts.append(judge(model, settings, dataset.images[unseen], masks[unseen], names[unseen], masks[rest]))
        report("  fold", parts[-1:])
    report("photos", parts)


class KerasVis:
    """tf-keras-vis instead of an `Explainer`: a forward pass for the label, Grad-CAM for the map."""

    def __init__(self, faster):
        from tf_keras_vis.gradcam import Gradcam

        self.classifier, self.class_names = faster.classifier(), faster.class_names
        self.layer, self.input_size = faster.meta["layer"], faster.input_size
        self.cam = Gradcam(self.classifier, clone=False)

    def explain(self, images):
        from tf_keras_vis.utils.scores import CategoricalScore

        scores = networks.forward(self.classifier, images)
        labels = scores.argmax(axis=1)
        heat = self.cam(
            CategoricalScore(labels.tolist()), images.astype(np.float32), penultimate_layer=self.layer,
            seek_penultimate_conv_layer=False,
        )
        return runtime.Explanation(labels, self.class_names, scores, heat, np.zeros(1, int), scores)


def judge_speed(options, settings):
    explainer = runtime.Explainer(options.model / runtime.FLOAT_FILE, num_threads=2)
    frames = timing.frames(30, explainer.input_size)
    found = [i for i, frame in enumerate(frames) if "boxes" in annotate.find(frame, explainer, settings)]
    runs = {"LiteRT float32": lambda: [annotate.find(frames[i], explainer, settings) for i in found]}
    try:
        peer = KerasVis(FasterGradCAM.load(options.model))
        runs["tf-keras-vis"] = lambda: [annotate.find(frames[i], peer, settings) for i in found[:3]]
    except ModuleNotFoundError as error:
        print(f"tf-keras-vis: not here, {error}")
    n_images = {"LiteRT float32": len(found), "tf-keras-vis": min(3, len(found))}
    rates = {
        name: n_images[name] / np.percentile(seconds, (75, 50, 25))
        for name, seconds in repro.time_in_turn(runs, options.rounds).items()
    }
    for name, (low, median, high) in rates.items():
        print(f"{name}: {median:.1f} images a second (quartiles {low:.1f} {high:.1f})")
    if len(rates) == 2:
        print(f"ratio: {rates['LiteRT float32'][1] / rates['tf-keras-vis'][1]:.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER", help="an exported model")
    parser.add_argument("--data", default="synthetic", choices=SOURCES)
    parser.add_argument("--folds", type=int, help="of photos: train as many models by the recipe of this one")
    parser.add_argument("--train-data", nargs="*", default=[], metavar="FOLDER", help="the recipe's other folders")
    parser.add_argument("--threshold", default="otsu", help="otsu, p75 or a number")
    parser.add_argument("--rounds", type=int, default=timing.ROUNDS, help="turns of each way")
    options = parser.parse_args()
    threshold = options.threshold if options.threshold[0] in "op" else float(options.threshold)
    settings = annotate.Settings(threshold)
    judge_boxes(options, settings)
    judge_speed(options, settings)


if __name__ == "__main__":
    main()
