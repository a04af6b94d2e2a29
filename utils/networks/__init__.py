"""Networks: built, and walked layer by layer.

`embedding` builds the network that this project trains, `classifiers` those of ImageNet's 1,000 classes. Both rebuild
networks of keras.applications; `torchvision_nets` has two that are missing there. `graph` walks through the layers of
any Keras network, `spatial` tells which of them give maps and of what part of the image, `tokens` reads transformers,
`scores` finds the scores. `angular` has the layer of ArcFace, `guided` the backward rule of guided backpropagation,
`cams` the formulas of Grad-CAM's family, `passes` what is compiled for them, `perturbing`, `fullgrad` and `legrad` the
methods that need more, `ports` and `targets` what lets them explain one of several outputs, a sum or a region. `cells`
takes an embedding as a sum over cells, `concepts` maps as sums of a few concepts, `discriminant` tells objects from
their surroundings, `harvesting` gathers channel weights, `clusters` groups them. `replicas` takes gradient steps on a
device or many, `loop` runs them and keeps checkpoints. `files` and `model_folder` write what was trained.
"""

# ruff: noqa: I001 - names side by side
from utils.networks.embedding import (
    BACKBONES, DEFAULT_LAYER, Spec, continue_from, embedding_network, imagenet_folder, is_offline,
)
from utils.networks.graph import (
    call_layer, check_network, compiled, forward, not_in_keras, run_layer_by_layer, structure, trace, wrap,
)
from utils.networks.ports import single
from utils.networks.scores import ScoreFunction, find_logits, head, scores
from utils.networks.spatial import (
    Window, check_layers, default_layer, get_layer, map_layers, receptive_fields, window,
)
