"""The live demo: its sources, pictures, keys and files, without a screen, a camera or TensorFlow."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils import heatmap, imaging
from utils.commands import demo, drawing, sources
from utils.runtime import Explanation

MODEL = Path(__file__).resolve().parents[2] / "data" / "models" / "janken" / "explainer.tflite"
NAMES = ("bright", "dark", "none")
RATES = (30.0, 1.5)


def explanation(label, height, width):
    """A map that is hot in the middle; nothing for none."""
    heat = np.zeros((1, height, width), np.float32)
    if NAMES[label] != "none":
        heat[0, height // 4 : height // 2, width // 4 : width // 2] = 1
    scores = np.full((1, 3), 0.1, np.float32)
    scores[0, label] = 0.75
    return Explanation(np.array([label]), NAMES, scores, heat, np.array([0]), np.ones((1, 1), np.float32))


class FakeExplainer:
    """Calls reddish frames dark, others bright; keeps the mean red of each."""

    network_seconds = 0.0015

    def __init__(self, *_):
        self.reds = []

    def explain(self, image):
        imaging.check_images(image)
        self.reds.append(image[..., 0].mean())
        return explanation(int(self.reds[-1] < 100), *image.shape[:2])


class FakeCapture:
    """Gives what a list holds: frames in BGR, None for an empty one, False for a failure, or an exception to raise."""

    def __init__(self, items, fps=25.0, seconds=0.0):
        self.items, self.fps, self.seconds, self.is_released = list(items), fps, seconds, False

    def isOpened(self):
        return True

    def get(self, prop):
        return self.fps if prop == cv2.CAP_PROP_FPS else 0.0

    def read(self):
        time.sleep(self.seconds)
        item = self.items.pop(0) if self.items else False
        if isinstance(item, Exception):
            raise item
        return item is not False, None if item is False else item

    def release(self):
        self.is_released = True


class FakeWindow:
    """Presses the keys of a list, one a picture shown, and keeps the pictures."""

    def __init__(self, keys=""):
        self.keys, self.pictures = list(keys), []

    def show(self, picture, milliseconds):
        self.pictures.append(picture)
        return self.keys.pop(0) if self.keys else ""

    def close(self):
        pass


def frame(red, height=48, width=64):
    return np.full((height, width, 3), (0, 0, red), np.uint8)  # BGR, as a capture gives it


@pytest.fixture
def explainer(monkeypatch):
    """The one that `run` will load."""
    fake = FakeExplainer()
    monkeypatch.setattr(demo, "Explainer", lambda *_, **__: fake)
    return fake


@pytest.fixture
def camera(monkeypatch):
    """A function that plugs in a fake camera."""

    def plug(*arguments, **keywords):
        capture = FakeCapture(*arguments, **keywords)
        monkeypatch.setattr(cv2, "VideoCapture", lambda _: capture)
        return capture

    monkeypatch.setattr(sources, "RETRY_SECONDS", 0.001)
    return plug


@pytest.fixture
def clock(monkeypatch):
    """The time of the meter, which stands still: a list of one number, in seconds."""
    now = [5.0]
    monkeypatch.setattr(demo.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def video(tmp_path):
    """40 frames that become redder; the path."""
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12.0, (64, 48))
    for i in range(40):
        writer.write(frame(6 * i))
    writer.release()
    return path


@pytest.fixture
def photos(tmp_path):
    """Three images and two that are none; the folder."""
    for i, size in enumerate([(48, 64), (30, 20), (48, 64)]):
        imaging.write_image(tmp_path / f"photo_{i}.png", np.full((*size, 3), 120, np.uint8))
    (tmp_path / "photo_1b.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    return tmp_path


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# Sources


def test_every_frame_of_a_video_in_order_and_no_window(video, explainer, capsys, monkeypatch):
    for name in ("imshow", "namedWindow", "waitKey"):
        monkeypatch.delattr(cv2, name)
    demo.run(str(video), "m", headless=True)
    assert len(explainer.reds) == 40 and (np.diff(explainer.reds) > 2).all()
    (line,) = lines(capsys)
    assert line.pop("fps") > 0 and line.pop("seconds") >= 0
    assert line == {
        "frames": 40, "skipped": 0, "network_ms": 1.5, "label": "bright", "score": 0.75, "box": [16, 12, 32, 24],
    }


def test_a_line_a_second(video, explainer, clock, capsys, monkeypatch):
    explain = explainer.explain

    def slow(image):
        clock[0] += 0.3
        return explain(image)

    monkeypatch.setattr(explainer, "explain", slow)
    demo.run(str(video), "m", headless=True)
    seen = [(line["frames"], line["seconds"]) for line in lines(capsys)]
    assert seen == [(i, pytest.approx(0.3 * i)) for i in (*range(4, 41, 4), 40)]  # and one at the end


def test_a_camera_gives_the_newest_frame():
    due, stored = threading.Semaphore(0), threading.Semaphore(0)

    def read():
        for i in range(40):
            due.acquire(timeout=60)
            yield frame(i)
            stored.release()

    frames = sources.Source(read(), 30.0, live=True)
    for newest in (9, 19, 29):
        due.release(10)
        assert all(stored.acquire(timeout=60) for _ in range(10))
        assert next(iter(frames))[0, 0, 2] == newest
    due.release()
    frames.close()


def test_an_unplugged_camera_ends_with_a_sentence_and_keeps_what_was_done(explainer, camera, tmp_path, capsys):
    capture = camera([frame(9), False, frame(9), cv2.error("x"), frame(9), *[RuntimeError("gone")] * 99], seconds=0.01)
    with pytest.raises(ConnectionError, match="still connected"):
        demo.run("0", "m", save=tmp_path / "out.mp4", headless=True)
    assert 1 <= len(explainer.reds) == lines(capsys)[-1]["frames"] <= 3 and capture.is_released
    assert len(capture.items) == 99 - sources.CAMERA_ATTEMPTS
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_empty_frames_are_skipped_and_counted(explainer, camera, capsys):
    camera([frame(9), None, frame(9), np.empty((0, 0, 3), np.uint8), frame(9)], seconds=0.01)
    with pytest.raises(ConnectionError):
        demo.run("0", "m", headless=True)
    last = lines(capsys)[-1]
    assert 1 <= last["frames"] <= 3 and last["skipped"] == 2


def test_broken_images_among_good_ones(photos, explainer, capsys):
    demo.run(str(photos), "m", headless=True)
    captured = capsys.readouterr()
    assert len(explainer.reds) == 3 and json.loads(captured.out.splitlines()[-1])["skipped"] == 2
    assert "photo_1b.png" in captured.err and "empty.jpg" in captured.err


def test_a_single_image(photos, explainer, capsys):
    demo.run(str(photos / "photo_0.png"), "m", headless=True)
    assert [line["frames"] for line in lines(capsys)] == [1]


@pytest.mark.parametrize(
    "source, error, sentence",
    [
        ("nowhere.mp4", FileNotFoundError, "no file nowhere.mp4"),
        ("empty", FileNotFoundError, "no image file in empty"),
        ("notes.txt", ValueError, "neither a video nor an image"),
        ("notes.mp4", ValueError, "neither a video nor an image"),
        ("zero.avi", ValueError, "neither a video nor an image"),
        ("notes.png", ValueError, "not an image"),
        ("broken", ValueError, "Nothing in broken can be read"),
        ("7", FileNotFoundError, "Cannot open camera 7"),
        ("99999999999", FileNotFoundError, "Cannot open camera 99999999999"),
    ],
)
def test_a_bad_source_is_one_sentence(source, error, sentence, tmp_path, explainer, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("notes.txt", "notes.mp4", "notes.png", "broken/1.png", "broken/2.png"):
        (tmp_path / name).write_text("a line of text\n" * 100)
    (tmp_path / "zero.avi").touch()
    with pytest.raises(error, match=sentence):
        demo.run(source, "m", headless=True, save="out.mp4")
    captured = capfd.readouterr()
    assert captured.out == "" and all(line.startswith("skipped: ") for line in captured.err.splitlines())
    assert not list(tmp_path.glob("*out*"))


# Pictures


@pytest.mark.parametrize("size", [(240, 320), (720, 1280), (96, 96), (400, 90)])
@pytest.mark.parametrize("mode", demo.MODES)
@pytest.mark.parametrize("background", [0, 255])
def test_text_is_inside_readable_and_does_not_overlap(size, mode, background, monkeypatch):
    plates, texts = [], []
    rectangle, put_text = cv2.rectangle, cv2.putText

    def note_plate(picture, corner, opposite, colour, thickness):
        if thickness == cv2.FILLED:
            plates.append((*corner, *opposite))
        return rectangle(picture, corner, opposite, colour, thickness)

    def note_text(picture, text, *arguments):
        before = picture.copy()
        put_text(picture, text, *arguments)
        ys, xs = np.nonzero((picture != before).any(axis=-1))
        texts.append((xs.min(), ys.min(), xs.max(), ys.max()))

    monkeypatch.setattr(cv2, "rectangle", note_plate)
    monkeypatch.setattr(cv2, "putText", note_text)
    picture = np.full((*size, 3), background, np.uint8)
    demo.draw_result(picture, explanation(0, *size), mode, rates=(123.4, 123.4))
    assert (picture == background).all()  # a copy was drawn on
    for (x0, y0, x1, y1), text in zip(plates, texts, strict=True):
        assert 0 <= x0 <= text[0] and 0 <= y0 <= text[1] and text[2] <= x1 < size[1] and text[3] <= y1 < size[0]
    status, label = plates
    assert label[3] < status[1]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5, 3)])
@pytest.mark.parametrize("mode", demo.MODES)
def test_the_smallest_frames_can_be_drawn_on(size, mode):
    picture = demo.draw_result(np.zeros((*size, 3), np.uint8), explanation(0, *size), mode, rates=RATES)
    assert picture.shape == (*size, 3) and picture.dtype == np.uint8


def test_heat_map_box_and_none(rng):
    image = rng.integers(0, 255, (240, 320, 3)).astype(np.uint8)
    middle = np.s_[130:200, 170:]  # where there is neither text nor heat
    result = explanation(0, 240, 320)
    heat, box = (demo.draw_result(image, result, mode, rates=RATES) for mode in demo.MODES)
    np.testing.assert_array_equal(heat[middle], heatmap.overlay(image, result.heatmaps[0])[middle])
    np.testing.assert_array_equal(box[middle], image[middle])
    assert (box[70:110, 80] == drawing.YELLOW).all() and (box[119, 90:150] == drawing.YELLOW).all()
    heat, box = (demo.draw_result(image, explanation(2, 240, 320), mode, rates=RATES) for mode in demo.MODES)
    np.testing.assert_array_equal(heat, box)  # only the text
    np.testing.assert_array_equal(box[60:200], image[60:200])


# Keys


def test_keys():
    state = demo.State("heatmap")
    press = demo.press
    assert press(state, "") == state and press(state, "x") == state
    assert press(state, "s").mode == "box" and press(press(state, "s"), "s") == state
    paused = press(state, "p")
    assert paused.paused and press(paused, "") == paused and press(paused, "p") == state
    assert press(paused, "n") == state and press(paused, "s").paused and press(paused, "w").paused
    assert press(state, "q").done and press(state, demo.ESCAPE).done
    assert press(state, "w").writes and press(press(state, "w"), "") == state


def test_keys_in_the_loop(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo_1.png").write_text("somebody's")
    frames = sources.Source(sources.read_capture(FakeCapture([frame(20 * i) for i in range(12)]), False), 25.0)
    window, explainer = FakeWindow(["", "p", "", "w", "s", "w", "p", "", "q"]), FakeExplainer()
    assert demo.explain_all(frames, explainer, window=window) == 4
    frames.close()
    pictures = window.pictures
    assert all(picture is pictures[1] for picture in pictures[1:5])  # paused
    written = [imaging.read_image(tmp_path / f"demo_{n}.png") for n in (2, 3)]
    np.testing.assert_array_equal(written[0], pictures[3])
    np.testing.assert_array_equal(written[1], pictures[5])
    assert (written[0] != written[1]).any()  # s, while it was paused
    assert (tmp_path / "demo_1.png").read_text() == "somebody's"
    captured = capsys.readouterr()
    assert captured.out == "" and "wrote demo_2.png" in captured.err


def test_the_window_tells_keys_and_that_it_was_closed(monkeypatch, capsys):
    shown, sizes, keys, visible = [], [], [ord("S"), -1, ord("q"), 27, -1, -1], [1.0, 1.0, 1.0, 1.0, 0.0]
    for name in ("namedWindow", "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "resizeWindow", lambda _, *size: sizes.append(size))
    monkeypatch.setattr(cv2, "waitKey", lambda _: keys.pop(0))

    def get_property(*_):
        if not visible:
            raise cv2.error("NULL guiReceiver")  # Qt, after the last window
        return visible.pop(0)

    monkeypatch.setattr(cv2, "getWindowProperty", get_property)
    window = demo.Window()
    picture = np.full((1440, 2000, 3), (255, 0, 0), np.uint8)
    assert [window.show(picture, 1) for _ in range(6)] == ["s", "", "q", *[demo.ESCAPE] * 3]
    assert sizes == [(1000, 720)] and tuple(shown[0][0, 0]) == (0, 0, 255)
    assert "s heat map or box" in capsys.readouterr().err


def test_images_wait_for_a_key(photos):
    window, explainer = FakeWindow(["", "", "n", "s", "", "n", "q"]), FakeExplainer()
    frames = sources.open_source(str(photos))
    assert demo.explain_all(frames, explainer, window=window) == 3
    frames.close()
    shapes = [picture.shape[:2] for picture in window.pictures]
    assert shapes == [(48, 64)] * 3 + [(30, 20)] * 3 + [(48, 64)]


def test_a_pause_does_not_count(clock):
    meter = demo.Meter()
    clock[0] += 20.1
    meter.exclude(20.0)
    meter.count(0.002)
    assert meter.seconds() == pytest.approx(0.1) and meter.rates() == pytest.approx((10, 2))


# Files


def test_the_saved_video_has_every_frame_and_the_rate(video, explainer, tmp_path, capsys):
    for name in ("out.mp4", "out.AVI"):
        demo.run(str(video), "m", mode="box", save=tmp_path / name, headless=True)
        saved = cv2.VideoCapture(str(tmp_path / name))
        assert saved.get(cv2.CAP_PROP_FPS) == pytest.approx(12, abs=0.1)
        pictures = []
        while (read := saved.read())[0]:
            pictures.append(read[1])
        assert len(pictures) == 40 and pictures[0].shape == (48, 64, 3)
        assert pictures[-1][40, 60].argmax() == 2 and pictures[-1][40, 60, 2] > 200  # red is still red
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.AVI", "out.mp4", "video.avi"]


def test_images_of_several_sizes_make_one_video(photos, explainer, capsys):
    demo.run(str(photos), "m", save=photos / "out.mp4", headless=True)
    saved = cv2.VideoCapture(str(photos / "out.mp4"))
    assert (saved.get(cv2.CAP_PROP_FRAME_COUNT), saved.get(cv2.CAP_PROP_FRAME_WIDTH)) == (3, 64)


def test_a_live_recording_runs_in_real_time(tmp_path):
    recorder = demo.Recorder(tmp_path / "out.avi", fps=10.0, live=True)
    for seconds in (5.0, 5.05, 5.11, 6.0):
        recorder.write(frame(9), seconds)
    recorder.close()
    assert cv2.VideoCapture(str(tmp_path / "out.avi")).get(cv2.CAP_PROP_FRAME_COUNT) == 11


def test_ctrl_c_keeps_the_video_so_far(video, explainer, tmp_path, monkeypatch, capsys):
    explain = explainer.explain

    def interrupted(image):
        if len(explainer.reds) == 10:
            raise KeyboardInterrupt
        return explain(image)

    monkeypatch.setattr(explainer, "explain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run(str(video), "m", save=tmp_path / "out.mp4", headless=True)
    assert cv2.VideoCapture(str(tmp_path / "out.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 10
    assert lines(capsys)[-1]["frames"] == 10


@pytest.mark.parametrize(
    "save, error, sentence",
    [
        ("out.gif", ValueError, "must end in .mp4 or .avi"),
        ("nowhere/out.mp4", OSError, "Cannot write the video"),
        ("video.avi/out.mp4", OSError, "Cannot write the video"),
        ("folder.mp4", OSError, "Cannot write the video"),
        ("video.avi", ValueError, "is the source itself"),
    ],
)
def test_a_video_that_cannot_be_saved(save, error, sentence, video, explainer, tmp_path, capfd):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(error, match=sentence):
        demo.run(str(video), "m", save=tmp_path / save, headless=True)
    assert not explainer.reds and capfd.readouterr() == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.mp4", "video.avi"]


def test_an_unknown_mode():
    with pytest.raises(ValueError, match="one of heatmap, box"):
        demo.run("0", "m", mode="mask", headless=True)


# The real thing


@pytest.mark.parametrize("display", [None, ":77"])
def test_no_display_is_one_sentence(display, video, explainer, monkeypatch):
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", display)  # where Qt ends the process
    with pytest.raises(OSError, match="Try --headless"):
        demo.run(str(video), "m")
    assert not explainer.reds


def test_the_shipped_explainer_without_tensorflow(video, tmp_path):
    code = (
        "import sys; from utils.commands import demo\n"
        "demo.run(sys.argv[1], sys.argv[2], save=sys.argv[3], headless=True)\n"
        "assert not {'tensorflow', 'keras', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    arguments = [str(video), str(MODEL), str(tmp_path / "out.mp4")]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout.splitlines()[-1])["frames"] == 40
    assert cv2.VideoCapture(str(tmp_path / "out.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 40
