"""Grad-CAM of other packages beside ours: one frame in, its heat map out, all in turn in one run.

    python tests/benchmarks/peers.py

Whichever of them is installed takes part: tf-keras-vis, xplique and tf-explain on the shipped Keras network, with the
same layer, class and image; pytorch-grad-cam, captum and torchcam on a torch network of the same shape with random
weights. The correlation with our exact Grad-CAM shows whether a package computed the same map. Each package does what
its own documentation shows, from the frame to the map it returns; the packages go into an environment of their own:

    pip install -r tests/requirements.txt
    pip install tf-keras-vis==0.8.7 xplique==2.0.2 tf-explain==0.3.1 torch==2.13.0
    pip install --no-deps grad-cam==1.5.7 ttach captum==0.9.0 torchcam==0.5.0
    pip install --no-deps tensorflow==2.21.0    # again: what xplique needs brings an older one
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import tensorflow as tf

from utils import export, gradcam, repro, runtime
from utils.commands import report, timing
from utils.commands.common import DEFAULT_MODEL
from utils.faster_gradcam import FasterGradCAM

SIZES = ((96, 96), (224, 224))
OURS = "LiteRT float32 explain"
# Inverted residual blocks of MobileNetV2 at output stride 8: expansion, channels, blocks, stride, dilation. Of the last
# only the expansion is there: it is block 13, where the shipped network ends.
BLOCKS = ((1, 16, 1, 1, 1), (6, 24, 2, 2, 1), (6, 32, 3, 2, 1), (6, 64, 4, 1, 2), (6, 96, 3, 1, 2), (6, 160, 1, 1, 4))
LAST_LAYER = "block_13_expand_relu"
SAME_NETWORK = ("tf-keras-vis", "xplique")  # and a heat map that can be compared: tf-explain returns a picture


# Each takes classifier, layer, image uint8 (1, H, W, 3) and class id, and returns the function to be timed.


def tf_keras_vis(classifier, layer, image, label):
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.utils.scores import CategoricalScore

    cam, score = Gradcam(classifier, clone=False), CategoricalScore([label])
    settings = {"penultimate_layer": layer, "seek_penultimate_conv_layer": False}
    return lambda: cam(score, image.astype(np.float32), **settings)


def xplique(classifier, layer, image, label):
    from xplique.attributions import GradCAM

    cam = GradCAM(classifier, batch_size=1, conv_layer=layer)
    target = tf.one_hot([label], classifier.output_shape[-1])
    return lambda: cam(image.astype(np.float32), target)


def tf_explain(classifier, layer, image, label):
    from tf_explain.core.grad_cam import GradCAM

    return lambda: GradCAM().explain((image.astype(np.float32), None), classifier, label, layer)


def pytorch_grad_cam(classifier, layer, image, label):
    network, layer, tensor = torch_network(classifier, image)
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam, targets = GradCAM(network, [layer]), [ClassifierOutputTarget(label)]
    return lambda: cam(tensor(), targets)


def captum(classifier, layer, image, label):
    network, layer, tensor = torch_network(classifier, image)
    from captum.attr import LayerAttribution, LayerGradCam

    cam, size = LayerGradCam(network, layer), image.shape[1:3]
    return lambda: LayerAttribution.interpolate(cam.attribute(tensor(), label), size, "bilinear").detach().numpy()


def torchcam(classifier, layer, image, label):
    network, layer, tensor = torch_network(classifier, image)
    from torchcam.methods import GradCAM

    cam = GradCAM(network, layer)
    return lambda: cam(label, network(tensor()))[0].numpy()


PEERS = {
    "tf-keras-vis": tf_keras_vis, "xplique": xplique, "tf-explain": tf_explain, "pytorch-grad-cam": pytorch_grad_cam,
    "captum": captum, "torchcam": torchcam,
}


def torch_network(classifier, image):
    """A torch network like the classifier, its last layer of maps, and the function frame → tensor."""
    import torch
    from torch import nn

    def convolution(n_in, n_out, kernel=1, stride=1, dilation=1, groups=1, activation=True):
        padding = dilation * (kernel - 1) // 2
        parts = [nn.Conv2d(n_in, n_out, kernel, stride, padding, dilation, groups, bias=False), nn.BatchNorm2d(n_out)]
        return nn.Sequential(*parts, *[nn.ReLU6()] * activation)

    class Block(nn.Module):
        def __init__(self, n_in, n_out, expansion, stride, dilation):
            super().__init__()
            n = n_in * expansion
            self.shortcut = stride == 1 and n_in == n_out
            self.expand = convolution(n_in, n) if expansion > 1 else nn.Identity()
            self.rest = nn.Sequential(
                convolution(n, n, 3, stride, dilation, groups=n), convolution(n, n_out, activation=False)
            )

        def forward(self, x):
            return self.rest(self.expand(x)) + (x if self.shortcut else 0)

    spec = classifier.spec
    if (spec.backbone, spec.alpha, spec.output_stride, spec.last_layer) != ("mobilenet_v2", 1.0, 8, LAST_LAYER):
        raise ValueError(f"the torch network is MobileNetV2, alpha 1.0, output stride 8, up to {LAST_LAYER}")
    blocks, n_in = [], 32
    for expansion, n_out, n_blocks, stride, dilation in BLOCKS:
        for i in range(n_blocks):
            blocks.append(Block(n_in, n_out, expansion, stride if i == 0 else 1, dilation))
            n_in = n_out
    torch.manual_seed(0)
    network = nn.Sequential(
        convolution(3, 32, 3, 2), *blocks[:-1], blocks[-1].expand, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(576, spec.embedding_size, bias=False),
        nn.Linear(spec.embedding_size, classifier.output_shape[-1], bias=False),
    ).eval()
    n_parameters = sum(p.numel() for p in network.parameters())
    if n_parameters != sum(int(np.prod(w.shape)) for w in classifier.weights if "moving" not in w.path):
        raise ValueError("the torch network has another number of parameters")
    return network, blocks[-1].expand, lambda: torch.from_numpy(image).permute(0, 3, 1, 2) / 127.5 - 1


def measure(faster, rounds):
    """Time all at the explainer's image size; print a table, and who did not take part."""
    image = timing.frames(1, faster.input_size)
    classifier, layer = faster.classifier(), faster.meta["layer"]
    label = int(faster.explain(image).labels[0])
    with tempfile.TemporaryDirectory() as folder:
        explainer = runtime.Explainer(export.export_float(faster, Path(folder) / runtime.FLOAT_FILE))
    runs = {
        OURS: lambda: explainer.explain(image).heatmaps,
        "Keras explain": lambda: faster.explain(image).heatmaps,
        timing.EXACT: lambda: gradcam.explain(classifier, image, layer=layer, targets=label),
    }
    absent, exact = [], runs[timing.EXACT]()
    for name, prepare in PEERS.items():
        try:
            call = prepare(classifier, layer, image, label)
            call()
        except ModuleNotFoundError as error:
            absent.append(f"{name}: not here, {error}")
        except Exception as error:  # peers fail in their own ways
            absent.append(f"{name}: does not run, {type(error).__name__}: {str(error).splitlines()[0]}")
        else:
            runs[name] = call
    seconds = {name: np.percentile(values, (25, 50, 75)) for name, values in repro.time_in_turn(runs, rounds).items()}
    rows = []
    for name, (lower, median, upper) in seconds.items():
        same = name in SAME_NETWORK and np.corrcoef(np.ravel(runs[name]()), exact.ravel())[0, 1]
        rows.append([
            name, f"{median * 1000:.2f}", f"{lower * 1000:.2f}–{upper * 1000:.2f}", f"{median / seconds[OURS][1]:.1f}",
            f"{same:.2f}" if same else "",
        ])
    height, width = faster.input_size
    header = [f"{height}x{width}", "milliseconds", "quartiles", f"/ {OURS}", "correlation"]
    print(*report.markdown(header, rows), *absent, "", sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=timing.ROUNDS, help="turns of each method")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "The structure of `inputs`")  # peers hand Keras a list of one tensor
    faster = FasterGradCAM.load(DEFAULT_MODEL)
    for size in SIZES:
        measure(timing.at_size(faster, size), options.rounds)


if __name__ == "__main__":
    main()
