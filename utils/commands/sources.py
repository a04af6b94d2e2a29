"""Frames of a camera, a network stream, a video or images, read by a thread of its own: uint8 RGB (H, W, 3)."""

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

from utils import imaging
from utils.commands import common
from utils.runtime import silent_stderr

CAMERA_ATTEMPTS, RETRY_SECONDS = 5, 0.2  # a loose plug gets one second
STREAM_ATTEMPTS, STREAM_RETRY_SECONDS = 5, 0.5  # a network stream is taken up again after 0.5, 1, 1.5, ... seconds
STEADY_SECONDS = 10.0  # a stream that lasted so long has as many attempts again
STREAM_TIMEOUTS = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 5000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 5000]
FRAMES_AHEAD = 2  # read while the network runs
CAMERA_FPS, STILLS_FPS = 30.0, 1.0  # of a saved video, where the source states no rate


def open_source(source: str) -> "Source":
    """Open a camera by its number, a network stream by its address, or a video, an image or a folder of images.

    Raises:
        ConnectionError: there is no such stream.
        FileNotFoundError: there is no such file or camera, or no image in the folder.
        ValueError: the file is neither a video nor an image.
    """
    if re.match(r"[a-zA-Z][\w+.-]+://", source):
        return open_stream(source)
    path = Path(source)
    live = source.isdecimal()
    if not live and (path.is_dir() or not path.exists() or imaging.is_image(path)):
        return Source(read_images([file for file, _ in common.find_images([path])]), STILLS_FPS, stills=True)
    error = ValueError(f"Cannot read {source}: it is neither a video nor an image.")
    if live:
        error = FileNotFoundError(f"Cannot open camera {source}: it is not connected, or another program uses it.")
    try:
        with silent_stderr():  # OpenCV tells there of each backend it tries
            capture = cv2.VideoCapture(int(source) if live else for_opencv(path))
    except (cv2.error, TypeError):  # a number beyond int32; a name that an older OpenCV does not take
        raise error from None
    # FFmpeg opens a text file as the film of a terminal.
    if not capture.isOpened() or int(capture.get(cv2.CAP_PROP_FOURCC)) == cv2.VideoWriter_fourcc(*"ansi"):
        raise error
    return Source(read_capture(capture, live), _rate(capture), live=live)


def open_stream(address: str) -> "Source":
    """Open what OpenCV reads from a network: a live stream, or a file on a server, which has an end.

    Raises:
        ConnectionError: there is none.
    """

    def connect():
        return cv2.VideoCapture(address, cv2.CAP_FFMPEG, STREAM_TIMEOUTS)

    with silent_stderr():
        capture = connect()
    if not capture.isOpened():
        raise ConnectionError(f"Cannot open {address}: there is no such stream, or its server does not answer.")
    if Path(urlsplit(address).path).suffix.lower() in imaging.IMAGE_SUFFIXES:
        return Source(read_capture(capture, False), STILLS_FPS, stills=True)
    if capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
        return Source(read_capture(capture, False), _rate(capture))
    return Source(read_stream(capture, connect, address), _rate(capture), live=True)


def for_opencv(path: Path) -> str | bytes:
    """A file's name as OpenCV takes it: bytes, if it is not Unicode."""
    return str(path) if imaging.printable(path) == str(path) else os.fsencode(path)


def _rate(capture):
    """Frames per second."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 1 <= fps <= 1000 else CAMERA_FPS  # some state 0, NaN or the rate of a clock


def read_images(files: list[Path]) -> Generator[np.ndarray | None]:
    """Yield each image, or None for one that cannot be read, which is named on stderr; if it is the only one: raise."""
    for file in files:
        try:
            yield imaging.decode(file)
        except (ValueError, OSError) as error:
            if len(files) == 1:
                raise
            print(f"skipped: {imaging.printable(error)}", file=sys.stderr)
            yield None


def read_capture(capture: cv2.VideoCapture, live: bool) -> Generator[np.ndarray | None]:
    """Yield each frame, None for an empty one; a video ends, a camera that is gone raises ConnectionError."""
    failures = 0
    try:
        while failures < (CAMERA_ATTEMPTS if live else 1):
            try:
                is_read, frame = capture.read()
            except Exception:  # a driver may raise anything
                is_read = False
            if is_read:
                failures = 0
                is_empty = frame is None or not frame.size
                yield None if is_empty else cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            else:
                failures += 1
                if live:
                    time.sleep(RETRY_SECONDS)
    finally:
        capture.release()
    if live:
        raise ConnectionError("The camera gives no more pictures; is it still connected?")


def read_stream(
    capture: cv2.VideoCapture, connect: Callable[[], cv2.VideoCapture], address: str
) -> Generator[np.ndarray | None]:
    """Yield each frame of a network stream. Where it breaks off it is taken up again, then raises ConnectionError."""
    breaks = 0
    while True:
        start = time.monotonic()
        yield from read_capture(capture, False)
        breaks = 1 if time.monotonic() - start > STEADY_SECONDS else breaks + 1
        if breaks > STREAM_ATTEMPTS:
            raise ConnectionError(f"{address} broke off, and {STREAM_ATTEMPTS} attempts to take it up again failed.")
        print(f"the stream broke off; attempt {breaks} of {STREAM_ATTEMPTS} to take it up again", file=sys.stderr)
        time.sleep(STREAM_RETRY_SECONDS * breaks)
        capture = connect()


class Source:
    """Frames that a thread reads ahead. Of a live source each is the newest, older ones are dropped; else all come.

    Attributes:
        fps: frames per second for a video of them.
        live: whether it is a camera or a network stream.
        stills: whether a person looks at each frame as long as they like.
        skipped: number of empty frames and unreadable images so far.
    """

    def __init__(self, frames: Generator[np.ndarray | None], fps: float, *, live: bool = False, stills: bool = False):
        """Start the thread, which alone uses the generator from now on; None stands for a frame to be skipped."""
        self.fps, self.live, self.stills = fps, live, stills
        self.skipped = 0
        self._read = frames
        self._ended = False
        self._error = None
        self._frames = deque(maxlen=1 if live else FRAMES_AHEAD)  # when full, it drops the oldest
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._fill, daemon=True)  # a camera can hang
        self._thread.start()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames, then raise what ended the reading, if it was an error."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frames or self._ended)
                if not self._frames:
                    break
                frame = self._frames.popleft()
                self._changed.notify_all()
            yield frame
        if self._error:
            raise self._error

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)

    def _fill(self):
        try:
            for frame in self._read:
                with self._changed:
                    if not self.live:
                        self._changed.wait_for(lambda: self._ended or len(self._frames) < FRAMES_AHEAD)
                    if self._ended:
                        break
                    if frame is None:
                        self.skipped += 1
                    else:
                        self._frames.append(frame)
                    self._changed.notify_all()
        except Exception as error:
            self._error = error
        self._read.close()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
