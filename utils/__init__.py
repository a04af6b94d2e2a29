"""Faster-Grad-CAM's shared functions. This file imports nothing: `utils.runtime` must load without TensorFlow."""
