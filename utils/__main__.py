"""Command line: ``python -m utils COMMAND ...``; ``-h`` lists the commands. Parsing and dispatch only."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from utils import imaging

DEFAULT_MODEL = Path(__file__).resolve().parents[1] / "data" / "models" / "janken"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 on success, 2 with one sentence on stderr on bad input, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:  # a board with the light packages only
        print(f"error: this command needs the package {error.name}; pip install -r requirements.txt", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser():
    parser = argparse.ArgumentParser(prog="python -m utils", description="Faster-Grad-CAM on the command line.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    default = argparse.ArgumentDefaultsHelpFormatter

    train = commands.add_parser("train", help="train a model and save it", formatter_class=default)
    train.set_defaults(run=_train)
    train.add_argument(
        "--data", nargs="+", required=True, metavar="SOURCE",
        help="janken (real photos), synthetic (rendered hands) or a folder with one sub-folder a class; several are "
        "joined, if they have the same classes",
    )  # fmt: skip
    train.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the model goes")
    train.add_argument("--none", action="store_true", help="add rendered backgrounds as the class none")
    train.add_argument("--n-images", type=int, default=1200, help="number of rendered hands")
    train.add_argument("--variety", type=float, default=1.0, help="how much rendered hands differ, 0..1")
    train.add_argument("--image-size", type=int, default=96, help="side of the network's input in pixels")
    train.add_argument("--backbone", default="mobilenet_v2", help="or mobilenet_v3_small, mobilenet_v3_large")
    train.add_argument("--alpha", type=float, default=1.0, help="width of the backbone")
    train.add_argument("--output-stride", type=int, default=16, choices=(8, 16, 32))
    train.add_argument("--last-layer", help="layer that the backbone ends with; default: its own last one")
    train.add_argument("--embedding-size", type=int, default=128)
    train.add_argument("--weights", default="imagenet", help="imagenet, none (from scratch), or a file")
    train.add_argument("--steps", type=int, default=400, help="gradient steps")
    train.add_argument("--batch-size", type=int, default=32)
    train.add_argument("--learning-rate", type=float, help="default: 2e-4, from scratch 3e-3")
    train.add_argument("--scale", type=float, default=30.0, help="ArcFace scale")
    train.add_argument("--margin", type=float, default=0.3, help="ArcFace margin in radians")
    train.add_argument("--augmentation", type=float, help="strength of change, 0..1; default: 1, from scratch 0.2")
    train.add_argument("--layer", help="layer of the heat maps")
    train.add_argument("--detail-layer", help="finer layer of their outline; default, with contrast: the last at 1/8")
    train.add_argument("--clusters", type=int, default=10, help="clusters per class")
    train.add_argument("--top-channels", type=int, help="keep only the largest channel weights; the paper: 50")
    train.add_argument(
        "--weighting", default="contrast", choices=("all", "positive", "contrast"),
        help="channel weights: mean gradients, the positive ones only, or these times how much more a channel answers "
        "to the classes than to backgrounds",
    )  # fmt: skip
    train.add_argument("--seed", type=int, default=0)

    explain = commands.add_parser("explain", help="labels and heat maps of images", formatter_class=default)
    explain.set_defaults(run=_explain)
    explain.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    source = explain.add_mutually_exclusive_group()
    source.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER", help="a model of this project")
    source.add_argument("--network", metavar="NAME", help="vgg16, resnet18, ...: a classifier of ImageNet's classes")
    explain.add_argument("--weights", default="imagenet", help="of --network: imagenet, none (random), or a file")
    explain.add_argument("--method", help="gradcam, gradcam++, ...; default: of a model, no gradient; else gradcam")
    explain.add_argument("--keep-aspect", action="store_true", help="with --network: do not squash images to a square")
    layers = explain.add_mutually_exclusive_group()
    layers.add_argument("--layer", nargs="+", help="layers of the heat maps; an unknown name lists them")
    layers.add_argument("--all-layers", action="store_true", help="every layer that gives maps")
    classes = explain.add_mutually_exclusive_group()
    classes.add_argument("--class-id", nargs="+", type=int, metavar="ID", help="classes to explain")
    classes.add_argument("--top-n", type=int, metavar="N", help="explain the N best classes of each image; default: 1")
    explain.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the pictures go")

    export = commands.add_parser(
        "export", help="write a model as LiteRT files, float32 and int8, for `demo` and small boards",
        formatter_class=default,
    )  # fmt: skip
    export.set_defaults(run=_export)
    export.add_argument("model", type=Path, metavar="FOLDER", help="model folder; the files go into it")
    export.add_argument(
        "--data", nargs="+", metavar="SOURCE",
        help="images to calibrate int8 on: janken, synthetic or a folder with one sub-folder a class; by default the "
        "training data, as far as the model folder can name them",
    )  # fmt: skip

    evaluate = commands.add_parser(
        "evaluate", help="measure the heat maps of a model beside other ways to one", formatter_class=default
    )
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER")
    evaluate.add_argument(
        "--data", default="synthetic", metavar="SOURCE",
        help="janken, synthetic or a folder with one sub-folder a class; of what the model was trained on, the "
        "held-out images",
    )  # fmt: skip
    evaluate.add_argument(
        "--folds", type=int, metavar="N",
        help="cross-validate instead: train N models by the recipe of this one, each on all but a block of the photos",
    )  # fmt: skip
    evaluate.add_argument("--train-data", nargs="*", default=[], metavar="FOLDER", help="the recipe's other folders")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    evaluate.add_argument("--plot", type=Path, metavar="FILE", help="draw some of the maps: .png or .svg")

    demo = commands.add_parser("demo", help="explain a camera live, or a video, or images", formatter_class=default)
    demo.set_defaults(run=_demo)
    demo.add_argument("--source", default="0", help="number of a camera, or a video, an image, a folder of images")
    demo.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER", help="an exported model")
    demo.add_argument("--int8", action="store_true", help="take the int8 file")
    demo.add_argument("--threads", type=int, default=2, help="CPU threads of the network")
    demo.add_argument(
        "--mode", choices=("heatmap", "box"), default="heatmap",
        help="drawn first; keys in the window: s heat map or box, p pause, w write the picture, q quit",
    )  # fmt: skip
    demo.add_argument("--save", type=Path, metavar="FILE", help="write the annotated frames as .mp4 or .avi")
    shown = demo.add_mutually_exclusive_group()
    shown.add_argument("--headless", action="store_true", help="no window; one JSON line a second")
    shown.add_argument("--web", action="store_true", help="serve a page that explains the browser's camera")
    shown.add_argument("--export", type=Path, metavar="PAGE", help="write that page, model inside, as .html")
    demo.add_argument("--port", type=int, default=8000, help="of --web, on 127.0.0.1")
    demo.add_argument(
        "--assets", type=Path, metavar="DIR",
        help="with --web: node_modules folder with @litertjs/core, served instead of taking it from its CDN",
    )  # fmt: skip

    annotate = commands.add_parser(
        "annotate", help="boxes from heat maps, as VOC, COCO and YOLO files to train a detector on",
        formatter_class=default,
    )  # fmt: skip
    annotate.set_defaults(run=_annotate)
    annotate.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    annotate.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER", help="an exported model")
    annotate.add_argument("--int8", action="store_true", help="take the int8 file")
    annotate.add_argument("--threads", type=int, default=2, help="CPU threads of the network")
    annotate.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new, or of an interrupted run")
    annotate.add_argument("--format", nargs="+", default=["voc", "coco", "yolo"], help="which of these to write")
    annotate.add_argument(
        "--threshold", type=_threshold, default="otsu", metavar="T",
        help="a box surrounds what is hotter: a share of the maximum, otsu, or p75: the 75th percentile",
    )  # fmt: skip
    annotate.add_argument("--boxes", type=int, default=1, metavar="N", help="boxes an image at most")
    annotate.add_argument("--min-area", type=float, default=0.01, help="of a hot region, as a share of the image")
    annotate.add_argument(
        "--tight", action="store_true", help="the box of highest IoU with its hot region, not the one round all of it"
    )
    annotate.add_argument("--min-iou", type=float, default=0.3, help="of hot region and box; else rejected")
    annotate.add_argument(
        "--min-confidence", type=float, default=0.6, help="softmax of 30 x cosine, of the best class; else rejected"
    )
    annotate.add_argument("--force", action="store_true", help="begin anew and replace what is there")

    anomaly = commands.add_parser("anomaly", help="find what is not normal, from normal images only")
    parts = anomaly.add_subparsers(required=True, metavar="fit|explain")
    fit = parts.add_parser("fit", help="learn what is normal, save it and its LiteRT file", formatter_class=default)
    fit.set_defaults(run=_anomaly_fit)
    fit.add_argument("folder", type=Path, metavar="FOLDER", help="of normal images, sub-folders included")
    fit.add_argument("--out", type=Path, required=True, metavar="MODEL", help="where the model goes")
    fit.add_argument("--weights", default="imagenet", help="imagenet, none (from scratch), or a file")
    fit.add_argument("--image-size", type=int, help="side of the network's input; default: 224, from scratch 96")
    fit.add_argument("--steps", type=int, help="gradient steps; default: 150, from scratch 400")
    fit.add_argument(
        "--false-positives",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of normal images called anomalous",
    )
    fit.add_argument("--seed", type=int, default=0)
    find = parts.add_parser("explain", help="score, overlay and mask of images", formatter_class=default)
    find.set_defaults(run=_anomaly_explain)
    find.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    find.add_argument("--model", type=Path, required=True, metavar="MODEL", help="what `anomaly fit` made")
    find.add_argument("--threads", type=int, default=2, help="CPU threads of the network")
    find.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where pictures and scores.csv go")

    benchmark = commands.add_parser(
        "benchmark", help="what an explanation costs here, beside exact Grad-CAM", formatter_class=default
    )
    benchmark.set_defaults(run=_benchmark)
    benchmark.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER")
    benchmark.add_argument("--rounds", type=int, default=9, help="turns of each method")
    benchmark.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    benchmark.add_argument("--plot", type=Path, metavar="FILE", help="draw them: .png or .svg")
    return parser


def _threshold(text):
    try:
        return float(text)
    except ValueError:
        return text


def _train(options) -> int:
    from utils.commands import recipe  # isort: skip  first: it imports TensorFlow quietly
    from utils import arcface
    from utils.commands import evaluate

    sources = [recipe.load(source, options) for source in options.data]
    dataset = recipe.join(sources, options)
    network, *layers = recipe.build(options)
    options.out.mkdir(parents=True, exist_ok=True)  # better now than after the training
    print(f"{len(dataset.train)} training and {len(dataset.test)} test images of {', '.join(dataset.class_names)}")
    training, faster = recipe.fit(network, *layers, dataset, options, _print_progress)
    if training.interrupted:
        kept = f"the best weights so far (step {training.best_step})" if training.best_step else "the last weights"
        print(f"interrupted: {kept} are kept")
    settings = {name: value for name, value in vars(options).items() if name not in ("run", "out")}
    settings["data"] = [Path(source).name for source in options.data]  # a model goes further than this machine's paths
    settings["weights"] = Path(options.weights).name
    info = {"training": settings | {"best_step": training.best_step, "interrupted": training.interrupted}}
    if len(dataset.test):
        accuracy = arcface.accuracy(training.network, dataset.images[dataset.test], dataset.labels[dataset.test])
        info["test_accuracy"] = round(accuracy, 4)
        print(f"test accuracy (no label, no margin): {accuracy:.4f} on {len(dataset.test)} images")
    faster.save(options.out, data_fingerprint=dataset.fingerprint, **info)
    print(f"saved in {options.out}", flush=True)
    if any(source.masks is None for source in sources):
        dataset = replace(dataset, masks=None)  # guessed ones are good enough to train with, not to judge by
    measures = evaluate.brief(faster, dataset, dataset.test)
    if n_images := measures.pop("n_images"):
        print(f"heat maps of {n_images} test images:", *(f"{name} {value}" for name, value in measures.items()))
    return 130 if training.interrupted else 0


def _print_progress(entry):
    left = round(entry["seconds_left"])
    print(
        f"step {entry['step']:5d}   loss {entry['loss']:7.4f}   validation accuracy {entry['validation_accuracy']:.4f}"
        f"   {left // 60}:{left % 60:02d} left",
        flush=True,
    )


def _explain(options) -> int:
    if options.keep_aspect and not options.network:
        raise ValueError("--keep-aspect needs --network: a model of this project takes images of one size.")
    wishes = (options.network, options.method, options.layer, options.class_id, options.top_n)
    exact = options.all_layers or any(wish is not None for wish in wishes)
    return _explain_with_gradients(options) if exact else _explain_faster(options)


def _explain_with_gradients(options) -> int:
    from utils import repro  # noqa: F401  # isort: skip  first: it imports TensorFlow quietly
    from tqdm import tqdm

    from utils import networks
    from utils.commands import explain
    from utils.faster_gradcam import FasterGradCAM
    from utils.networks import classifiers

    files = imaging.image_files(options.images)
    if options.network:
        size = (None, None) if options.keep_aspect else None
        network = classifiers.build(options.network, None if options.weights == "none" else options.weights, size)
        class_names, default = classifiers.class_names(), networks.default_layer(network)
    else:
        faster = FasterGradCAM.load(options.model)
        network, class_names, default = faster.classifier(), faster.class_names, faster.meta["layer"]
    layers = networks.map_layers(network) if options.all_layers else options.layer or [default]
    smallest_side = classifiers.NETWORKS[options.network].image_size if options.keep_aspect else None
    manifest = explain.explain_files(
        tqdm(files, "explaining", leave=False, delay=2, disable=None), network, class_names, options.out,
        options.method or "gradcam", layers, options.class_id, 1 if options.top_n is None else options.top_n,
        smallest_side, tqdm.write,
    )  # fmt: skip
    _report_skipped(manifest["skipped"], len(files))
    return 0


def _explain_faster(options) -> int:
    from utils import repro  # noqa: F401  # isort: skip  first: it imports TensorFlow quietly
    from tqdm import tqdm

    from utils import heatmap
    from utils.faster_gradcam import FasterGradCAM

    files = imaging.image_files(options.images)
    faster = FasterGradCAM.load(options.model)
    skipped = []
    for path, name, image in _read(files, skipped, "explaining"):
        result = faster.explain(image)
        heat = result.heatmaps[0]
        imaging.write_image(options.out / f"{name}_heatmap.png", heatmap.grey(heat))
        imaging.write_image(options.out / f"{name}_overlay.png", heatmap.overlay(image, heat))
        box = heatmap.box(heat)
        tqdm.write(f"{path}\t{result.names[0]}\t{result.scores.max():.3f}\t{box or 'no box'}")
    _report_skipped(skipped, len(files))
    return 2 if len(skipped) == len(files) else 0


def _read(files, skipped, what):
    """Yield path, name and image of each file, with a progress bar; why one cannot be read goes to ``skipped``."""
    from tqdm import tqdm

    for path, name in tqdm(files, what, leave=False, delay=2, disable=None):
        try:
            image = imaging.read_image(path)
        except (ValueError, FileNotFoundError) as error:
            skipped.append(str(error))
        else:
            yield path, name, image


def _report_skipped(skipped, n_files):
    if skipped:
        print(f"skipped {len(skipped)} of {n_files}: {' '.join(skipped[:5])}", file=sys.stderr)


def _export(options) -> int:
    from utils import repro  # noqa: F401  # isort: skip  first: it imports TensorFlow quietly
    import numpy as np

    from utils import export, runtime
    from utils.commands import recipe
    from utils.faster_gradcam import FasterGradCAM

    faster = FasterGradCAM.load(options.model)
    print("converting ...", flush=True)
    file = export.export_float(faster, options.model / runtime.FLOAT_FILE)
    print(f"{file}  {file.stat().st_size / 1e6:.1f} MB", flush=True)
    training = recipe.of(faster)
    sources = options.data or training.data
    missing = [source for source in sources if source not in recipe.SOURCES and not Path(source).is_dir()]
    if missing or not sources:
        raise ValueError(f"int8 needs training images; name them with --data. Not found: {missing or 'any'}")
    datasets = [recipe.load(source, training) for source in sources]
    images = np.concatenate([dataset.images[dataset.train] for dataset in datasets])
    file = export.export_int8(file, images, options.model / runtime.INT8_FILE)
    print(f"{file}  {file.stat().st_size / 1e6:.1f} MB, calibrated on images of {', '.join(sources)}")
    return 0


def _evaluate(options) -> int:
    from utils.commands import recipe  # isort: skip  first: it imports TensorFlow quietly
    import numpy as np

    from utils.commands import evaluate
    from utils.faster_gradcam import FasterGradCAM

    for path in filter(None, (options.json, options.plot)):  # better now than after the measurements
        path.parent.mkdir(parents=True, exist_ok=True)
    faster = FasterGradCAM.load(options.model)
    if options.folds and "training" not in faster.meta:
        raise ValueError(f"--folds needs a model that `train` made; {options.model} does not tell how it was trained.")
    training = recipe.of(faster)
    name = Path(options.data).name
    dataset = recipe.load(options.data, training)
    if options.folds:
        others = recipe.load_others(name, options.train_data, training)
        parts = recipe.cross_validate(dataset, others, training, options.folds)
    else:
        seen = name in training.data
        parts = [(faster, dataset.test if seen else np.arange(len(dataset.images)))]
    results = []
    for model, unseen in parts:
        results.append(evaluate.measure(model, dataset, unseen))
        print(f"{evaluate.table(results[-1])}\n", flush=True)
    result = evaluate.pool(results)
    if options.folds:
        print(evaluate.table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        evaluate.draw(model, dataset, unseen).savefig(options.plot)
    return 0


def _demo(options) -> int:
    from utils import runtime
    from utils.commands import demo

    file = options.model / (runtime.INT8_FILE if options.int8 else runtime.FLOAT_FILE)
    if options.web or options.export:
        return _demo_in_browser(options, file)
    demo.run(options.source, file, options.mode, options.save, options.headless, options.threads)
    return 0


def _demo_in_browser(options, file) -> int:
    from utils.commands import web

    if options.source != "0" or options.save:
        raise ValueError("The page takes the browser's own camera: --source and --save do not go with it.")
    if options.export and options.assets:
        raise ValueError("--assets needs --web: an exported page takes LiteRT.js from its CDN.")
    if options.export:
        print(f"wrote {web.export(file, options.export, options.mode)}")
        return 0
    with web.server(file, options.port, options.mode, options.assets) as server:
        print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends it)", flush=True)
        server.serve_forever()


def _annotate(options) -> int:
    from tqdm import tqdm

    from utils import runtime
    from utils.commands import annotate

    settings = annotate.Settings(
        options.threshold, options.boxes, options.min_area, options.tight, options.min_iou, options.min_confidence
    )
    files = imaging.image_files(options.images)
    model = options.model / (runtime.INT8_FILE if options.int8 else runtime.FLOAT_FILE)
    done = annotate.run(
        files, model, options.out, settings, options.format, options.threads, options.force,
        lambda files: tqdm(files, "annotating", unit="image", leave=False, delay=2, disable=None),
    )  # fmt: skip
    print(f"kept {done.kept} of {len(files)} images; {done.rejected} rejected, see {options.out / annotate.REJECTED}")
    if done.explained:
        rates = (f"{done.explained / seconds:.0f}" for seconds in (done.seconds, max(done.explain_seconds, 1e-9)))
        print("{} images a second, {} without reading and copying them".format(*rates))
    return 2 if done.unreadable == len(files) else 0


def _anomaly_fit(options) -> int:
    from utils import repro  # noqa: F401  # isort: skip  first: it imports TensorFlow quietly
    from tqdm import tqdm

    from utils import export, runtime
    from utils.anomaly import AnomalyDetector

    if not options.folder.is_dir():
        raise FileNotFoundError(f"There is no folder {options.folder}, expected one of normal images.")
    folders = [options.folder, *sorted(path for path in options.folder.rglob("*") if path.is_dir())]
    files = imaging.image_files([folder for folder in folders if imaging.images_in(folder)] or [options.folder])
    skipped = []
    images = [image for _, _, image in _read(files, skipped, "reading")]
    _report_skipped(skipped, len(files))
    options.out.mkdir(parents=True, exist_ok=True)  # better now than after the training
    weights = None if options.weights == "none" else options.weights
    form = "{desc}: {percentage:3.0f}%|{bar}| {postfix}"
    with tqdm(desc="training", total=1.0, bar_format=form, disable=None) as bar:

        def show(entry):
            share = entry["seconds"] / max(entry["seconds"] + entry["seconds_left"], 1e-9)
            bar.set_postfix_str(f"{entry['seconds_left']:.0f} s left, loss {entry['loss']:.2f}", refresh=False)
            bar.update(share - bar.n)

        detector = AnomalyDetector.fit(
            images, weights, seed=options.seed, image_size=options.image_size, steps=options.steps, false_positives=options.false_positives, progress=show
        )
    detector.save(options.out)
    print(f"learnt {len(images)} normal images; saved in {options.out}", flush=True)
    print(export.export_float(detector, options.out / runtime.FLOAT_FILE))
    return 130 if detector.meta["interrupted"] else 0


def _anomaly_explain(options) -> int:
    import csv

    import numpy as np
    from tqdm import tqdm

    from utils import heatmap, runtime

    files = imaging.image_files(options.images)
    explainer = runtime.Explainer(options.model / runtime.FLOAT_FILE, options.threads)
    if explainer.kind != "anomaly":
        raise ValueError(f"{options.model} finds no anomalies; `python -m utils anomaly fit` makes a model that does.")
    skipped = []
    with imaging.atomic_write(options.out / "scores.csv") as draft, draft.open("w", newline="", encoding="utf-8") as table:
        rows = csv.writer(table)
        rows.writerow(["file", "score", "is_anomaly"])
        for path, name, image in _read(files, skipped, "explaining"):
            result = explainer.explain(image)
            heat = result.heatmaps[0]
            imaging.write_image(options.out / f"{name}_overlay.png", heatmap.overlay(image, heat))
            imaging.write_image(options.out / f"{name}_mask.png", np.where(heat > 0.5, np.uint8(255), np.uint8(0)))
            rows.writerow([path, f"{result.scores[0]:.4f}", int(result.is_anomaly[0])])
            tqdm.write(f"{path}\t{result.names[0]}\t{result.scores[0]:.3f}")
    _report_skipped(skipped, len(files))
    return 2 if len(skipped) == len(files) else 0


def _benchmark(options) -> int:
    from utils import plotting
    from utils.commands import benchmark

    for path in filter(None, (options.json, options.plot)):  # better now than after the measurements
        path.parent.mkdir(parents=True, exist_ok=True)
    result = benchmark.run(options.model, options.rounds, lambda text: print(text, file=sys.stderr))
    print(benchmark.table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        plotting.benchmark_bars(result).savefig(options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
