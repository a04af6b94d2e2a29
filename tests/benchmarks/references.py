"""Write tests/fixtures/references.npz: what torchvision, pytorch-grad-cam and captum say of weights that a seed gives.

    python tests/benchmarks/references.py

tests/test_references.py makes the same weights and images from the seed and compares ours, without torch. The packages
go into an environment of their own:

    pip install torch==2.13.0 torchvision matplotlib opencv-python-headless pillow scikit-learn tqdm
    pip install --no-deps grad-cam==1.5.7 ttach captum==0.9.0

For each network the file holds, all of it computed in float64 and stored in float32:

    {network}/names, /shapes    its weights in torch's order; shapes are filled up with zeros
    {network}/logits            (N, K)
    {network}/{layer}           raw maps (methods, N, h, w) of pytorch-grad-cam, before ReLU, scaling and resizing
    {network}/{layer}/captum    raw maps (2, N, h, w) of captum: LayerGradCam and LayerGradientXActivation
    {network}/guided_gradcam    captum's GuidedGradCam (N, H, W, 3) of the best class at the last layer, thinned
    {network}/guided            guided backpropagation of captum (N, H, W, 3), per unit of the pixels 0..255, thinned

Where the networks would differ, torch's is told to follow: MobileNetV2's batch norm adds 1e-3, as in Keras, and its
image keeps all maps odd, so that both pad strided convolutions alike. captum passes over ReLU6; written as a ReLU and a
bound, it is guided like any other.
"""

import collections
import functools
import warnings
from pathlib import Path

import numpy as np

FILE = Path(__file__).resolve().parents[1] / "fixtures" / "references.npz"
# Of several seeds the one that leaves all units farthest from where their ReLU bends (1.4e-6 or more): nearer, the
# rounding of float32 decides which way a unit goes, and maps differ by 1e-3.
SEED = 1
N_IMAGES = 2
SIZES = {"small": (24, 32), "resnet18": (64, 80), "shufflenet_v2": (64, 80), "mobilenet_v2": (65, 97)}  # height, width
# A layer half-way and the last, by our name and by torch's. Behind the last there is only pooling and a dense layer:
# there Grad-CAM, HiResCAM and XGrad-CAM are one.
LAYERS = {
    "small": {"conv1": "relu1", "conv2": "relu2"},
    "resnet18": {"layer2_1_relu2": "layer2.1", "layer4_1_relu2": "layer4.1"},
    "shufflenet_v2": {"stage3_7_shuffle": "stage3.7", "conv5_relu": "conv5"},
    "mobilenet_v2": {"block_13_expand_relu": "features.14.conv.0", "out_relu": "features.18"},
}
METHODS = {
    "gradcam": "GradCAM", "gradcam++": "GradCAMPlusPlus", "layercam": "LayerCAM", "hirescam": "HiResCAM",
    "xgradcam": "XGradCAM",
}
CAPTUM = ("gradcam", "hirescam")  # what its two layer attributions are called here, summed over channels
TARGET = 3
# The maps explain the logit times this. pytorch-grad-cam adds 1e-6 to the denominator of Grad-CAM++, 2g² + Σ A·g³, and
# so mutes gradients below 1e-3: at 1 its maps correlate with those of the formula by as little as 0.994 here.
SCALE = 10
THINNING = 3  # of the guided gradients every third pixel is kept, along both sides


def images(name: str) -> np.ndarray:
    """uint8 RGB (N, H, W, 3); wider than high, so that exchanged axes show."""
    return np.random.default_rng(SEED).integers(0, 256, (N_IMAGES, *SIZES[name], 3), np.uint8)


@functools.cache
def expected() -> dict[str, np.ndarray]:
    """What the file holds."""
    return dict(np.load(FILE))


def state_dict(name: str) -> dict[str, np.ndarray]:
    """The weights of a network by torch's names."""
    names, shapes = (expected()[f"{name}/{key}"] for key in ("names", "shapes"))
    return _seeded({str(n): tuple(s[s > 0]) for n, s in zip(names, shapes, strict=True)})


def _seeded(shapes):
    """Weights by name, float32. Batch norm gets statistics of its own: left at 0 and 1, they would hide mistakes."""
    rng = np.random.default_rng(SEED)
    state = {}
    for name, shape in shapes.items():
        if len(shape) == 1:  # around 1 what multiplies or divides, around 0 what is added
            centre = 1.0 if name.endswith(("weight", "running_var")) else 0.0
            limit = 0.5
        else:
            centre, limit = 0.0, np.sqrt(3 / np.prod(shape[1:]))
        state[name] = (centre + limit * rng.uniform(-1, 1, shape)).astype(np.float32)
    return state


def torch_network(name):
    """The network in float64 with its seeded weights, each ReLU a module that captum can hook; its shapes by name."""
    import torch
    from torch import nn
    from torchvision import models

    class ReLU6(nn.Sequential):
        def forward(self, x):
            return super().forward(x).clamp(max=6)

    build = {
        "small": _small_torch_network, "resnet18": models.resnet18, "shufflenet_v2": models.shufflenet_v2_x1_0,
        "mobilenet_v2": lambda: models.mobilenet_v2(norm_layer=functools.partial(nn.BatchNorm2d, eps=1e-3)),
    }
    network = build[name]()
    shapes = {n: tuple(t.shape) for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    state = {n: torch.tensor(values) for n, values in _seeded(shapes).items()}
    network.load_state_dict(state, strict=False)  # without num_batches_tracked
    for module in list(network.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, nn.ReLU):  # not in place
                setattr(module, child_name, nn.ReLU())
            elif isinstance(child, nn.ReLU6):
                setattr(module, child_name, ReLU6(nn.ReLU()))
    return network.double().eval(), shapes


def _small_torch_network():
    from torch import nn

    layers = {
        "conv1": nn.Conv2d(3, 8, 3, stride=2), "relu1": nn.ReLU(), "conv2": nn.Conv2d(8, 12, 3), "relu2": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(12, 5),
    }
    return nn.Sequential(collections.OrderedDict(layers))


def _preprocessing(name):
    from torchvision.transforms import Normalize

    if name == "mobilenet_v2":
        return Normalize([127.5] * 3, [127.5] * 3)
    return Normalize([255 * mean for mean in (0.485, 0.456, 0.406)], [255 * std for std in (0.229, 0.224, 0.225)])


def raw_maps(network, layers, pixels):
    """(methods, N, h, w) of each layer; layers in the order in which the network runs them."""
    import pytorch_grad_cam

    maps = []
    for method in METHODS.values():
        with getattr(pytorch_grad_cam, method)(network, layers) as cam:
            cam(pixels, [lambda scores: SCALE * scores[TARGET]] * N_IMAGES)
            seen = cam.activations_and_grads
            triples = zip(layers, seen.activations, seen.gradients, strict=True)
            maps.append([cam.get_cam_image(pixels, x, None, a.numpy(), g.numpy(), False) for x, a, g in triples])
    return [np.stack(arrays) for arrays in zip(*maps, strict=True)]


def captum_maps(network, layer, pixels):
    """(2, N, h, w) of the score itself, not scaled."""
    from captum.attr import LayerGradCam, LayerGradientXActivation

    maps = [kind(network, layer).attribute(pixels, TARGET) for kind in (LayerGradCam, LayerGradientXActivation)]
    return np.stack([array.sum(dim=1).detach().numpy() for array in maps])


def main():
    import torch
    from captum.attr import GuidedBackprop, GuidedGradCam

    warnings.filterwarnings("ignore", module="captum")  # it says that it sets hooks
    arrays = {}
    for name, layers in LAYERS.items():
        network, shapes = torch_network(name)
        modules = [network.get_submodule(layer) for layer in layers.values()]
        network = torch.nn.Sequential(_preprocessing(name), network)
        pixels = torch.tensor(images(name)).double().permute(0, 3, 1, 2)
        guided = GuidedBackprop(network).attribute(pixels, TARGET).permute(0, 2, 3, 1)
        best = network(pixels).argmax(dim=1)  # elsewhere the map may be empty
        product = GuidedGradCam(network, modules[-1]).attribute(pixels, best, interpolate_mode="bilinear")
        results = {
            "logits": network(pixels).detach().numpy(),
            **dict(zip(layers, raw_maps(network, modules, pixels), strict=True)),
            **{f"{layer}/captum": captum_maps(network, x, pixels) for layer, x in zip(layers, modules, strict=True)},
            "guided": guided.detach().numpy()[:, ::THINNING, ::THINNING],
            "guided_gradcam": product.permute(0, 2, 3, 1).detach().numpy()[:, ::THINNING, ::THINNING],
        }
        arrays[f"{name}/names"] = np.array(list(shapes))
        arrays[f"{name}/shapes"] = np.array([(*shape, *[0] * (4 - len(shape))) for shape in shapes.values()])
        arrays |= {f"{name}/{key}": array.astype(np.float32) for key, array in results.items()}
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
