"""Odd names and odd files, in all combinations that time allows: no command breaks, and none forgets an image.

200 names by 41 kinds of files by six commands are sampled with fixed seeds. Whether a file can be read is written down
beside its kind, not asked of the code under test.
"""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageCms
from samples import write_detector

from utils.__main__ import main
from utils.commands.common import DEFAULT_MODEL
from utils.imaging import IMAGE_SUFFIXES

HANDS = DEFAULT_MODEL.parents[1] / "hands"
WORDS = (
    "photo", "写真", "写真　１", "фото", "צילום", "صورة", "ก็", "é", "e\u0301", "👨‍👩‍👧", "🫨", "ß", "ǅ", "\u202egpj",
    "\ufeffbom", "\ue000", "\ufffe", "\u2028", "\u2029", "\u200b", "\xa0", "\xad", "con", "nul", "-rf", "--out", "~",
    "*", "?", "a:b", "a|b", "a<b>", "a&b", "&amp;", "]]>", "a;b", "$HOME", "`ls`", "a'b", 'a"b', "a\\b", "100%", "%s%n",
    "%03d", "{name}", "#1", "a,b", "=1+1", "@x", "+x", "a\tb", "a\nb", "\n", "a\r\nb", "\x1b[31m", " a", "a ", "a  b",
    "a.b.c", "..a", "a..", "0", "007", "1e9", "null", "true", "None", "a" * 60, "a" * 120, "a" * 181, "a" * 200,
    "a" * 237, "a" * 245, "a" * 251, "é" * 120, "写" * 80, "👩" * 60, "a\udcff" * 100,
)
CONTROLS = [f"c{chr(n)}d" for n in (*range(1, 32), *range(127, 160))]
BYTES = [os.fsdecode(b"b" + bytes([n]) + b"\xe9") for n in range(128, 256, 2)]
NAMES = list(dict.fromkeys([*WORDS, *CONTROLS, *BYTES]))
COMMANDS = {  # name: words before the images, words behind, files that it gets in the default run
    "annotate": (["annotate"], [], 150),
    "annotate --int8": (["annotate"], ["--int8", "--format", "voc"], 150),
    "explain": (["explain"], [], 40),
    "explain --method": (["explain"], ["--method", "hirescam", "--layer", "block_13_expand_relu"], 6),
    "anomaly explain": (["anomaly", "explain"], [], 150),
    "demo": (["demo", "--headless", "--source"], [], 150),
}


def photo(width=48, height=40, mode="RGB"):
    """A hand, because only those end in the data set of `annotate`."""
    with Image.open(HANDS / "pa" / "00.jpg") as hand:
        return hand.convert("RGB").resize((width, height)).convert(mode)


def encoded(image, file_format, **settings):
    content = io.BytesIO()
    image.save(content, file_format, **settings)
    return content.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(), "JPEG", exif=exif)


def sixteen_bits():
    return Image.fromarray(np.asarray(photo(mode="L")).astype(np.uint16) * 257)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
JPEG, PNG = encoded(photo(), "JPEG"), encoded(photo(), "PNG")
ANIMATION = {"save_all": True, "append_images": [photo(mode="L").convert("RGB")], "duration": 100}
GOOD = {  # kind: suffix and content
    "jpeg": (".jpg", JPEG), "grey jpeg": (".jpeg", encoded(photo(mode="L"), "JPEG")),
    "cmyk": (".jpg", encoded(photo(mode="CMYK"), "JPEG")), "icc": (".jpg", encoded(photo(), "JPEG", icc_profile=SRGB)),
    "progressive": (".JPG", encoded(photo(), "JPEG", progressive=True)),
    "turned 3": (".jpg", turned(3)), "turned 6": (".jpg", turned(6)), "turned 0": (".jpg", turned(0)),
    "png": (".png", PNG), "rgba": (".png", encoded(photo(mode="RGBA"), "PNG")),
    "grey and alpha": (".png", encoded(photo(mode="LA"), "PNG")), "one bit": (".png", encoded(photo(mode="1"), "PNG")),
    "palette": (".png", encoded(photo(mode="P"), "PNG")),
    "transparent palette": (".png", encoded(photo(mode="P"), "PNG", transparency=0)),
    "16 bits": (".png", encoded(sixteen_bits(), "PNG")), "bmp": (".bmp", encoded(photo(), "BMP")),
    "gif": (".gif", encoded(photo(), "GIF")), "animated gif": (".gif", encoded(photo(), "GIF", **ANIMATION)),
    "animated webp": (".webp", encoded(photo(), "WEBP", **ANIMATION)), "webp": (".webp", encoded(photo(), "WEBP")),
    "tiff": (".tif", encoded(photo(), "TIFF")), "16-bit tiff": (".tiff", encoded(sixteen_bits(), "TIFF")),
    "cmyk tiff": (".tif", encoded(photo(mode="CMYK"), "TIFF")), "ppm": (".ppm", encoded(photo(), "PPM")),
    "pgm": (".pgm", encoded(photo(mode="L"), "PPM")), "1x1": (".png", encoded(photo(1, 1), "PNG")),
    "1x500": (".png", encoded(photo(1, 500), "PNG")), "500x1": (".jpg", encoded(photo(500, 1), "JPEG")),
    "png named jpg": (".jpg", PNG), "jpeg named tif": (".TIF", JPEG), "jpeg with a tail": (".jpg", JPEG + b"\0" * 99),
}
BAD = {
    "empty": (".jpg", b""), "text": (".png", b"not an image\n"), "truncated jpeg": (".jpg", JPEG[: len(JPEG) // 2]),
    "truncated png": (".png", PNG[: len(PNG) // 2]), "header only": (".png", PNG[:33]), "zeros": (".bmp", bytes(999)),
    "floats": (".tif", encoded(photo(mode="F"), "TIFF")), "svg": (".png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
}
LINKS = ("folder", "broken link", "pipe", "link to itself")
KINDS = [*GOOD, *BAD, *LINKS]


def make(folder, seed, n_files):
    """Files of odd names and kinds in a folder of an odd name; returns {file: whether it can be read}."""
    rng = np.random.default_rng(seed)
    files = {}
    names, kinds = rng.permutation(np.array(NAMES, object)), rng.permutation(np.resize(KINDS, 2 * n_files))
    for name, kind in zip(cycle(names), kinds, strict=False):
        suffix, content = (GOOD | BAD).get(kind, (".jpg", None))
        stem = name
        while len(os.fsencode(stem + suffix)) > 255:
            stem = stem[:-1]
        file = folder / (stem + suffix)
        if file in files or file.name.startswith("."):
            continue  # hidden files of a folder are not looked at
        if content is not None:
            file.write_bytes(content)
        elif kind == "folder":
            file.mkdir()
        elif kind == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to(file.name if kind == "link to itself" else "nowhere")
        files[file] = kind in GOOD
        if len(files) == n_files:
            break
    return files


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("detector"))


def check_annotated(out, files, formats):
    """Every image is in the data set, or in the table of those that are left out, with a reason."""
    n_good = sum(files.values())
    rejected = (out / "rejected.csv").read_text(encoding="utf-8")
    reasons = [row["reason"] for row in csv.DictReader(io.StringIO(rejected))]
    assert len(rejected.splitlines()) == 1 + len(reasons)
    assert sum(reason.startswith(("Cannot read", "There is no image")) for reason in reasons) == len(files) - n_good
    copies = sorted(path.name for path in (out / "images").iterdir())
    assert len(copies) + len(reasons) == len(files) and len(copies) > 0.5 * n_good
    names = (out / "ImageSets/Main/trainval.txt").read_text(encoding="utf-8").splitlines()
    assert names == [name.strip() for name in names] and sorted(names) == sorted(Path(copy).stem for copy in copies)
    for name in names:
        assert name.isprintable() or "\u3000" in name or "\xa0" in name
        assert ElementTree.parse(out / f"Annotations/{name}.xml").find("filename").text in copies
        assert "yolo" not in formats or (out / f"labels/{name}.txt").read_text()
    if "coco" in formats:
        images = json.loads((out / "coco.json").read_text(encoding="utf-8"))["images"]
        assert sorted(image["file_name"] for image in images) == copies
    journal = (out / "journal.jsonl").read_text(encoding="ascii").splitlines()
    assert len(journal) == 1 + len(files)
    for line in journal:
        json.dumps(json.loads(line), ensure_ascii=False).encode()  # no half characters in it


def check(command, out, files, printed, error):
    n_good, n_bad = sum(files.values()), len(files) - sum(files.values())
    if command.startswith("annotate"):
        return check_annotated(out, files, ["voc"] if "int8" in command else ["voc", "coco", "yolo"])
    if command == "demo":
        last = json.loads(printed.splitlines()[-1])
        assert (last["frames"], last["skipped"]) == (n_good, n_bad) and error.count("skipped: ") == n_bad
        return None
    assert len(printed.splitlines()) == n_good and (f"skipped {n_bad} of {len(files)}: " in error) == (n_bad > 0)
    assert (f"and {n_bad - 5} more\n" in error) == (n_bad > 5)
    if command == "explain --method":
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        json.dumps(manifest, ensure_ascii=False).encode()
        assert (len(manifest["images"]), len(manifest["skipped"])) == (n_good, n_bad)
        pictures = [entry["classes"][0]["files"]["hirescam"] for entry in manifest["images"]]
    else:
        pictures = [path.name for path in out.glob("*_overlay.png")]
    assert len(set(pictures)) == n_good and all((out / picture).is_file() for picture in pictures)
    if command == "anomaly explain":
        with (out / "scores.csv").open(encoding="utf-8", newline="") as table:
            assert len(list(csv.DictReader(table))) == n_good
    return None


def arguments(command, folder, out, detector):
    model = ["--model", str(detector)] if command == "anomaly explain" else []
    where = [] if command == "demo" else ["--out", str(out)]
    before, behind, _ = COMMANDS[command]
    return [*before, str(folder), *behind, *where, *model]


def trial(command, tmp_path, detector, *, seed, n_files):
    # A name that is neither UTF-8 nor one line, for the folder, too.
    folder = tmp_path / "odd\udce9\nfolder"
    folder.mkdir()
    files, out = make(folder, seed, n_files), tmp_path / "out\udce9"
    printed, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(error):
        code = main(arguments(command, folder, out, detector))
    assert code == 0 and "Traceback" not in error.getvalue(), error.getvalue()
    check(command, out, files, printed.getvalue(), error.getvalue())


def test_there_are_200_names_and_40_kinds():
    assert len(NAMES) >= 200 and len(KINDS) >= 40 and len(COMMANDS) == 6
    assert {suffix.lower() for suffix, _ in (GOOD | BAD).values()} <= IMAGE_SUFFIXES


@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_and_no_file_breaks_a_command(command, tmp_path, detector):
    trial(command, tmp_path, detector, seed=0, n_files=COMMANDS[command][2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("command", COMMANDS)
def test_more_names_and_files(command, seed, tmp_path, detector):
    trial(command, tmp_path, detector, seed=seed, n_files=60 if "--method" in command else 300)


@pytest.mark.parametrize("command", ["annotate", "demo", "anomaly explain"])
def test_a_terminal_that_knows_only_ascii(command, tmp_path, detector):
    """In a process of its own: what a terminal lacks is spelled out, and OpenCV could crash without a word."""
    folder, out = tmp_path / "odd\udce9 写真", tmp_path / "out"
    folder.mkdir()
    files = make(folder, 9, 60)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C"}
    words = [sys.executable, "-m", "utils", *arguments(command, folder, out, detector)]
    done = subprocess.run(words, capture_output=True, cwd=DEFAULT_MODEL.parents[2], env=environment)
    assert done.returncode == 0, done.stderr
    check(command, out, files, done.stdout.decode("ascii"), done.stderr.decode("ascii"))


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "b.jpg").write_bytes(JPEG)
    (tmp_path / "b.jpg").chmod(0)
    assert main(["annotate", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "Permission denied" in (tmp_path / "out" / "rejected.csv").read_text()
