"""Heat maps on photos of objects that nobody tuned for: trained with the defaults of ``train``, judged by true boxes.

    python tests/benchmarks/objects.py FOLDER ...                  # one folder a set, about five minutes each
    python tests/benchmarks/objects.py FOLDER ... --models MODELS  # keeps the models there and takes those it finds

A set is a folder of classes with ``boxes.json``, {"class/file": [[x0, y0, x1, y1], ...]} in pixels, half open, and
where masks are known ``masks/class/file.png``. By file order the first 60 % of each class train, the others are judged.
Box IoU is that of the map's own box with the nearest true one; pointing is whether the hottest pixel lies in one;
deletion and insertion are asked of at most 60 photos. The centre knows nothing of the image. F1 of boxes: of those of
the map as trained, each found box may take one true box with IoU >= 0.5. The embedding loss is what `train` chooses by:
its rank correlation with box IoU, within each set and over all, tells how far that can be trusted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils import gradcam, heatmap, imaging, metrics  # noqa: E402
from utils.commands.truth import cover  # noqa: E402
from utils.faster_gradcam import FasterGradCAM  # noqa: E402
from utils.metrics import faithfulness  # noqa: E402

METHODS = {"LayerCAM": "layercam", "Grad-CAM++": "gradcam++", "Grad-CAM": "gradcam"}
MIN_IOUS = (0.3, 0.5, 0.7)  # of MaxBoxAccV2
THRESHOLDS = np.arange(0, 1, 0.02)
BOX_RULES = {"one box": 1, "auto": "auto", "every region": 50}  # `heatmap.boxes`
N_ASKED = 60


def split(folder):
    """{class: its files that train}, and the same of those that are judged."""
    train, judged = {}, {}
    for part in sorted(part for part in folder.iterdir() if part.is_dir() and part.name != "masks"):
        files = sorted(filter(imaging.is_image, part.iterdir()))
        n_train = round(0.6 * len(files))
        train[part.name], judged[part.name] = files[:n_train], files[n_train:]
    return train, judged


def train(photos, model, arguments):
    """Run the command on links to the photos."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, files in photos.items():
            (part := Path(temporary) / "photos" / name).mkdir(parents=True)
            for file in files:
                (part / file.name).symlink_to(file.resolve())
        command = ["train", "--data", f"{temporary}/photos", "--out", str(model), *arguments]
        subprocess.run([sys.executable, "-m", "utils", *command], cwd=ROOT, check=True, stdout=sys.stderr)


def load(folder, judged, side):
    """Images of the network's size, their labels, boxes in its pixels, and masks or None."""
    truth = json.loads((folder / "boxes.json").read_text(encoding="utf-8"))
    images, labels, boxes, masks = [], [], [], []
    for label, (name, files) in enumerate(judged.items()):
        for file in files:
            image = imaging.read_image(file)
            scale = np.tile(side / np.array(image.shape[1::-1]), 2)
            boxes.append(np.array(truth.get(f"{name}/{file.name}", []), float).reshape(-1, 4) * scale)
            images.append(imaging.resize(image[None], side, side)[0])
            labels.append(label)
            mask = folder / "masks" / name / f"{file.stem}.png"
            masks.append(cv2.resize(cv2.imread(str(mask), 0), (side, side)) > 127 if mask.is_file() else None)
    return np.stack(images), np.array(labels), boxes, masks


def measure(maps, boxes, masks):
    """Means over the images that have a true box: box IoU, MaxBoxAccV2, pointing, heat in box, pixel AP."""
    rows, found = [], []
    for heat, truth, mask in zip(maps, boxes, masks, strict=True):
        if not len(truth):
            continue
        inside = np.zeros(heat.shape, bool)
        cover(inside, truth)
        corners = heatmap.box(heat)
        rows.append([
            _iou([corners], truth) if corners else 0, metrics.pointing_game(heat[None], inside[None])[0],
            metrics.heat_in_mask(heat[None], inside[None])[0],
            metrics.pixel_ap(heat[None], mask[None])[0] if mask is not None and mask.any() else np.nan,
        ])
        found.append([_iou([box.corners for box in heatmap.boxes(heat, t, n_boxes=50)], truth) for t in THRESHOLDS])
    iou, pointing, in_box, ap = _means(rows)
    accuracy = np.mean([(np.array(found) >= least).mean(axis=0).max() for least in MIN_IOUS])
    return {"box IoU": iou, "MaxBoxAccV2": accuracy, "pointing": pointing, "heat in box": in_box, "pixel AP": ap}


def _means(rows):
    return [column[np.isfinite(column)].mean() if np.isfinite(column).any() else np.nan for column in np.array(rows).T]


def _iou(boxes, truth):
    return max((metrics.box_iou(np.array([box]), truth).max() for box in boxes), default=0)


def box_f1(maps, boxes, n_boxes):
    """F1 of all boxes of images that have a true one."""
    hits = n_found = n_true = 0
    for heat, truth in zip(maps, boxes, strict=True):
        if len(truth):
            found = [box.corners for box in heatmap.boxes(heat, n_boxes=n_boxes, min_area=0.01)]
            overlaps = np.array([metrics.box_iou(np.repeat([box], len(truth), axis=0), truth) for box in found])
            while overlaps.size and overlaps.max() >= 0.5:
                mine, theirs = np.unravel_index(overlaps.argmax(), overlaps.shape)
                overlaps[mine], overlaps[:, theirs] = 0, 0
                hits += 1
            n_found, n_true = n_found + len(found), n_true + len(truth)
    return 2 * hits / (n_found + n_true)


def judge(folder, model, judged):
    """{way to a map: its measures}, the accuracy, and {rule: F1 of boxes}."""
    faster = FasterGradCAM.load(model)
    images, labels, boxes, masks = load(folder, judged, faster.input_size[0])
    result, classifier = faster.explain(images), faster.classifier()
    ways = {"centre": np.repeat(metrics.centre_gaussian(*faster.input_size)[None], len(images), axis=0)}
    ways |= {
        name: gradcam.explain(classifier, images, layer=faster.meta["layer"], targets=result.labels, method=method)
        for name, method in METHODS.items()
    }
    ways |= {kind: faster.reweighted(kind).explain(images).heatmaps for kind in ("all", "positive", "contrast")}
    ways["as trained"] = result.heatmaps
    asked = np.linspace(0, len(images) - 1, min(N_ASKED, len(images))).astype(int)
    predict, table = faithfulness.probabilities(faster), {}

    def embed(batch):
        return faster.explain(batch).embeddings

    for name, maps in ways.items():
        question = predict, images[asked], maps[asked], result.labels[asked]
        table[name] = measure(maps, boxes, masks) | {
            "insertion": faithfulness.insertion_auc(*question, n_steps=12).mean(),
            "deletion": faithfulness.deletion_auc(*question, n_steps=12).mean(),
            "embedding loss": faithfulness.embedding_loss(embed, images[asked], maps[asked]).mean(),
        }
    f1 = {rule: box_f1(result.heatmaps, boxes, n_boxes) for rule, n_boxes in BOX_RULES.items()}
    return table, np.mean(result.labels == labels), {"F1 of boxes": f1}


def print_agreement(tables):
    """Spearman's rank correlation of embedding loss and box IoU over the ways: of each set, and of the ranks of all."""
    columns = ("embedding loss", "box IoU")
    ranks = [[stats.rankdata([values[column] for values in table.values()]) for column in columns] for table in tables]
    within = [stats.spearmanr(*pair).statistic for pair in ranks]
    whole = stats.spearmanr(*np.concatenate(ranks, axis=1)).statistic
    print(f"\nembedding loss and box IoU: {', '.join(f'{value:.2f}' for value in within)}; over all {whole:.2f}")


def print_table(title, table):
    columns = next(iter(table.values()))
    print(f"\n{title}\n\n| map | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, values in table.items():
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in values.values())} |", flush=True)


def mean(tables):
    """Mean of the tables, value by value, over those where it is defined."""
    return {
        name: {
            measure: np.mean([t[name][measure] for t in tables if np.isfinite(t[name][measure])] or [np.nan])
            for measure in tables[0][name]
        }
        for name in tables[0]
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="sets with boxes.json")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="where models are kept")
    parser.add_argument("--train", nargs="*", default=[], metavar="OPTION", help="of train, without dashes: seed=1")
    options = parser.parse_args()
    arguments = [part for option in options.train for part in f"--{option}".split("=")]
    tables, f1s = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for folder in options.folders:
            photos, judged = split(folder)
            model = (options.models or Path(temporary)) / folder.name
            if not (model / "meta.json").is_file():
                train(photos, model, arguments)
            table, accuracy, f1 = judge(folder, model, judged)
            tables.append(table)
            f1s.append(f1)
            print_table(f"{folder.name}, accuracy {accuracy:.3f}", table)
    for what in tables, f1s:
        print_table(f"mean of {len(what)} sets", mean(what))
    print_agreement(tables)


if __name__ == "__main__":
    main()
