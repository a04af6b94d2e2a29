"""Networks: built, and walked layer by layer.

`embedding` builds the network that this project trains, `classifiers` those of ImageNet's 1,000 classes. Both rebuild
networks of keras.applications; `torchvision_nets` has two that are missing there. `graph` walks through the layers of
any Keras network.
"""

# ruff: noqa: I001 - names side by side
from utils.networks.embedding import BACKBONES, DEFAULT_LAYER, Spec, embedding_network, imagenet_folder, is_offline
from utils.networks.graph import (
    call_layer, check_layers, check_network, compiled, default_layer, forward, get_layer, head, map_layers,
    receptive_fields, run_layer_by_layer, score_output, scores, trace, wrap,
)
