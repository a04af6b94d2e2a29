"""Command line: ``python -m utils COMMAND ...``; ``-h`` lists the commands, and ``COMMAND -h`` the options of one."""

import argparse
import sys
from collections.abc import Collection, Sequence
from importlib import import_module

from utils.commands import common, exits

COMMANDS = {
    "train": "train a model on your photos and save it",
    "explain": "name what images show and draw heat maps of them",
    "evaluate": "compare the heat maps of a model with other kinds of heat map, in numbers",
    "export": "write a model as LiteRT files, float32 and int8, for demo, annotate and small boards",
    "demo": "explain a camera live, or a video, or images",
    "annotate": "draw boxes from heat maps and write them as VOC, COCO and YOLO files",
    "bulk": "explain very many images on all cores, or on many machines, and write Parquet files",
    "push": "send a model folder to the Hugging Face hub; any command takes it as --model hf://OWNER/NAME",
    "anomaly": "find defects after learning from normal images only",
    "index": "remember the embeddings of a folder of images, to search in",
    "search": "find the images of an index that are similar to one, and show why",
    "benchmark": "time one explanation on this machine against exact Grad-CAM",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 2 and a sentence on stderr on bad input, 130 after Ctrl-C, 141 if nobody reads."""
    arguments = sys.argv[1:] if arguments is None else arguments

    def command():
        options = build_parser(arguments[:1]).parse_args(arguments)
        common.fetch_model(options)
        return options.main(options)

    return exits.code_of(command)


def build_parser(commands: Collection[str]) -> argparse.ArgumentParser:
    """The parser that knows the names of all commands and the options of these: only their modules are imported."""
    parser = argparse.ArgumentParser(
        prog="python -m utils",
        description="Faster-Grad-CAM: labels and heat maps from one forward pass.",
        epilog="python -m utils COMMAND -h explains a command and shows examples.",
    )
    parts = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        description = f"{summary[0].upper()}{summary[1:]}."
        part = parts.add_parser(name, help=summary, description=description, formatter_class=common.HelpFormatter)
        if name in commands:
            module = import_module(f"utils.commands.{name}")
            module.add_arguments(part)
            part.set_defaults(main=module.main)
    return parser


if __name__ == "__main__":
    sys.exit(main())
