"""How measurements are shown: the machine, Markdown tables, and the table and figure of ``benchmark``."""

import os
import platform
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from utils import repro

CPU_INFO = Path("/proc/cpuinfo")  # of Linux
COLOURS = plt.get_cmap("tab10").colors
SHOWN_VERSIONS = ("python", "tensorflow", "keras", "ai-edge-litert")


def machine() -> dict:
    """CPU, cores, system and versions of what ran on it."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": next(models, platform.processor() or platform.machine()), "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}", "versions": repro.versions(),
    }


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, its columns aligned at the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = [f"{'-' * (width - 1)}:" for width in widths]
    return [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (header, rule, *rows)
    ]


def times_table(result: dict) -> str:
    """The result of `timing.run` as two Markdown tables, times and ratios, below a line about the machine."""
    host = result["machine"]
    versions = ", ".join(f"{name} {host['versions'][name]}" for name in SHOWN_VERSIONS)
    times, shares = [], []
    for case in result["configurations"]:
        height, width = case["image_size"]
        cells = [f"{height}x{width}", str(case["threads"]), str(case["batch_size"])]
        times.append(cells + [_quartiles(values) for values in case["milliseconds"].values()])
        shares.append(cells + [f"{ratio:.2f}" for ratio in case["ratios"].values()])
    header = ["image", "threads", "batch"]
    return "\n".join([
        f"{host['cpu']}, {host['cores']} cores, {host['system']}; {versions}; {result['rounds']} rounds.",
        "", "Milliseconds per image, median (quartiles):", "", *markdown([*header, *case["milliseconds"]], times),
        "", "Ratios of the medians:", "", *markdown([*header, *case["ratios"]], shares),
    ])


def _quartiles(values):
    lower, median, upper = (f"{value:.3g}" for value in values)
    return f"{median} ({lower}–{upper})"


def times_bars(result: dict) -> Figure:
    """Milliseconds per image of each method, of `timing.run`: medians, whiskers at the quartiles."""
    cases = result["configurations"]
    sizes = sorted({tuple(case["image_size"]) for case in cases})
    batches = sorted({case["batch_size"] for case in cases})
    threads = sorted({case["threads"] for case in cases})
    methods = list(cases[0]["milliseconds"])
    thickness = 0.8 / len(threads)
    figure, axes = plt.subplots(
        len(sizes), len(batches), figsize=(11, 0.9 + 3.0 * len(sizes)), squeeze=False, sharex=True, sharey=True,
        layout="constrained", dpi=80,
    )
    for case in cases:
        ax = axes[sizes.index(tuple(case["image_size"]))][batches.index(case["batch_size"])]
        i = threads.index(case["threads"])
        _draw_bars(ax, case, places=np.arange(len(methods)) + i * thickness, thickness=thickness, colour=COLOURS[i])
    middles = np.arange(len(methods)) + thickness * (len(threads) - 1) / 2
    for ax in axes.flat:
        ax.set(xscale="log", yticks=middles, yticklabels=methods)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.margins(x=0.1)
        ax.grid(axis="x", alpha=0.3)
        ax.set_axisbelow(True)
    axes[0][0].invert_yaxis()
    figure.supxlabel("milliseconds per image", fontsize=10)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower right", ncols=len(threads), frameon=False)
    plt.close(figure)
    return figure


def _draw_bars(ax, case, *, places, thickness, colour):
    """The bars of one number of threads, each with its number."""
    height, width = case["image_size"]
    ax.set_title(f"{height}x{width}, batch of {case['batch_size']}", fontsize=10)
    lower, median, upper = np.transpose(list(case["milliseconds"].values()))
    ax.barh(
        places, median, thickness, color=colour, ecolor="0.2", capsize=2, xerr=[median - lower, upper - median],
        label="1 thread" if case["threads"] == 1 else f"{case['threads']} threads",
    )
    for place, value, end in zip(places, median, upper, strict=True):
        ax.annotate(f"{value:.3g}", (end, place), (5, 0), textcoords="offset points", va="center", fontsize=7.5)
