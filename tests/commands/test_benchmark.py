"""Times and ratios, the table and the figure made of them, and one short run of the whole."""

import json

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

from utils import networks
from utils.commands import report, timing
from utils.faster_gradcam import FasterGradCAM

METHODS = (timing.EXACT, *(f"{way} {what}" for way in timing.WAYS for what in ("explain", "forward")))
MEDIANS = (12.0, 8.0, 4.0, 2.0, 1.6, 0.5, 0.4)  # milliseconds, in the order of METHODS


def configuration(size=(96, 96), threads=1, batch_size=1):
    milliseconds = {m: [t / 2, t, 2 * t] for m, t in zip(METHODS, MEDIANS, strict=True)}
    return {
        "image_size": list(size), "threads": threads, "batch_size": batch_size, "milliseconds": milliseconds,
        "ratios": timing.ratios(milliseconds),
    }


@pytest.fixture
def result():
    configurations = [configuration(size, n, b) for size in ((96, 96), (224, 224)) for n in (1, 2) for b in (1, 32)]
    return {"model": {}, "machine": report.machine(), "rounds": 3, "configurations": configurations}


def fit(network, size):
    images = np.random.default_rng(0).integers(0, 255, (6, size, size, 3)).astype(np.uint8)
    return FasterGradCAM.fit(network, images, np.arange(6) % 2, n_clusters=2)


def test_each_way_is_compared_with_its_own_forward_pass_and_with_exact_gradcam():
    assert configuration()["ratios"] == {
        "Keras explain / forward": 2.0, "LiteRT float32 explain / forward": 1.25, "LiteRT int8 explain / forward": 1.25,
        "exact / Keras explain": 1.5, "exact / LiteRT float32 explain": 6.0, "exact / LiteRT int8 explain": 24.0,
    }


def test_table_is_markdown_with_one_row_a_configuration(result):
    text = report.times_table(result)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (2 + 8) and len({len(line) for line in rows[:10]}) == 1
    assert "12 (6–24)" in rows[2] and "1.25" in rows[12] and rows[0].count("|") == 3 + 7 + 1
    assert result["machine"]["cpu"] in text and "tensorflow 2." in text and "3 rounds" in text


def test_machine_is_described_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "CPU_INFO", tmp_path / "cpuinfo")
    machine = report.machine()
    assert machine["cpu"] and machine["cores"] >= 1 and "keras" in machine["versions"]


def test_figure_has_a_panel_for_each_size_and_batch_and_a_bar_for_each_method_and_thread_count(result):
    figure = report.times_bars(result)
    assert not plt.get_fignums() and len(figure.axes) == 4
    for ax in figure.axes:
        assert [bar.get_width() for bar in ax.patches] == [*MEDIANS, *MEDIANS] and ax.get_xscale() == "log"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(METHODS)
    assert figure.axes[1].get_title() == "96x96, batch of 32"


def test_explainer_at_another_size_has_the_same_weights():
    faster = fit(networks.embedding_network(networks.Spec("small_resnet", image_size=32, embedding_size=4)), 32)
    larger = timing.at_size(faster, (64, 64))
    assert larger.input_size == (64, 64) and larger.network.outputs[0].shape[1:3] == (4, 4)
    for mine, theirs in zip(larger.network.get_weights(), faster.network.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert timing.at_size(faster, (32, 32)) is faster
    assert larger.explain(timing.frames(2, (64, 64))).heatmaps.shape == (2, 64, 64)


@pytest.mark.slow
def test_a_run_of_the_whole_on_a_network_of_ones_own(tmp_path, monkeypatch):
    x = inputs = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1.0, name="preprocessing")(x)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x))
    fit(keras.Model(inputs, x), 16).save(tmp_path / "model")
    monkeypatch.setattr(timing, "THREADS", (1,))
    monkeypatch.chdir(tmp_path)
    steps = []
    result = timing.run("model", rounds=1, progress=steps.append)
    assert [(step["done"], step["total"]) for step in steps] == [(0, 2), (0, 2)]
    assert [step["step"] for step in steps] == ["16x16: exporting", "16x16: measuring, threads: 1"]  # not at 224x224
    assert [case["batch_size"] for case in result["configurations"]] == [1, 32]
    for case in result["configurations"]:
        assert tuple(case["milliseconds"]) == METHODS
        quartiles = np.array(list(case["milliseconds"].values()))
        assert (quartiles > 0).all() and (np.diff(quartiles) >= 0).all()
        assert case["image_size"] == [16, 16] and case["ratios"] == timing.ratios(case["milliseconds"])
    assert json.loads(json.dumps(result)) == result and report.times_table(result)
    assert result["model"]["name"] == "model" and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_rounds_must_be_positive():
    with pytest.raises(ValueError, match="rounds must be at least 1. Received: 0"):
        timing.run("nowhere", rounds=0)
