"""``index``: the embeddings of a folder of images, for ``search``."""

import argparse
from pathlib import Path

from utils import runtime
from utils.commands import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(parser, "my_photos --out my_index", "my_photos --model my_model --int8 --out my_index")
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="folder of images, with its sub-folders")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="INDEX",
        help="new folder, or that of an index of the same images: what is new is added, what is gone is dropped",
    )
    common.add_shared(parser, ["--from", "--model", "--int8", "--threads"])


def main(options) -> int:
    from utils.commands import image_index

    if common.is_from_bulk(options, options.folder):
        from utils.commands import bulk_results

        print(f"{bulk_results.index(options.bulk, options.out)} images; index in {options.out}")
        return 0
    file, left_out = common.model_file(options, "label"), []
    files = image_index.files_below(options.folder, left_out)
    common.report_left_out(left_out)
    explainer = runtime.Explainer(file, num_threads=options.threads)
    done = image_index.update(
        options.out, options.folder, files, explainer, progress=lambda new: common.with_bar(new, "indexing")
    )
    print(f"{done['new']} new images, {done['kept']} from before, {done['dropped']} dropped; index in {options.out}")
    return common.report_skipped(done["skipped"], len(files))
