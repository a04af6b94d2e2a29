"""Faster-Grad-CAM: label and heat map of an image from one forward pass.

The top level tells the story of the notebooks. Images come in (`imaging`, `data`, `masks`); a network learns
(`augment`, `arcface`); its gradients are harvested (`gradcam`, `cams`, `guided`) and averaged per cluster
(`faster_gradcam`); the explainer becomes one file (`export`) that runs without TensorFlow (`runtime`). `anomaly` does
the same for defects.

Four wings hold the trades: `networks`, `metrics`, `render`, and the `commands` of ``python -m utils``. Imports go one
way: commands → top level → the other wings, which use `imaging`, `runtime` and `repro` of the top level as well.
"""
