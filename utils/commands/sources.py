"""Frames of a camera, a video or images, read by a thread of its own. Frames are uint8 RGB (H, W, 3)."""

import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path

import cv2
import numpy as np

from utils import imaging
from utils.runtime import silent_stderr

CAMERA_ATTEMPTS, RETRY_SECONDS = 5, 0.2  # a loose plug gets one second
FRAMES_AHEAD = 2  # read while the network runs
CAMERA_FPS, STILLS_FPS = 30.0, 1.0  # of a saved video, where the source states no rate


def open_source(source: str) -> "Source":
    """Open a camera by its number, or a video, an image or a folder of images.

    Raises:
        FileNotFoundError: there is no such file or camera, or no image in the folder.
        ValueError: the file is neither a video nor an image.
    """
    path = Path(source)
    live = source.isdecimal()
    if not live and (path.is_dir() or not path.exists() or path.suffix.lower() in imaging.IMAGE_SUFFIXES):
        return Source(read_images([file for file, _ in imaging.image_files([path])]), STILLS_FPS, stills=True)
    error = ValueError(f"Cannot read {source}: it is neither a video nor an image.")
    if live:
        error = FileNotFoundError(f"Cannot open camera {source}: it is not connected, or another program uses it.")
    try:
        with silent_stderr():  # OpenCV tells there of each backend it tries
            capture = cv2.VideoCapture(int(source) if live else source)
    except cv2.error:  # a number beyond int32
        raise error from None
    # FFmpeg opens a text file as the film of a terminal.
    if not capture.isOpened() or int(capture.get(cv2.CAP_PROP_FOURCC)) == cv2.VideoWriter_fourcc(*"ansi"):
        raise error
    fps = capture.get(cv2.CAP_PROP_FPS)
    fps = fps if 1 <= fps <= 1000 else CAMERA_FPS  # some state 0, NaN or the rate of a clock
    return Source(read_capture(capture, live), fps, live=live)


def read_images(files: list[Path]) -> Generator[np.ndarray | None]:
    """Yield each image, or None for one that cannot be read, which is named on stderr; if it is the only one: raise."""
    for file in files:
        try:
            yield imaging.decode(file)
        except (ValueError, FileNotFoundError) as error:
            if len(files) == 1:
                raise
            print(f"skipped: {error}", file=sys.stderr)
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


class Source:
    """Frames that a thread reads ahead. Of a live source each is the newest, older ones are dropped; else all come.

    Attributes:
        fps: frames per second for a video of them.
        live: whether it is a camera.
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
