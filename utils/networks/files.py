"""A network in files: as a LiteRT flatbuffer, float or int8; and which layer is to blame where that cannot be."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.schema_py_generated import TensorType
from ai_edge_litert.tools import flatbuffer_utils
from litert_quantizer import qtyping, quantizer
from tensorflow.lite.python.convert_phase import ConverterError  # noqa: F401  for callers

from utils import runtime
from utils.networks.graph import apply, trace
from utils.repro import keras, tf


def convert(model: keras.Model) -> bytes:
    """A Keras model with one input of known shape as a LiteRT flatbuffer, through Keras' own export.

    Raises:
        ValueError: Keras is too old for it.
    """
    if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 13):
        raise ValueError(f"The export needs Keras 3.13 or newer. Received: Keras {keras.__version__}")
    # A batch of known size: with an open one the converter cannot merge dilated convolutions.
    signature = [keras.InputSpec(dtype=model.inputs[0].dtype, shape=model.inputs[0].shape, name=model.inputs[0].name)]
    with tempfile.TemporaryDirectory() as folder:
        path, logger = Path(folder) / "model.tflite", tf.get_logger()
        level = logger.level
        logger.setLevel("ERROR")  # else it tells where it keeps its temporary files
        try:
            with runtime.silent_stderr():
                model.export(path, format="litert", verbose=False, input_signature=signature)
        finally:
            logger.setLevel(level)
        return path.read_bytes()


def quantise(content: bytes, images: np.ndarray, *, float_parts: tuple[str, ...] = ()) -> bytes:
    """A converted network with weights and activations in int8; its input, preprocessing and outputs stay float.

    Weights are scaled per channel, activations per tensor, by the range they have on the images (arXiv 1712.05877).

    Args:
        content: what `convert` gave.
        images: uint8 RGB (N, S, S, 3) of the network's size, in random order: the ranges are moving averages, so that
            the last images count most.
        float_parts: what is to stay float, too: parts of the names of operators' outputs.
    """
    kinds = qtyping.TFLOperationName
    quantizing = quantizer.Quantizer(content)
    quantizing.add_static_config(".*", kinds.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    float_operators = f".*({'|'.join(('/preprocessing', *float_parts))}).*"
    for names, kind in ((float_operators, kinds.ALL_SUPPORTED), (".*", kinds.INPUT), (".*", kinds.OUTPUT)):
        quantizing.update_quantization_recipe(names, kind, algorithm_key="no_quantize")
    samples = [{"image": image[None]} for image in images.astype(np.float32)]
    with runtime.silent_stderr(), warnings.catch_warnings():
        # It warns of its own calibration mode, and of biases that are out of range because their weights are all zero.
        warnings.simplefilter("ignore")
        ranges = quantizing.calibrate({"serving_default": samples})
        result = quantizing.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(result.quantized_model))
    for tensor in model.subgraphs[0].tensors:  # nobody looks them up: inputs and outputs are named in the signature
        tensor.name = None
    _share_constants(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _share_constants(model):
    """An output that is weights goes; the int8 weights get its name, so that the file holds no second copy in float."""
    (graph,), (signature,) = model.subgraphs, model.signatureDefs
    contents = [None if (data := model.buffers[t.buffer].data) is None else bytes(data) for t in graph.tensors]
    for named in [part for part in signature.outputs if contents[part.tensorIndex]]:
        output = graph.tensors[named.tensorIndex]
        floats = np.frombuffer(contents[named.tensorIndex], np.float32).reshape(output.shape)
        for tensor, content in zip(graph.tensors, contents, strict=True):
            if content and tensor.type == TensorType.INT8 and list(tensor.shape) == list(output.shape):
                scales = np.array(tensor.quantization.scale)[:, None]
                if (np.abs(scales * np.frombuffer(content, np.int8).reshape(floats.shape) - floats) <= scales).all():
                    tensor.name = named.name
                    model.buffers[output.buffer].data, output.buffer = None, 0
                    graph.outputs = [index for index in graph.outputs if index != named.tensorIndex]
                    signature.outputs.remove(named)
                    break


def not_in_litert(network: keras.Model) -> str | None:
    """The first layer that LiteRT cannot run, or not as Keras does, each kind tried alone: its name and kind."""
    tried = set()
    for name, call in trace(network)[1].items():
        operation, tensors = call.operation, call.inputs
        kind = type(operation), getattr(operation, "activation", None), getattr(operation, "compute_dtype", None)
        if kind in tried or len(tensors) != 1 or None in tensors[0].shape[1:]:
            continue
        tried.add(kind)
        if not _runs_alike(call):
            return f"{name!r}, a {type(operation).__name__} that computes in {kind[2] or 'float32'}"
    return None


def _runs_alike(call):
    shape, dtype = (1, *call.inputs[0].shape[1:]), call.inputs[0].dtype
    given = tf.cast(np.random.default_rng(0).uniform(0.5, 1.5, shape), dtype)
    image = keras.Input(batch_shape=shape, dtype=dtype, name="image")
    try:
        interpreter = Interpreter(model_content=convert(keras.Model(image, apply(call, [image]))))
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], given.numpy())
        interpreter.invoke()
        found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    except Exception:  # whatever the converter or the interpreter raises
        return False
    expected = apply(call, [given])
    return np.allclose(np.asarray(found, np.float32), tf.cast(expected, tf.float32), 0.01, 0.01)
