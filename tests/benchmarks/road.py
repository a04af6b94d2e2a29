"""Write tests/fixtures/road.npz: what pytorch-grad-cam's ROAD and RISE written out in torch say of a toy network.

    python tests/benchmarks/road.py

tests/test_faithfulness.py makes the same images, maps and network from the seed and compares ours, without torch. The
packages go into an environment of their own:

    pip install torch==2.13.0 torchvision matplotlib opencv-python-headless pillow scikit-learn tqdm
    pip install --no-deps grad-cam==1.5.7 ttach

The file holds, computed in float32 as the packages do:

    imputed      images (shares, H, W, 3) with the `SHARES` of pixels removed, without noise
    road         (LeRF − MoRF) / 2, mean over nine percentiles, without noise (N,)
    insertion, deletion    areas under the curves of `N_STEPS` steps (N,)
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).resolve().parents[1] / "fixtures" / "road.npz"
SEED = 0
N_IMAGES, HEIGHT, WIDTH, N_CLASSES = 4, 12, 20, 3
SHARES = (0.2, 0.5, 0.9)
PERCENTILES = tuple(range(10, 100, 10))
N_STEPS = 24
KERNEL, SIGMA = 11, 5.0


def material() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images float32 (N, H, W, 3) of 0..255, heat maps (N, H, W) without ties, class ids (N,)."""
    rng = np.random.default_rng(SEED)
    images = rng.integers(0, 256, (N_IMAGES, HEIGHT, WIDTH, 3)).astype(np.float32)
    heatmaps = rng.permuted(np.tile(np.linspace(0, 1, HEIGHT * WIDTH), (N_IMAGES, 1)), axis=1)
    return images, heatmaps.reshape(N_IMAGES, HEIGHT, WIDTH), rng.integers(0, N_CLASSES, N_IMAGES)


def removed() -> np.ndarray:
    """Pixels of the first image that are imputed: bool (shares, H, W)."""
    heat = material()[1][0]
    return np.stack([heat > 1 - share for share in SHARES])


def predict(images: np.ndarray) -> np.ndarray:
    """The toy network: softmax of a linear layer, images (n, H, W, 3) of 0..255 → (n, K)."""
    weights = np.random.default_rng(SEED + 1).standard_normal((HEIGHT * WIDTH * 3, N_CLASSES)) / 8
    powers = np.exp(np.reshape(images, (len(images), -1)).astype(np.float64) / 255 @ weights)
    return powers / powers.sum(axis=1, keepdims=True)


def expected() -> dict[str, np.ndarray]:
    """What the file holds."""
    return dict(np.load(FILE, allow_pickle=False))


def rise(torch, image, order, class_id, mode):
    """Insertion or deletion of one image (3, H, W): one step after the other, as the paper tells it."""
    if mode == "insertion":
        distance = torch.arange(KERNEL) - KERNEL // 2
        line = torch.exp(-(distance**2) / (2 * SIGMA**2))
        kernel = torch.outer(line, line) / line.sum() ** 2
        padded = torch.nn.functional.pad(image[None], [KERNEL // 2] * 4, mode="reflect")[0]
        canvas = torch.nn.functional.conv2d(padded[:, None], kernel[None, None])[:, 0]
        source = image
    else:
        canvas, source = image.clone(), torch.zeros_like(image)
    scores = [predict(canvas.permute(1, 2, 0)[None].numpy())[0, class_id]]
    for pixels in np.split(order, N_STEPS):
        canvas.view(3, -1)[:, pixels] = source.reshape(3, -1)[:, pixels]
        scores.append(predict(canvas.permute(1, 2, 0)[None].numpy())[0, class_id])
    return (sum(scores) - scores[0] / 2 - scores[-1] / 2) / N_STEPS


def main():
    import torch
    from pytorch_grad_cam.metrics.perturbation_confidence import (
        PerturbationConfidenceMetric,
        RemoveLeastRelevantFirst,
        RemoveMostRelevantFirst,
    )
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images, heatmaps, class_ids = material()
    tensors, imputer = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), NoisyLinearImputer(noise=0)
    kept = torch.from_numpy(~removed()).float()
    imputed = torch.stack([imputer(tensors[0], mask) for mask in kept]).permute(0, 2, 3, 1)

    targets = [ClassifierOutputTarget(k) for k in class_ids]

    def model(tensors):
        return torch.from_numpy(predict(tensors.permute(0, 2, 3, 1).numpy()))

    lerf, morf = (
        np.mean([PerturbationConfidenceMetric(first(p, imputer))(tensors, heatmaps, targets, model)
                 for p in PERCENTILES], axis=0)
        for first in (RemoveLeastRelevantFirst, RemoveMostRelevantFirst)
    )
    orders = np.argsort(-heatmaps.reshape(N_IMAGES, -1), axis=1)
    curves = {
        mode: [rise(torch, x, o, k, mode) for x, o, k in zip(tensors, orders, class_ids, strict=True)]
        for mode in ("insertion", "deletion")
    }
    np.savez_compressed(FILE, imputed=imputed.numpy(), road=(lerf - morf) / 2, **curves)


if __name__ == "__main__":
    main()
