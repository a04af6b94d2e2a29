"""The command line, end to end on tiny networks, and its answers to bad input."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from samples import write_detector

from utils import arcface, imaging, runtime
from utils.__main__ import main
from utils.commands.common import DEFAULT_MODEL

TINY = [
    "--weights", "none", "--backbone", "small_resnet", "--image-size", "32", "--embedding-size", "8", "--steps", "2",
    "--batch-size", "4",
]
HANDS = DEFAULT_MODEL.parents[1] / "hands"
SYNTHETIC = ["--n-images", "12", "--data", "synthetic"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of three photos each, one more file that is no photo."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        for i in range(3):
            imaging.write_image(folder / name / f"{i}.png", rng.integers(0, 255, (40, 30, 3)).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A model folder, made by the command line, and what that printed."""
    folder, printed = tmp_path_factory.mktemp("models") / "mine", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["train", "--data", str(photos), "--none", "--out", str(folder), *TINY]) == 0
    return folder, printed.getvalue()


@pytest.fixture
def model(trained):
    return trained[0]


def test_training_on_a_folder_of_classes(trained):
    folder, printed = trained
    assert "of cat, dog, none" in printed and "0:00 left" in printed
    assert "test accuracy (no label, no margin)" in printed
    assert re.search(r"heat maps of \d test images: keep [01]\.\d+ delete [01]\.\d+ insertion [01]\.\d+\n", printed)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["class_names"] == ["cat", "dog", "none"] and 0 <= meta["test_accuracy"] <= 1
    assert meta["training"]["steps"] == 2 and len(meta["data_fingerprint"]) == 16


@pytest.mark.slow
def test_training_with_masks_tells_where_the_heat_lies(tmp_path, capsys):
    assert main(["train", *SYNTHETIC, "--out", str(tmp_path), *TINY]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"heat maps of \d test images: heat in mask [01]\.\d+ pixel AP [01]\.\d+\n", printed)


def test_ctrl_c_in_training_on_joined_data_keeps_a_model(tmp_path, capsys, monkeypatch):
    for i, name in enumerate(("choki", "gu", "pa")):
        imaging.write_image(tmp_path / "mine" / name / "1.png", np.full((32, 32, 3), 80 * i, np.uint8))
    forward, calls = arcface.networks.forward, []

    def press_ctrl_c(*arguments, **settings):
        calls.append(1)
        if len(calls) == 2:  # the second evaluation
            raise KeyboardInterrupt
        return forward(*arguments, **settings)

    monkeypatch.setattr(arcface.networks, "forward", press_ctrl_c)
    model = tmp_path / "model"
    assert main(["train", *SYNTHETIC, str(tmp_path / "mine"), "--out", str(model), *TINY]) == 130
    printed = capsys.readouterr().out
    assert "of choki, gu, pa" in printed and "the best weights so far (step 1) are kept" in printed
    arguments = ["explain", str(tmp_path / "mine" / "gu"), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0


def test_evaluating_a_trained_model(model, photos, tmp_path, capsys):
    """On the folder that trained it: its held-out photos; no masks, so nothing about where the heat lies."""
    numbers, picture = tmp_path / "numbers.json", tmp_path / "maps.png"
    arguments = ["evaluate", "--model", str(model), "--data", str(photos)]
    assert main([*arguments, "--json", str(numbers), "--plot", str(picture)]) == 0
    printed, result = capsys.readouterr().out, json.loads(numbers.read_text())
    own = "clusters, contrast, details"
    assert result["n_images"] == 2 and result["own"] == own and f"**{own}**" in printed
    assert set(result["measures"]) > {"Grad-CAM", "clusters, top 50", "centre Gaussian", "random map"}
    assert {"keep", "ROAD"} < set(result["measures"][own]) and "pixel AP" not in result["measures"][own]
    assert imaging.read_image(picture).shape[2] == 3


def test_evaluating_images_of_other_classes(model, capsys):
    assert main(["evaluate", "--model", str(model), "--data", str(HANDS)]) == 2
    assert "The model knows cat, dog, none. Received: images of ['choki', 'gu', 'pa']" in capsys.readouterr().err


def test_exporting_a_trained_model(model, photos, capsys):
    assert main(["export", str(model), "--data", str(photos)]) == 0
    printed = capsys.readouterr().out
    assert "explainer.tflite" in printed and "calibrated on images of" in printed
    for file, precision in ((runtime.FLOAT_FILE, "float32"), (runtime.INT8_FILE, "int8")):
        explainer = runtime.Explainer(model / file)
        assert explainer.class_names == ("cat", "dog", "none") and explainer.precision == precision


def test_export_without_images_to_calibrate_on_writes_nothing(trained, tmp_path, capsys):
    """The model was trained on a folder whose path it does not tell."""
    mine = shutil.copytree(trained[0], tmp_path / "mine", ignore=shutil.ignore_patterns("*.tflite"))
    before = sorted(path.name for path in mine.iterdir())
    assert main(["export", str(mine)]) == 2
    captured = capsys.readouterr()
    assert "name them with --data" in captured.err and captured.out == ""
    assert sorted(path.name for path in mine.iterdir()) == before


def test_explaining_files_and_folders(model, photos, tmp_path, capsys):
    assert main(["explain", str(photos / "cat"), str(photos / "dog" / "1.png"), "--model", str(model),
                 "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.split("\t")[1] in ("cat", "dog", "none") for line in lines)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    stems = ["0", "1", "1_2", "2"]  # two files of the same name
    assert written == sorted(f"{stem}_{kind}.png" for stem in stems for kind in ("heatmap", "overlay"))
    with (
        Image.open(tmp_path / "out" / "0_heatmap.png") as heat,
        Image.open(tmp_path / "out" / "0_overlay.png") as overlay,
    ):
        assert heat.mode == "L" and overlay.mode == "RGB" and heat.size == overlay.size == (30, 40)


def test_unreadable_images_are_skipped_counted_and_named(model, photos, tmp_path, capsys):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not an image")
    good = str(photos / "cat" / "0.png")
    arguments = ["--model", str(model), "--out", str(tmp_path / "out")]
    assert main(["explain", str(tmp_path), good, *arguments]) == 0
    error = capsys.readouterr().err
    assert "skipped 2 of 3" in error and "empty.jpg" in error and "text.png" in error
    assert main(["explain", str(tmp_path / "empty.jpg"), *arguments]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet_v2", "vgg16"])
def test_a_classifier_keeps_the_aspect(name, tmp_path, capsys, rng):
    imaging.write_image(tmp_path / "a.png", rng.integers(0, 255, (28, 40, 3)).astype(np.uint8))
    imaging.write_image(tmp_path / "line.png", np.zeros((5000, 1, 3), np.uint8))
    arguments = ["explain", str(tmp_path), "--network", name, "--weights", "none", "--keep-aspect"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "skipped 1 of 2: Cannot keep the aspect of" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["network"] == name and manifest["smallest_side"] == 224
    for file in manifest["images"][0]["classes"][0]["files"].values():
        with Image.open(tmp_path / "out" / file) as picture:
            assert picture.size == (40, 28)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["train", "--data", "nowhere", "--out", "m"], "no folder nowhere"),
        (["train", *SYNTHETIC, "--out", "m", *TINY, "--layer", "x"], "choose one of"),
        (["train", *SYNTHETIC, "--out", "m", *TINY, "--weights", "no.h5"], "No weights file no.h5"),
        (["train", *SYNTHETIC, "--out", "m", *TINY, "--alpha", "0"], "must be positive"),
        (["train", *SYNTHETIC, "--out", "m", *TINY, "--variety", "3"], "variety must lie in"),
        (["explain", "nowhere.jpg", "--out", "o"], "no file nowhere.jpg"),
        (["explain", ".", "--out", "o"], "no image file in"),
        (["explain", ".", "--out", "o", "--keep-aspect"], "--keep-aspect needs --network"),
        (["explain", ".", "--out", "o", "--keep-aspect", "--model", "m", "--top-n", "2"], "--keep-aspect needs"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("error: ") and "Traceback" not in error
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_no_model_there(photos, tmp_path, capsys):
    assert main(["explain", str(photos / "cat"), "--model", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is not a model folder" in capsys.readouterr().err


def test_a_board_needs_the_light_packages_only(tmp_path):
    heavy = ["tensorflow", "keras", "litert_quantizer", "matplotlib", "scipy", "sklearn", "tqdm"]
    block = f"import sys; sys.modules.update(dict.fromkeys({heavy})); from utils.__main__ import main; "

    def light(arguments):
        command = [sys.executable, "-c", f"{block}sys.exit(main({arguments}))"]
        return subprocess.run(command, capture_output=True, text=True, cwd=HANDS.parents[1])

    demo = ["demo", "--source", str(HANDS / "gu"), "--headless"]
    run = light(demo)
    assert run.returncode == 0 and json.loads(run.stdout.splitlines()[-1])["frames"] == 10, run.stderr
    annotate = ["annotate", str(HANDS / "gu"), "--out", str(tmp_path / "out")]
    run = light(annotate)
    assert run.returncode == 0 and run.stdout.startswith("kept "), run.stderr
    model = write_detector(tmp_path / "detector")
    detect = ["anomaly", "explain", str(HANDS / "gu"), "--model", str(model), "--out", str(tmp_path / "found")]
    run = light(detect)
    assert run.returncode == 0 and len(run.stdout.splitlines()) == 10, run.stderr
    explain = ["explain", str(HANDS / "gu"), "--out", "nowhere"]
    run = light(explain)
    assert run.returncode == 2 and run.stderr.startswith("error: this command needs the package")
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("backend", ["torch", "jax", "numpy"])
def test_a_keras_that_computes_with_something_else(backend, tmp_path):
    """Advice to install what it would compute with would lead nowhere."""
    arguments = ["explain", str(HANDS / "gu" / "00.jpg"), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "utils"]
    environment = os.environ | {"KERAS_BACKEND": backend}
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=HANDS.parents[1], env=environment)
    sentence = f"error: KERAS_BACKEND is {backend}, but this project computes with TensorFlow: unset that variable.\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", sentence) and not (tmp_path / "out").exists()
    demo = [*command, "demo", "--headless", "--source", str(HANDS / "gu")]  # it needs no Keras
    assert subprocess.run(demo, capture_output=True, cwd=HANDS.parents[1], env=environment).returncode == 0


def test_a_settings_file_of_keras_does_not_choose_the_backend(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    code = "from utils.repro import keras; print(keras.backend.backend())"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=HANDS.parents[1],
        env=environment | {"KERAS_HOME": str(tmp_path)},
    )
    assert run.stdout == "tensorflow\n", run.stderr
