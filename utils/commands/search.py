"""``search``: the images of an index that are most similar to one, and why; or those that are the same twice."""

import argparse
from pathlib import Path

from utils import imaging, runtime
from utils.commands import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(
        parser, "photo.jpg --index my_index --region 40 20 160 140 --out hits.jpg", "--index my_index --duplicates"
    )
    parser.add_argument("image", nargs="?", type=Path, metavar="IMAGE", help="image to find similar ones of")
    parser.add_argument("--index", type=Path, required=True, metavar="INDEX", help="what `index` wrote")
    parser.add_argument("--top", type=int, default=12, metavar="N", help="number of hits")
    parser.add_argument(
        "--out", type=Path, metavar="SHEET", help="draw the hits, and on both images why they are alike: .jpg or .png"
    )
    parser.add_argument(
        "--region", nargs=4, type=int, metavar=("X0", "Y0", "X1", "Y1"),
        help="search by this part of the image only, in pixels; x1 and y1 lie just outside of it",
    )
    parser.add_argument("--duplicates", action="store_true", help="list pairs of nearly equal images instead")
    parser.add_argument(
        "--above", type=float, default=0.9995, metavar="X", help="with --duplicates: lowest similarity, -1..1"
    )
    common.add_shared(parser, ["--model", "--int8", "--threads"])


def main(options) -> int:
    from utils.commands import image_index, searching

    if options.duplicates == (options.image is not None) or (options.duplicates and (options.out or options.region)):
        raise ValueError("Name an IMAGE to search by, or --duplicates, which takes no IMAGE, --out or --region.")
    if options.top < 1 or not -1 <= options.above <= 1:
        raise ValueError(f"Expected --top >= 1, --above in -1..1. Received: {options.top} and {options.above}")
    index = image_index.read(options.index)
    if options.duplicates:
        for score, one, other in index.duplicates(options.above):
            common.write_line(common.columns([f"{score:.4f}", one, other]))
        return 0
    file = common.model_file(options, "label")
    if runtime.read_metadata(file)["sha256"] != index.model:
        raise ValueError(f"The index {options.index} was made with another model than {file}; name that one.")
    image = imaging.read_image(options.image)
    explainer = runtime.Explainer(file, num_threads=options.threads)
    query = searching.cells_of(explainer, image, options.region)
    hits = index.nearest(query.embedding / query.length, options.top)
    for score, name in hits:
        common.write_line(common.columns([f"{score:.4f}", name]))
    if options.out:
        skipped = searching.draw(options.out, explainer, query=query, image=image, hits=hits, folder=index.folder)
        return common.report_skipped(skipped, len(hits))
    return 0
