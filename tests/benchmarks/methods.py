"""Write tests/fixtures/methods.npz: raw maps of pytorch-grad-cam by its rarer methods, on weights that a seed gives.

    python tests/benchmarks/methods.py

The networks are two of `references`, whose packages this needs, and a small vision transformer. For each the file holds
{network}/{layer}/{method}, raw maps (N, h, w) for class `references.TARGET`, before ReLU and scaling, computed in
float64, and "transformer/logits". The sign of a principal component is free: eigengradcam is compared up to it.
Finer-CAM explains the best class: pytorch-grad-cam adds 1e-9 to what the nearest classes share of the softmax, which
would show (2e-5 of the maximum in resnet18) where that share is below 1e-4.
"transformer/norm/hirescam" is captum's: LayerGradientXActivation, summed over channels.
"""

from pathlib import Path

import numpy as np

try:
    from benchmarks import references
except ModuleNotFoundError:  # run as a script
    import references

FILE = Path(__file__).resolve().parents[1] / "fixtures" / "methods.npz"
NETWORKS = ("small", "resnet18")
METHODS = {
    "elementwise": "GradCAMElementWise", "eigengradcam": "EigenGradCAM", "kpcacam": "KPCA_CAM",
    "shapleycam": "ShapleyCAM", "ablationcam": "AblationCAM", "finercam": "FinerCAM", "gradcam": "GradCAM",
    "layercam": "LayerCAM",
}
SIZE, PATCH, GRID, DEPTH, WIDTH, HEADS, N_CLASSES = (24, 32), 4, (6, 8), 2, 8, 2, 5  # of the transformer
BLOCK = {
    "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "attention.in_proj_weight": (3 * WIDTH, WIDTH),
    "attention.in_proj_bias": (3 * WIDTH,), "attention.out_proj.weight": (WIDTH, WIDTH),
    "attention.out_proj.bias": (WIDTH,), "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
    "mlp.0.weight": (2 * WIDTH, WIDTH), "mlp.0.bias": (2 * WIDTH,), "mlp.2.weight": (WIDTH, 2 * WIDTH),
    "mlp.2.bias": (WIDTH,),
}
SHAPES = {
    "patches.weight": (WIDTH, 3, PATCH, PATCH), "patches.bias": (WIDTH,), "token": (1, 1, WIDTH),
    "positions": (1, 1 + GRID[0] * GRID[1], WIDTH), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
    "head.weight": (N_CLASSES, WIDTH), "head.bias": (N_CLASSES,),
} | {f"blocks.{n}.{name}": shape for n in range(DEPTH) for name, shape in BLOCK.items()}


def transformer_state() -> dict[str, np.ndarray]:
    """The transformer's weights by torch's names."""
    return references._seeded(SHAPES)


def transformer_images() -> np.ndarray:
    """float32 (2, 24, 32, 3) in [-1, 1]."""
    return np.random.default_rng(references.SEED).uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32)


def torch_transformer():
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

        def forward(self, x):
            y = self.norm1(x)
            x = x + self.attention(y, y, y)[0]
            return x + self.mlp(self.norm2(x))

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
            self.token, self.positions = (nn.Parameter(torch.zeros(SHAPES[n])) for n in ("token", "positions"))
            self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, N_CLASSES)

        def forward(self, pixels):
            x = self.patches(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x)[:, 0])

    network = Transformer()
    network.load_state_dict({name: torch.tensor(values) for name, values in transformer_state().items()})
    return network.double().eval()


def maps_of(method, network, layer, pixels, reshape=None):
    """Raw maps (N, h, w), caught on their way to ReLU and scaling."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    caught = []
    cam = getattr(pytorch_grad_cam, METHODS[method])(network, [layer], reshape_transform=reshape)
    base = getattr(cam, "base_cam", cam)
    original = base.get_cam_image

    def catch(*args):
        if method == "shapleycam" and reshape:  # of tokens theirs makes weights, and no map
            weights, maps = base.get_cam_weights(*args[:5]), reshape(args[3]).detach().numpy()
            caught.append(np.einsum("nc,nchw->nhw", weights, maps))
        else:
            caught.append(original(*args))
        return caught[-1]

    base.get_cam_image = catch
    base.activations_and_grads.clear = lambda: None  # it fails on gradients of reshaped tokens
    if method == "finercam":
        cam(pixels)
    else:
        cam(pixels, [ClassifierOutputTarget(references.TARGET)] * len(pixels))
    base.activations_and_grads.release()
    return caught[0]


def main():
    import torch

    arrays = {}
    for name in NETWORKS:
        network, _ = references.torch_network(name)
        pixels = torch.tensor(references.images(name)).double().permute(0, 3, 1, 2)
        for ours, theirs in references.LAYERS[name].items():
            layer = network.get_submodule(theirs)
            whole = torch.nn.Sequential(references._preprocessing(name), network)
            chosen = METHODS.keys() - ({"ablationcam"} if name == "resnet18" else ())  # which takes minutes
            arrays |= {f"{name}/{ours}/{method}": maps_of(method, whole, layer, pixels) for method in chosen}
    network, pixels = torch_transformer(), torch.tensor(transformer_images()).double().permute(0, 3, 1, 2)
    arrays["transformer/logits"] = network(pixels).detach().numpy()

    def as_map(x):
        return x[:, 1:].reshape(len(x), *GRID, WIDTH).permute(0, 3, 1, 2)

    for method in METHODS.keys() - {"ablationcam"}:  # theirs replaces maps only
        arrays[f"transformer/norm/{method}"] = maps_of(method, network, network.blocks[-1].norm1, pixels, as_map)
    from captum.attr import LayerGradientXActivation

    product = LayerGradientXActivation(network, network.blocks[-1].norm1).attribute(pixels, references.TARGET)
    arrays["transformer/norm/hirescam"] = as_map(product).sum(dim=1).detach().numpy()
    np.savez_compressed(FILE, **{key: np.asarray(array, np.float32) for key, array in arrays.items()})


if __name__ == "__main__":
    main()
