"""``anomaly``: ``fit`` learns from normal images, ``explain`` finds what differs."""

import argparse
import csv
import re
from pathlib import Path

import numpy as np

from utils import heatmap, imaging, runtime
from utils.commands import common

# Names of folders: where the normal images are, the first that matches; and where others are.
NORMAL = tuple(re.compile(rf"({names})([-_ ]?(images|parts|samples|photos|\d+))?", re.I) for names in (
    "train(ing)?", "good|ok|normals?|nominal|(defect|fault)s?[-_ ]?free|(no|non|without)[-_ ]?(defect|fault)(s|ive|y)?",
))
NOT_NORMAL = re.compile(
    r"(test|val|ground_?truth|gt|mask|label|annotation|bad|ng|nio|ko|not?[-_ ]?(ok|good)|(defect|fault)(?!.*free)|"
    r"abnormal|anomal|broken)(s|ive|y|ies|ous|idation|id|ing|ed)?([-_ ].*)?", re.I
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(
        parser, "fit my_normal_images --out my_detector", "explain new_images --model my_detector --out explained"
    )
    parts = parser.add_subparsers(required=True, metavar="fit|explain", dest="part")
    formatter = {"formatter_class": common.HelpFormatter}
    _add_fit(parts.add_parser("fit", help="learn what is normal, save it and its LiteRT file", **formatter))
    _add_explain(parts.add_parser("explain", help="score images, draw overlays and masks", **formatter))


def _add_fit(parser):
    common.add_examples(
        parser, "my_normal_images --out my_detector",
        "my_normal_images --weights none --false-positives 0.02 --out my_detector",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of normal images, with its sub-folders; of MVTec train/good"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL", help="where the model goes")
    common.add_shared(parser, ["--weights", "--seed"])
    parser.add_argument("--image-size", type=int, metavar="N", help="side of the input (default: 224, from scratch 96)")
    parser.add_argument("--steps", type=int, metavar="N", help="gradient steps (default: 150, from scratch 400)")
    parser.add_argument(
        "--false-positives", type=float, default=0.01, metavar="SHARE",
        help="share of normal images that may score above 1, the threshold",
    )


def _add_explain(parser):
    common.add_examples(
        parser, "new_images --model my_detector --out explained", "a.jpg b.jpg --model my_detector --out explained"
    )
    common.add_shared(parser, ["images", "--threads"])
    parser.add_argument("--model", type=Path, required=True, metavar="MODEL", help="model that `anomaly fit` made")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where pictures and scores.csv go")


def main(options) -> int:
    return _fit(options) if options.part == "fit" else _explain(options)


def find_normal(folder: Path) -> list[Path]:
    """The normal images of a folder and its sub-folders, without masks and images of defects, as their names tell.

    Of a data set, as MVTec's, these are the images of train/good. What is left out is told on stderr.

    Raises:
        FileNotFoundError: no such folder, or no such image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}, expected one of normal images.")
    left_out = []
    files = _normal(folder, left_out)
    common.report_left_out(left_out)
    if not files or folder.resolve().name.lower() in imaging.MASK_FOLDERS:
        raise FileNotFoundError(
            f"There is no image file of a normal thing in {folder}, expected some, also in sub-folders, or train/good."
        )
    return files


def _normal(folder, left_out):
    """Walk down; where folders named `NORMAL` are, only into these."""
    below = [path for path in imaging.entries(folder) if path.is_dir()]
    good = next(filter(None, ([path for path in below if name.fullmatch(path.name)] for name in NORMAL)), [])
    if good:
        left_out += [path for path in imaging.entries(folder) if path not in good]
        return [file for path in good for file in _normal(path, left_out)]
    others = []
    files = imaging.images_in(folder, others)
    chosen = [path for path in below if not (path.is_symlink() or NOT_NORMAL.fullmatch(path.name))]
    left_out += [path for path in others if path not in chosen]
    return files + [file for path in chosen for file in _normal(path, left_out)]


def _fit(options) -> int:
    from tqdm import tqdm

    from utils import export
    from utils.anomaly import AnomalyDetector

    common.return_memory()
    files = find_normal(options.folder)

    def read():  # a generator: no more than one full photo in memory
        skipped = []
        for _, _, image in imaging.read_or_skip(common.with_bar(imaging.image_files(files), "reading"), skipped):
            yield image
        common.report_skipped(skipped, len(files))
        options.out.mkdir(parents=True, exist_ok=True)  # better now than after the training

    with tqdm(desc="training", bar_format="{desc}: {percentage:3.0f}%|{bar}| {postfix}", disable=None) as bar:

        def show(entry):
            bar.total = entry["total"]
            bar.set_postfix_str(f"{entry['seconds_left']:.0f} s left, loss {entry['loss']:.2f}", refresh=False)
            bar.update(entry["done"] - bar.n)

        detector = AnomalyDetector.fit(
            read(), weights=common.chosen_weights(options), seed=options.seed, image_size=options.image_size,
            steps=options.steps, false_positives=options.false_positives, progress=show,
        )
    detector.save(options.out)
    print(f"learnt {detector.meta['n_images']} normal images; saved in {options.out}", flush=True)
    print(export.export_float(detector, options.out / runtime.FLOAT_FILE))
    return 130 if detector.meta["interrupted"] else 0


def _explain(options) -> int:
    files = common.find_images(options.images)
    explainer = runtime.Explainer(common.model_file(options, "anomaly"), num_threads=options.threads)
    skipped = []
    scores = options.out / "scores.csv"
    with imaging.atomic_write(scores) as draft, draft.open("w", newline="", encoding="utf-8") as table:
        rows = csv.writer(table)
        rows.writerow(["file", "score", "is_anomaly"])
        for path, name, image in imaging.read_or_skip(common.with_bar(files, "explaining"), skipped):
            result = explainer.explain(image)
            heat = result.heatmaps[0]
            imaging.write_image(options.out / f"{name}_overlay.png", heatmap.overlay(image, heat))
            imaging.write_image(options.out / f"{name}_mask.png", np.where(heat > 0.5, np.uint8(255), np.uint8(0)))
            rows.writerow([imaging.printable(path), f"{result.scores[0]:.4f}", int(result.is_anomaly[0])])
            common.write_line(common.columns([path, result.names[0], f"{result.scores[0]:.3f}"]))
    return common.report_skipped(skipped, len(files))
