"""``benchmark``: what an explanation costs on this machine, as a table and a figure."""

import argparse
import sys

from utils.commands import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(parser, "", "--model my_model --rounds 20 --json times.json --plot times.png")
    common.add_shared(parser, ["--model", "--json", "--plot"])
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of each method")


def main(options) -> int:
    from utils.commands import report, timing

    common.check_kind(options.model, "label")
    common.prepare_results(options)
    result = timing.run(options.model, options.rounds, progress=_print_progress)
    print(report.times_table(result))
    common.write_results(options, result, lambda: report.times_bars(result))
    return 0


def _print_progress(entry):
    print(f"{entry['done']} of {entry['total']} done; {entry['step']}", file=sys.stderr)
