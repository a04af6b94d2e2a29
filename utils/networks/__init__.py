"""Networks: the embedding network, walking the graph of any Keras network, and classifiers of ImageNet's classes.

`embedding` builds the network that this project trains and walks the graph of others, layer by layer; `classifiers`
builds what keras.applications has, and `torchvision_nets` what it lacks.
"""

from utils.networks.embedding import (
    BACKBONES,
    Backbone,
    Call,
    Spec,
    call_layer,
    check_layers,
    check_network,
    default_layer,
    embedding_network,
    forward,
    get_layer,
    head,
    imagenet_file,
    imagenet_folder,
    map_layers,
    receptive_fields,
    rehearse,
    run,
    score_output,
    scores,
)

__all__ = [
    "BACKBONES",
    "Backbone",
    "Call",
    "Spec",
    "call_layer",
    "check_layers",
    "check_network",
    "default_layer",
    "embedding_network",
    "forward",
    "get_layer",
    "head",
    "imagenet_file",
    "imagenet_folder",
    "map_layers",
    "receptive_fields",
    "rehearse",
    "run",
    "score_output",
    "scores",
]
