"""Faster-Grad-CAM: label and heat map of an image from one forward pass.

The top level tells the story of the notebooks. Images come in (`imaging`, `data`); a network learns (`augment`,
`arcface`); its gradients are harvested (`gradcam`) and averaged per cluster (`faster_gradcam`); the explainer becomes
one file (`export`) that runs without TensorFlow (`runtime`). `similarity` says why two images are alike; `anomaly`
finds defects, at the places and sizes of `views`.

Wings hold the trades: `networks`, `metrics`, `render`, `storage`, and the `commands` of ``python -m utils``. Imports go
one way: commands → top level → the other wings, which use `imaging`, `runtime` and `repro` of the top level as well.
"""
