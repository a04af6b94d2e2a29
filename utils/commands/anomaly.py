"""``anomaly``: ``fit`` learns from normal images, ``explain`` finds what differs, ``evaluate`` says how well."""

import argparse
import csv
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from utils import heatmap, imaging, runtime
from utils.commands import common
from utils.commands.defect_data import GOOD, find_products

# Names of folders: where the normal images are, the first that matches; and where others are.
NORMAL = re.compile(r"train(ing)?([-_ ]?(images|parts|samples|photos|\d+))?", re.I), GOOD
NOT_NORMAL = re.compile(
    r"(test|val|ground_?truth|gt|mask|label|annotation|bad|ng|nio|ko|not?[-_ ]?(ok|good)|(defect|fault)(?!.*free)|"
    r"abnormal|anomal|broken)(s|ive|y|ies|ous|idation|id|ing|ed)?([-_ ].*)?", re.I
)

SETTINGS = "seed", "image_size", "steps", "false_positives", "tile"  # of `AnomalyDetector.fit`
LONG = 1.5  # times as long as the other side: squeezed into a square it looks different


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(
        parser, "fit my_normal_images --out my_detector", "explain new_images --model my_detector --out explained"
    )
    parts = parser.add_subparsers(required=True, metavar="fit|explain|evaluate", dest="part")
    formatter = {"formatter_class": common.HelpFormatter}
    _add_fit(parts.add_parser("fit", help="learn what is normal, save it and its LiteRT file", **formatter))
    _add_explain(parts.add_parser("explain", help="score images, draw overlays and masks", **formatter))
    _add_evaluate(parts.add_parser("evaluate", help="measure it on known defects", **formatter))


def _add_fit(parser):
    common.add_examples(
        parser, "my_normal_images --out my_detector",
        "--also-normal false_alarms --out my_detector",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", nargs="?",
        help="folder of normal images, with its sub-folders; of MVTec train/good",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL", help="where the model goes")
    parser.add_argument(
        "--also-normal", type=Path, metavar="FOLDER",
        help="images that were called anomalous and are not: the threshold rises above them, nothing else changes; "
        "without a folder of normal images to learn from, it is that of the model in --out",
    )
    common.add_shared(parser, ["--weights", "--seed"])
    parser.add_argument("--int8", action="store_true", help="write the int8 file, too")
    parser.add_argument(
        "--image-size", type=int, metavar="N",
        help="side of the input (default: 224, 320 or 448, as the images have detail; from scratch 96)",
    )
    _add_views(parser)
    parser.add_argument("--steps", type=int, metavar="N", help="gradient steps (default: 150, from scratch 400)")
    parser.add_argument(
        "--false-positives", type=float, default=0.01, metavar="SHARE",
        help="share of normal images that may score above 1, the threshold",
    )


def _add_views(parser):
    parser.add_argument(
        "--tile", type=int, metavar="PIXELS",
        help="cut photos into overlapping squares of this side: for defects that are small in a large photo; of a long "
        "part, its width",
    )
    parser.add_argument(
        "--roi", nargs="+", dest="region", metavar="EDGE",
        help="what to look at: left, top, right and bottom in pixels, or a mask, white where to look, of the photos' "
        "size (default: everything)",
    )


def _add_explain(parser):
    common.add_examples(
        parser, "new_images --model my_detector --out explained", "a.jpg b.jpg --model my_detector --out explained"
    )
    common.add_shared(parser, ["images", "--int8", "--threads"])
    parser.add_argument("--model", type=Path, required=True, metavar="MODEL", help="model that `anomaly fit` made")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where pictures and scores.csv go")


def _add_evaluate(parser):
    common.add_examples(
        parser, "mvtec --json numbers.json --sheets pictures", "my_product --model my_detector"
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER",
        help="train/good, test/good, test/<kind> and ground_truth/<kind>, as of MVTec AD; or a folder of such folders",
    )
    parser.add_argument("--model", type=Path, metavar="MODEL", help="judge this one (default: fit one to train/)")
    _add_views(parser)
    parser.add_argument("--int8", action="store_true", help="judge the int8 file, too, beside the float32 one")
    common.add_shared(parser, ["--weights", "--seed", "--threads", "--json"])
    parser.add_argument("--sheets", type=Path, metavar="FOLDER", help="where a sheet of pictures of each product goes")


def main(options) -> int:
    return {"fit": _fit, "explain": _explain, "evaluate": _evaluate}[options.part](options)


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
    from utils.anomaly import AnomalyDetector

    if options.int8 and not options.folder:
        raise ValueError("--int8 needs the folder of normal images: their values set its scales.")
    corrections = find_normal(options.also_normal) if options.also_normal else []  # before the training
    normal = find_normal(options.folder) if options.folder else []
    if normal:
        detector = _learn(normal, options, options.out)
    elif options.also_normal:
        common.check_kind(options.out, "anomaly")
        detector = AnomalyDetector.load(options.out)
    else:
        raise ValueError("Name a folder of normal images to learn from, or --also-normal.")
    if corrections:
        detector = detector.also_normal(_read(corrections))
        print(f"taken for normal, too: {detector.meta['n_corrections']} images", flush=True)
    _write(detector, options.out, normal if options.int8 else [])
    return 130 if detector.meta["interrupted"] else 0


def _learn(files, options, out):
    """A detector fitted to normal images, to be written into the folder ``out``."""
    from tqdm import tqdm

    from utils.anomaly import AnomalyDetector

    common.return_memory()
    region = _region(options.region)

    def read():
        yield from _read(files, options.tile)
        out.mkdir(parents=True, exist_ok=True)  # better now than after the training

    with tqdm(desc="training", bar_format="{desc}: {percentage:3.0f}%|{bar}| {postfix}", disable=None) as bar:

        def show(entry):
            bar.total = entry["total"]
            bar.set_postfix_str(f"{entry['seconds_left']:.0f} s left, loss {entry['loss']:.2f}", refresh=False)
            bar.update(entry["done"] - bar.n)

        settings = {name: getattr(options, name) for name in SETTINGS if hasattr(options, name)} | {"region": region}
        return AnomalyDetector.fit(read(), weights=common.chosen_weights(options), progress=show, **settings)


def _region(values):
    """Of --roi a mask, bool (H, W), or four edges; None where it is not given."""
    if not values:
        return None
    if len(values) == 1:
        return imaging.read_image(values[0]).max(axis=2) > 127
    if len(values) != 4 or not all(re.fullmatch(r"-?\d+", value) for value in values):
        raise ValueError(
            f"--roi takes left, top, right and bottom in pixels, or the file of a mask. Received: {' '.join(values)}"
        )
    return [int(value) for value in values]


def _read(files, tile=None):
    """The images, one by one: no more than one full photo is in memory."""
    skipped = []
    for number, (_, _, image) in enumerate(
        imaging.read_or_skip(common.with_bar(imaging.image_files(files), "reading"), skipped)
    ):
        height, width = image.shape[:2]
        if number == 0 and not tile and max(height, width) > LONG * min(height, width):
            advice = f"small defects may get lost; --tile {min(height, width)} looks at it piece by piece"
            print(f"{width} × {height} pixels are squeezed into a square: {advice}", file=sys.stderr)
        yield image
    common.report_skipped(skipped, len(files))


def _write(detector, folder, normal):
    """Model folder and LiteRT file; with files of normal images an int8 file, too."""
    from utils import export

    detector.save(folder)
    print(f"learnt {detector.meta['n_images']} normal images; saved in {folder}", flush=True)
    (folder / runtime.INT8_FILE).unlink(missing_ok=True)  # of an earlier detector
    file = export.export_float(detector, folder / runtime.FLOAT_FILE)
    print(file, flush=True)
    if normal:
        pieces = _pieces(detector, normal, export.N_CALIBRATION)
        print(export.export_int8(file, pieces, folder / runtime.INT8_FILE), flush=True)


def _pieces(detector, files, n):
    """About n images as the network sees them, of as many photos, however many pieces it sees of each."""
    chosen, pieces = [files[i] for i in common.spread(len(files), n)], []
    for number, (_, _, image) in enumerate(imaging.read_or_skip(imaging.image_files(chosen), [])):
        seen = detector.views.cut(image[None], *detector.input_size)
        # Starting with another one in each photo: the first always lies in the corner.
        pieces.append(seen[(number + common.spread(len(seen), -(-n // len(chosen)))) % len(seen)])
    return np.concatenate(pieces)


def _evaluate(options) -> int:
    from utils.commands import judging, report

    products = find_products(options.folder)
    names = [runtime.FLOAT_FILE, runtime.INT8_FILE] if options.int8 else [runtime.FLOAT_FILE]
    if options.model:
        for name in names:
            common.exported_file(options.model, name, "anomaly")
    common.prepare_results(options)
    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
    rows = {name: [] for name in names}
    for product in products:
        with tempfile.TemporaryDirectory() as made:
            folder = options.model or Path(made)
            if not options.model:
                normal = find_normal(product.train)
                _write(_learn(normal, options, folder), folder, normal if options.int8 else [])
            explainers = {name: runtime.Explainer(folder / name, num_threads=options.threads) for name in names}
            for name, explainer in explainers.items():
                rows[name].append({"name": product.name} | judging.judge(explainer, product))
            if options.sheets:
                judging.sheet(explainers[runtime.FLOAT_FILE], product).savefig(options.sheets / f"{product.name}.png")
    print(judging.table(rows[runtime.FLOAT_FILE]))
    found = {"products": rows[runtime.FLOAT_FILE]}
    if options.int8:
        found["int8"] = rows[runtime.INT8_FILE]
        agreed = [np.equal(one["anomalous"], other["anomalous"]) for one, other in zip(*rows.values(), strict=True)]
        print(f"\nint8, the same verdict on {np.concatenate(agreed).mean():.1%} of the images:\n")
        print(judging.table(found["int8"]))
    if options.json:
        options.json.write_text(json.dumps(found | {"machine": report.machine()}, indent=1) + "\n")
    return 0


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
