"""One picture from the webcam, in Colab, where the kernel is far away from the camera."""

import base64
import io

import numpy as np
from PIL import Image

CAPTURE = """
(async () => {
  const stream = await navigator.mediaDevices.getUserMedia({video: true});
  const video = document.createElement("video");
  const button = document.createElement("button");
  button.textContent = "Take the picture";
  document.body.append(video, document.createElement("br"), button);
  video.srcObject = stream;
  await video.play();
  google.colab.output.setIframeHeight(document.documentElement.scrollHeight, true);
  await new Promise((resolve) => { button.onclick = resolve; });
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  stream.getTracks().forEach((track) => track.stop());
  video.remove();
  button.remove();
  return canvas.toDataURL("image/jpeg", 0.9);
})()
"""


def webcam_frame() -> np.ndarray:
    """Ask the browser for the camera, wait for a click, return the picture: uint8 RGB (H, W, 3)."""
    from google.colab import output

    _, encoded = output.eval_js(CAPTURE).split(",", 1)  # data:image/jpeg;base64,...
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        return np.array(picture.convert("RGB"))
