"""Networks with several inputs or outputs, as networks with one of each: images in, the chosen output out."""

import numpy as np

from utils.networks.graph import per_network, wrap
from utils.repro import keras


@keras.saving.register_keras_serializable("faster_grad_cam")
class Held(keras.layers.Layer):
    """The same values, (...), for each image of a batch: (N, ...)."""

    def __init__(self, values, **kwargs):
        super().__init__(**kwargs)
        self.values = np.asarray(values)

    def call(self, images):
        one = keras.ops.convert_to_tensor(self.values[None], self.compute_dtype)
        return keras.ops.repeat(one, keras.ops.shape(images)[0], axis=0)

    def compute_output_shape(self, shape):
        return (shape[0], *self.values.shape)

    def get_config(self):
        return super().get_config() | {"values": self.values.tolist()}


def single(network: keras.Model, *, output: str | int | None = None, held: dict | None = None) -> keras.Model:
    """The network with one input, its images, and one output; its layers and weights are shared.

    Args:
        output: name or index of the output; None: the only one.
        held: {name of an input: its values, without the batch} of all inputs but the images; they stay the same for
            every image. A network with held inputs becomes a model inside, whose layers are "its name/layer".

    Raises:
        ValueError: no such output or input, an input that is not held, or values of another shape.

    Example:
        >>> image, age = keras.Input((8, 8, 3), name="image"), keras.Input((1,), name="age")
        >>> pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(image))
        >>> both = keras.layers.Concatenate()([pooled, age])
        >>> network = keras.Model([image, age], [keras.layers.Dense(3, name="kind")(both), pooled])
        >>> single(network, output="kind", held={"age": [40.0]}).output_shape
        (None, 3)
    """
    if held is None:
        return _of_output(network, output)
    index = _output_index(network, output)
    names = [tensor.name for tensor in network.inputs]
    free = [name for name in names if name not in held]
    if len(free) != 1 or set(held) - set(names):
        raise ValueError(f"Expected values for all of the inputs {names} but one. Received: {sorted(held)}")
    like = network.inputs[names.index(free[0])]
    image = keras.Input(like.shape[1:], dtype=like.dtype, name=like.name)
    tensors = []
    for tensor in network.inputs:
        values = None if tensor is like else np.asarray(held[tensor.name])
        if values is not None and (values.ndim != len(tensor.shape) - 1 or not _fits(values.shape, tensor.shape[1:])):
            raise ValueError(f"Expected {tensor.name!r} of shape {tensor.shape[1:]}. Received: {values.shape}")
        of_held = None if values is None else Held(values, dtype=tensor.dtype, name=f"held_{tensor.name}")
        tensors.append(image if of_held is None else of_held(image))
    outputs = network(keras.tree.pack_sequence_as(network._inputs_struct, tensors))
    return wrap(image, keras.tree.flatten(outputs)[index], like=network, name=f"{network.name}_single")


@per_network
def _of_output(network, output):
    index = _output_index(network, output)
    if len(network.inputs) != 1:
        names = [tensor.name for tensor in network.inputs]
        raise ValueError(f"Expected held={{...}} with values for all of the inputs {names} but one. Received: None")
    return wrap(network.inputs[0], network.outputs[index], like=network)


def _output_index(network, output):
    names = list(network.output_names)
    if output is None and len(names) == 1:
        return 0
    if output in names:
        return names.index(output)
    if not isinstance(output, int) or isinstance(output, bool) or not -len(names) <= output < len(names):
        raise ValueError(f"Expected one of the outputs {names}, or its index. Received: {output!r}")
    return output


def _fits(shape, expected):
    return all(side is None or side == own for own, side in zip(shape, expected, strict=True))
