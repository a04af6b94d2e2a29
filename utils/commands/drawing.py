"""Boxes and text on pictures uint8 RGB (H, W, 3), to be seen on any background."""

import cv2
import numpy as np

from utils import heatmap, imaging

FONT, TEXT_HEIGHT = cv2.FONT_HERSHEY_SIMPLEX, 0.055  # of the picture's height
WHITE, BLACK, YELLOW = (255, 255, 255), (0, 0, 0), (255, 221, 0)


def draw_box(picture: np.ndarray, box: heatmap.Corners) -> None:
    """Draw a frame just inside the box."""
    x0, y0, x1, y1 = box
    line = max(2, len(picture) // 160)
    cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), BLACK, 2 * line)  # to be seen on any background
    cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), YELLOW, line)


def draw_text(picture: np.ndarray, text: str, *, corner: tuple[int, int], lowest: int) -> int:
    """Write on a plate that stands on the corner (x, y), moved inside and above ``lowest``; returns the plate's top."""
    text = imaging.printable(text)  # OpenCV crashes at half a character
    height, width = picture.shape[:2]
    margin = round(TEXT_HEIGHT * height / 3)
    unit = cv2.getTextSize(text, FONT, 1.0, 1)[0]  # OpenCV 5 has another font than 4
    scale = min(TEXT_HEIGHT * height / unit[1], max(width - 2 * margin - 2, 1) / unit[0])  # 2: for rounding
    thickness = max(1, round(scale))
    (text_width, text_height), baseline = cv2.getTextSize(text, FONT, scale, thickness)
    plate_width = text_width + 2 * margin
    plate_height = text_height + baseline + 2 * margin
    left = max(min(corner[0], width - plate_width), 0)
    bottom = min(max(corner[1], plate_height), lowest)
    top = bottom - plate_height
    cv2.rectangle(picture, (left, top), (left + plate_width - 1, bottom - 1), BLACK, cv2.FILLED)
    place = (left + margin, bottom - baseline - margin)
    cv2.putText(picture, text, place, FONT, scale, WHITE, thickness, cv2.LINE_AA)
    return top
