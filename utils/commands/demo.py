"""``demo``: what a camera, a video or images show, explained in a window or as JSON lines. Needs no TensorFlow.

`sources` reads in a thread; the main thread explains, shows and records. Pictures are uint8 RGB (H, W, 3).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from utils import heatmap, imaging
from utils.commands import advice, common, drawing, sources, web
from utils.runtime import AnomalyResult, Explainer, Explanation, silent_stderr

MODES = ("heatmap", "box")
KEYS = "keys: s heat map or box, p pause, w write the picture, q or Esc quit; at an image any other key shows the next"
TITLE, ESCAPE = "Faster-Grad-CAM", "\x1b"
LARGEST_WINDOW = (1280, 720)  # width, height in pixels; bigger pictures are shown smaller
PAUSED_MS = 30  # between two looks at the keyboard
CODECS = {".mp4": ("mp4v", "avc1"), ".avi": ("MJPG",)}  # the first that this OpenCV has
RECENT_FRAMES = 30  # the rates are means over these


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_examples(parser, "--source clip.mp4 --mode box --save out.mp4", "--web --int8")
    common.add_shared(parser, ["--model", "--int8", "--threads"])
    parser.add_argument(
        "--source", default="0",
        help="number of a camera, address of a stream (rtsp://, http://), or a video, an image, a folder of images",
    )
    parser.add_argument(
        "--mode", choices=MODES, default=MODES[0],
        help="drawn first; keys in the window: s heat map or box, p pause, w write the picture, q quit",
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the annotated frames as .mp4 or .avi")
    group = parser.add_argument_group("instead of a window")
    shown = group.add_mutually_exclusive_group()
    shown.add_argument("--headless", action="store_true", help="print one JSON line per second")
    web.add_arguments(shown, group)


def main(options) -> int:
    if options.web or options.export:
        return web.main(options)
    run(
        options.source, common.model_file(options), mode=options.mode, save=options.save, headless=options.headless,
        num_threads=options.threads,
    )
    return 0


def run(
    source: str, model_file: str | os.PathLike, *, mode: str = "heatmap", save: str | os.PathLike | None = None,
    headless: bool = False, num_threads: int = 2,
) -> None:
    """Explain what the source shows until it ends or a person ends it.

    Args:
        source: number of a camera, address of a network stream, or path of a video, an image or a folder of images.
        model_file: an ``explainer.tflite`` or ``explainer_int8.tflite``.
        mode: what is drawn first, "heatmap" or "box".
        save: .mp4 or .avi of the annotated frames; it appears at the end, also if that is an error or Ctrl-C.
        headless: no window, but one JSON line per second on stdout and one at the end.
        num_threads: CPU threads of the network.

    Raises:
        FileNotFoundError: there is no such file or camera, or no image in the folder.
        ValueError: nothing in the source can be read, or ``save`` has another suffix or is the source.
        OSError: no window can be opened, ``save`` cannot be written, or the camera is gone.
    """
    if mode not in MODES:
        raise ValueError(f"The mode must be one of {', '.join(MODES)}. Received: {mode!r}")
    if save and Path(save).resolve() == Path(source).resolve():
        raise ValueError(f"{save} is the source itself; save the video under another name.")
    if not headless:
        check_window()
    with ExitStack() as stack:
        frames = stack.enter_context(closing(sources.open_source(source)))
        recorder = stack.enter_context(closing(Recorder(Path(save), frames.fps, frames.live))) if save else None
        explainer = Explainer(model_file, num_threads=num_threads)
        window = None if headless else stack.enter_context(closing(Window()))
        if not explain_all(frames, explainer, mode=mode, recorder=recorder, window=window):
            raise ValueError(f"Nothing in {source} can be read as a picture.")


def explain_all(frames, explainer, *, mode="heatmap", recorder=None, window=None) -> int:
    """Explain the frames of a `sources.Source`, record and show them, or report. Returns their number."""
    state = State(mode)
    meter, votes, result = Meter(), advice.Votes(), None
    next_report = 1.0  # seconds
    try:
        for frame in frames:
            result = explainer.explain(frame)
            meter.count(explainer.network_seconds)
            text = _answer(frame, result, None if frames.stills else votes, meter)
            draw = partial(draw_result, frame, result, rates=meter.rates(), text=text)
            picture = draw(state.mode) if recorder or window else None  # what nobody sees is not drawn
            if recorder:
                recorder.write(picture, meter.seconds())
            if window:
                state = look(window, draw, picture, state=replace(state, paused=frames.stills), meter=meter)
            elif meter.seconds() >= next_report:
                print(report(result, meter, frames.skipped), flush=True)
                next_report = meter.seconds() + 1.0
            if state.done:
                break
    finally:
        if result and not window:
            print(report(result, meter, frames.skipped), flush=True)
    return meter.frames


def _answer(frame, result, votes, meter):
    """The last frames' answer; without votes, and of an anomaly, that of this one."""
    if votes is None or isinstance(result, AnomalyResult):
        return _own_answer(result)
    return advice.answer(result, frame, votes, meter.seconds())


def _own_answer(result):
    """The answer to one picture alone."""
    if isinstance(result, AnomalyResult):
        return f"{result.names[0]} {result.scores[0]:.2f}, threshold 1"
    # A cosine alone says little: only how far it is above the others counts.
    return f"{result.names[0]} {result.probabilities().max():.2f}"


def find_box(result: Explanation | AnomalyResult) -> heatmap.Corners | None:
    """The box of the first image's heat; of an anomaly, of what is hotter than the threshold."""
    heat = result.heatmaps[0]
    if isinstance(result, AnomalyResult):
        return heatmap.box(np.where(heat > 0.5, heat, 0), threshold=0)
    return heatmap.box(heat)


def report(result: Explanation | AnomalyResult, meter: "Meter", skipped: int) -> str:
    """JSON of the last frame and the run so far; ``box`` is null or (x0, y0, x1, y1) in pixels, half open."""
    fps, network_ms = meter.rates()
    return json.dumps({
        "frames": meter.frames, "skipped": skipped, "seconds": round(meter.seconds(), 2), "fps": round(fps, 1),
        "network_ms": round(network_ms, 2), "label": result.names[0], "score": round(float(result.scores[0].max()), 3),
        "box": find_box(result),
    })


class Meter:
    """Counts frames and their time, without the time that a person took."""

    def __init__(self):
        self.frames = 0
        self._start = time.perf_counter()
        self._recent = deque([(0.0, 0.0)], maxlen=RECENT_FRAMES + 1)  # end of each frame, seconds of its network

    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self._start

    def count(self, network_seconds: float) -> None:
        """One more frame is explained."""
        self.frames += 1
        self._recent.append((self.seconds(), network_seconds))

    def exclude(self, seconds: float) -> None:
        """This time was spent waiting."""
        self._start += seconds

    def rates(self) -> tuple[float, float]:
        """Frames per second from end to end, milliseconds of the network alone."""
        ends, network = np.transpose(self._recent)
        return (len(ends) - 1) / (ends[-1] - ends[0]), 1000 * network[1:].mean()


def draw_result(
    frame: np.ndarray, result: Explanation | AnomalyResult, mode: str, *, rates: tuple[float, float], text: str = ""
) -> np.ndarray:
    """Draw the text (label and confidence or score), rates and, unless it is *none*, heat map or box on a copy."""
    heat = result.heatmaps[0]
    corner = (0, 0)
    picture = heatmap.overlay(frame, heat) if mode == "heatmap" and heat.any() else frame.copy()
    if mode == "box" and (box := find_box(result)):
        corner = box[:2]
        drawing.draw_box(picture, box)
    bottom = len(frame)
    status = f"{rates[0]:.0f} FPS, network {rates[1]:.1f} ms"
    top = drawing.draw_text(picture, status, corner=(0, bottom), lowest=bottom)
    drawing.draw_text(picture, text or _own_answer(result), corner=corner, lowest=top)
    return picture


@dataclass(frozen=True)
class State:
    """What the keys have set; ``writes`` and ``done`` are wishes."""

    mode: str
    paused: bool = False
    writes: bool = False
    done: bool = False


def press(state: State, key: str) -> State:
    """The state after a key, "" for none. A key without a meaning ends a pause."""
    state = replace(state, writes=key == "w")
    if key == "s":
        return replace(state, mode=MODES[1 - MODES.index(state.mode)])
    if key in ("q", ESCAPE):
        return replace(state, done=True)
    return state if key in ("", "w") else replace(state, paused=key == "p" and not state.paused)


def look(window, draw: Callable, picture: np.ndarray, *, state: State, meter: Meter) -> State:
    """Show a picture and obey the keys, for as long as the state is paused; ``draw(mode)`` makes it anew."""
    while True:
        start = time.perf_counter()
        before = state
        state = press(before, window.show(picture, PAUSED_MS if before.paused else 1))
        if before.paused:
            meter.exclude(time.perf_counter() - start)
        if state.writes:
            write_picture(picture)
        if state.done or not state.paused:
            return state
        if state.mode != before.mode:
            picture = draw(state.mode)


def write_picture(picture: np.ndarray) -> None:
    """Write demo_1.png, or the first of demo_2.png, ... that is not there yet."""
    files = (Path(f"demo_{n}.png") for n in count(1))
    path = next(file for file in files if not file.exists())
    imaging.write_image(path, picture)
    print(f"wrote {path}", file=sys.stderr)


def check_window() -> None:
    """Raise OSError where no window can be opened."""
    blind = sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    # In a process of its own, because Qt aborts where it does not reach the display.
    trial = [sys.executable, "-c", "import cv2; cv2.namedWindow('trial')"]
    if blind or subprocess.run(trial, capture_output=True).returncode:
        raise OSError("Cannot open a window: no display, or OpenCV was built without GUI support. Try --headless.")


class Window:
    """The one place that touches the screen."""

    def __init__(self):
        self._shape = None
        with silent_stderr():  # Qt misses its fonts
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        print(KEYS, file=sys.stderr)

    def show(self, picture: np.ndarray, milliseconds: int) -> str:
        """Show a picture for so long; returns the key pressed, "" for none, Esc if the window was closed."""
        if picture.shape != self._shape:
            self._shape = height, width, _ = picture.shape
            scale = min(1.0, LARGEST_WINDOW[0] / width, LARGEST_WINDOW[1] / height)
            cv2.resizeWindow(TITLE, max(1, round(scale * width)), max(1, round(scale * height)))
        cv2.imshow(TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(milliseconds)
        try:
            is_closed = cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error:  # Qt knows nothing of a window that is gone
            is_closed = True
        if is_closed:
            return ESCAPE
        return chr(key & 0xFF).lower() if key >= 0 else ""

    def close(self) -> None:
        """Close the window, if it is still open."""
        cv2.destroyAllWindows()


class Recorder:
    """A video file, written under another name; it appears when it is closed, if there is a frame in it."""

    def __init__(self, path: Path, fps: float, live: bool):
        """Try whether such a video can be written. If live, frames are left out or repeated to run in real time.

        Raises:
            ValueError: the path does not end in .mp4 or .avi.
            OSError: it cannot be written there.
        """
        if path.suffix.lower() not in CODECS:
            raise ValueError(f"A video file must end in {' or '.join(CODECS)}. Received: {path}")
        self._path = path
        self._draft = path.with_name(f".{imaging.file_name(path.stem, 240)}.part{path.suffix.lower()}")
        self._fps, self._live = fps, live
        self._written = 0
        self._writer = self._open((240, 320))  # any size will do
        self.close()

    def write(self, picture: np.ndarray, seconds: float) -> None:
        """Append a picture of this time, resized to the first one's size."""
        if not self._writer:
            self._size, self._start = picture.shape[:2], seconds
            self._writer = self._open(self._size)
        bgr = cv2.cvtColor(imaging.resize(picture[None], *self._size)[0], cv2.COLOR_RGB2BGR)
        due = 1 + int((seconds - self._start) * self._fps) if self._live else self._written + 1
        for _ in range(self._written, due):
            self._writer.write(bgr)
        self._written = max(self._written, due)

    def close(self) -> None:
        """End the file."""
        if self._writer:
            self._writer.release()
            self._writer = None
        if self._written:
            os.replace(self._draft, self._path)
        else:
            self._draft.unlink(missing_ok=True)

    def _open(self, size):
        file = sources.for_opencv(self._draft)
        for codec in () if self._path.is_dir() else CODECS[self._path.suffix.lower()]:
            with silent_stderr():
                writer = cv2.VideoWriter(file, cv2.VideoWriter_fourcc(*codec), self._fps, size[::-1])
            if writer.isOpened():
                return writer
        raise OSError(f"Cannot write the video {self._path}: no such folder, no permission, or no codec for it.")
