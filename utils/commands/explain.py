"""``explain``: labels and heat maps of images, by a model's own maps or by gradients of any classifier."""

import argparse
from pathlib import Path

from utils import heatmap, imaging
from utils.commands import common

NETWORKS = (
    "vgg16", "vgg19", "resnet18", "resnet50", "resnet101", "densenet121", "inception_v3", "mobilenet_v2",
    "mobilenet_v3", "shufflenet_v2", "efficientnet",
)
METHODS = (
    "gradcam", "gradcam++", "layercam", "hirescam", "xgradcam", "eigencam", "scorecam", "elementwise", "cam",
    "eigengradcam", "kpcacam", "shapleycam", "finercam", "sscam", "iscam", "ablationcam", "smoothgradcam++", "fullgrad",
    "legrad",
)
COLORMAPS = ("turbo", "jet", "viridis", "inferno", "magma", "plasma", "cividis", "hot", "bone")
OWN = ".keras"


def _network(text):
    """A name of the registry, or a file."""
    if text in NETWORKS or text.endswith(OWN):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is neither a {OWN} file nor a name: choose from {', '.join(NETWORKS)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(
        parser, "photo.jpg folder/ --model my_model --out explained",
        "photo.jpg --network my_network.keras --classes names.txt --target 'cat - dog' --out explained",
    )
    common.add_shared(parser, ["images"])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the pictures go")
    group = parser.add_argument_group("network")
    network = group.add_mutually_exclusive_group()
    common.add_shared(network, ["--model"])
    network.add_argument(
        "--network", type=_network, metavar="NAME",
        help=f"a {OWN} file of yours, or a classifier of ImageNet's classes: {', '.join(NETWORKS)}",
    )
    group.add_argument(
        "--classes", type=Path, metavar="FILE", help="names of its classes, one per line (default: class_0, ...)"
    )
    group.add_argument("--output", metavar="NAME", help="which output of a network with several: its name or index")
    group.add_argument(
        "--activation", choices=("softmax", "sigmoid", "none"),
        help="what makes probabilities of scores (default: what the network ends in, else softmax)",
    )
    common.add_shared(group, ["--weights"])
    group.add_argument(
        "--keep-aspect", action="store_true", help="with --network: do not squash images to the shape of a square"
    )
    group = parser.add_argument_group("heat maps")
    group.add_argument(
        "--method", choices=METHODS, metavar="NAME",
        help="%(choices)s (default: of a model its own maps, without a gradient; else gradcam)",
    )
    layers = group.add_mutually_exclusive_group()
    layers.add_argument("--layer", nargs="+", help="layers of the heat maps; an unknown name lists them")
    layers.add_argument("--all-layers", action="store_true", help="every layer that gives maps")
    classes = group.add_mutually_exclusive_group()
    classes.add_argument("--class-id", nargs="+", type=int, metavar="ID", help="classes to explain")
    classes.add_argument("--top-n", type=int, metavar="N", help="explain the N best classes of each image (default: 1)")
    classes.add_argument("--target", metavar="SUM", help="a sum of classes: 'cat - dog'; '-cat' shows what lowers it")
    group.add_argument("--opacity", type=float, default=0.5, metavar="X", help="of the heat over the image, 0..1")
    group.add_argument("--colormap", choices=COLORMAPS, default="turbo", metavar="NAME", help="%(choices)s")


def main(options) -> int:
    common.return_memory()
    if options.keep_aspect and not options.network:
        raise ValueError("--keep-aspect needs --network: a model of this project takes images of one size.")
    _check(options)
    if not options.network:
        common.check_kind(options.model, "label")
    wishes = (options.network, options.method, options.layer, options.class_id, options.top_n, options.target)
    if options.all_layers or any(wish is not None for wish in wishes):
        return _explain_with_gradients(options)
    return _explain_with_clusters(options)


def _check(options):
    """Raise ValueError for options that do not go together."""
    if options.target is not None and not options.target.strip():
        raise ValueError("--target needs a sum of classes, such as 'cat - dog'. Received: nothing")
    is_own = bool(options.network) and options.network.endswith(OWN)
    lone = [f"--{name}" for name in ("classes", "output", "activation") if getattr(options, name) and not is_own]
    if lone:
        raise ValueError(f"{lone[0]} needs --network with a {OWN} file: other networks bring their own.")
    if is_own and options.keep_aspect:
        raise ValueError(f"--keep-aspect needs a network of the list. Received: {options.network}")
    if not 0 <= options.opacity <= 1:
        raise ValueError(f"--opacity must lie in 0..1. Received: {options.opacity}")


def _explain_with_gradients(options) -> int:
    from utils import networks
    from utils.commands import own_network, pictures
    from utils.faster_gradcam import FasterGradCAM
    from utils.networks import classifiers

    files = common.find_images(options.images)
    smallest_side = None
    if options.network and options.network.endswith(OWN):
        network = own_network.read(Path(options.network).expanduser(), options.output)
        class_names = own_network.class_names(network, options.classes)
        default_layer = (options.all_layers or options.layer) or networks.default_layer(network)
    elif options.network:
        size = (None, None) if options.keep_aspect else None
        network = classifiers.build(options.network, weights=common.chosen_weights(options), image_size=size)
        class_names, default_layer = classifiers.class_names(), networks.default_layer(network)
        if options.keep_aspect:
            smallest_side = classifiers.NETWORKS[options.network].image_size
    else:
        faster = FasterGradCAM.load(options.model)
        network, class_names, default_layer = faster.classifier(), faster.class_names, faster.meta["layer"]
    manifest = pictures.explain_files(
        common.with_bar(files, "explaining"), network, class_names=class_names, out=options.out,
        method=options.method or "gradcam",
        layers=networks.map_layers(network) if options.all_layers else options.layer or [default_layer],
        class_ids=options.class_id, top_n=1 if options.top_n is None else options.top_n, target=options.target,
        activation=options.activation, look=_look(options),
        smallest_side=smallest_side, report=common.write_line,
    )
    return common.report_skipped(manifest["skipped"], len(files))


def _look(options):
    return {"opacity": options.opacity, "colormap": options.colormap}


def _explain_with_clusters(options) -> int:
    from utils.faster_gradcam import FasterGradCAM

    files = common.find_images(options.images)
    faster = FasterGradCAM.load(options.model)
    skipped = []
    for path, name, image in imaging.read_or_skip(common.with_bar(files, "explaining"), skipped):
        result = faster.explain(image)
        heat = result.heatmaps[0]
        imaging.write_image(options.out / f"{name}_heatmap.png", heatmap.grey(heat))
        imaging.write_image(options.out / f"{name}_overlay.png", heatmap.overlay(image, heat, **_look(options)))
        box = heatmap.box(heat)
        common.write_line(common.columns([path, result.names[0], f"{result.scores.max():.3f}", box or "no box"]))
    return common.report_skipped(skipped, len(files))
