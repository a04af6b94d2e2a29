"""Passes through a network, forward and backward, each compiled once: what `gradcam` and `perturbing` are made of."""

import functools
from collections.abc import Callable

import numpy as np

from utils import networks
from utils.networks import cams, guided
from utils.networks.tokens import as_map, find_grid
from utils.repro import keras, tf

BEST = -1  # stands for the class of the highest score
HALF_SCALE = 1024.0  # float16 knows no gradients below 6e-8: there the score is scaled, its gradients are scaled back


def kept(compile_it: Callable) -> Callable:
    """Keep what is compiled of a network, for as long as its layers stay the same."""
    kept_ones = functools.lru_cache(maxsize=16)(lambda structure, *what: compile_it(*what))

    def function(network, *what, score_function=None):
        networks.check_network(network)
        compiled, slot = kept_ones(networks.structure(network), network, *what, score_function is None)
        return slot.bind(compiled, score_function)

    function.cache_clear = kept_ones.cache_clear
    return function


@kept
def gradient_function(network, layers, method, grid, by_class):
    """images, class ids → {"maps": raw maps, one array per layer}. One trace for all batch sizes.

    For Grad-CAM also what `harvest` takes, of the first layer. Where a method is not among `cams.RAW_MAPS`: the feature
    maps, their "gradients" if it is among `cams.SMOOTHED`, and the chosen "class_ids".
    """
    networks.check_layers(network, layers)
    grids = [find_grid(network, name, grid) for name in layers]
    slot, is_curved = networks.ScoreFunction(), method in cams.CURVED

    def as_maps(arrays):
        return [as_map(tf.cast(array, tf.float32), own) for array, own in zip(arrays, grids, strict=True)]

    def step(images, class_ids):
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as second:
            with tf.GradientTape(watch_accessed_variables=False) as tape:

                def call(name, operation, *args, **kwargs):
                    apply = _call_twice_differentiable if is_curved else networks.call_layer
                    output = apply(name, operation, *args, **kwargs)
                    for each in (tape, second)[: 1 + is_curved] if name in layers else ():
                        each.watch(output)
                    return output

                output, calls = networks.run_layer_by_layer(network, images, call=call)
                scores = tf.cast(networks.scores(network, output, calls), tf.float32)
                score, scale = _scaled(_select(scores, class_ids, None if by_class else slot, method), calls)
            watched = [calls[name].output for name in layers]
            result = {"maps": as_maps(watched)}
            if method not in cams.RAW_MAPS:
                result["class_ids"] = _chosen(scores, class_ids) if by_class else class_ids
                if method not in cams.SMOOTHED:
                    return result
            slopes = _gradient(tape, score, watched, scale)
        gradients = as_maps(slopes)
        if method in cams.SMOOTHED:
            return result | {"gradients": gradients}
        arrays = [result["maps"], gradients, *([as_maps(_bends(second, slopes, watched))] if is_curved else ())]
        result = {"maps": [cams.RAW_MAPS[method](*own) for own in zip(*arrays, strict=True)]}
        if method == "gradcam":
            weights, embeddings = tf.reduce_mean(gradients[0], axis=(1, 2)), networks.head(output, calls).inputs[0]
            result |= {"channel_weights": weights, "embeddings": tf.cast(embeddings, tf.float32), "scores": scores}
        return result

    return compiled(step, *_images_and_ids(network)), slot


@kept
def guided_function(network, by_class):
    """images, class ids → guided gradients of the images."""
    replaced, slot = [], networks.ScoreFunction()

    def step(images, class_ids):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            call = guided.call_layer(replaced)
            output, calls = networks.run_layer_by_layer(network, images, call=call, as_typed=False)
            scores = tf.cast(networks.scores(network, output, calls), tf.float32)
            score, scale = _scaled(_select(scores, class_ids, None if by_class else slot), calls)
        return _gradient(tape, score, [images], scale)[0]

    function = compiled(step, *_images_and_ids(network))
    if not replaced:
        raise ValueError(
            "Guided backpropagation needs a ReLU or ReLU6; without one it is the plain gradient. "
            f"Received: {network.name!r}, which has none"
        )
    return function, slot


@kept
def full_gradient_function(network, by_class):
    """images, class ids → score (n,), its gradient times the image, and {layer: its gradient times the layer's bias}.

    The bias of a layer y = L(x) is y − J·x, with the Jacobian J of L at x: of a convolution its bias, of a batch norm
    the offset that it comes to, of a ReLU nothing. With these shares the sum over all is the score, whatever L is.
    """
    slot = networks.ScoreFunction()

    def step(images, class_ids):
        biases, outputs = {}, {}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)

            def note(name, function, tensors):
                with tf.autodiff.ForwardAccumulator(tensors, tensors) as forward:
                    output = function()
                    carried = forward.jvp(output, tf.UnconnectedGradients.ZERO)
                if tf.is_tensor(output) and output.dtype.is_floating:
                    tape.watch(output)
                    outputs[name], biases[name] = output, tf.cast(output - carried, tf.float32)
                return output

            def call(name, operation, *args, **kwargs):
                given = {id(x): x for x in tf.nest.flatten((args, kwargs)) if tf.is_tensor(x) and x.dtype.is_floating}
                function = functools.partial(networks.call_layer, name, operation, *args, **kwargs)
                return note(name, function, [*given.values()])

            output, calls = networks.run_layer_by_layer(network, images, call=call, as_typed=False)
            logits = networks.find_logits(network)
            behind = calls[logits.name].inputs if logits and logits.without_activation else [output]
            scores = note("scores", lambda: tf.cast(networks.scores(network, output, calls), tf.float32), behind)
            score, scale = _scaled(_select(scores, class_ids, None if by_class else slot), calls)
        image_slope, *slopes = _gradient(tape, score, [images, *outputs.values()], scale)
        parts = {name: slope * biases[name] for name, slope in zip(outputs, slopes, strict=True)}
        return {"score": score / scale, "image": image_slope * images, "biases": parts}

    return compiled(step, *_images_and_ids(network)), slot


@kept
def attention_function(network, by_class):
    """images, class ids → the gradient of each layer's attention, one array (n, heads, T, T) or (n, T, T) per layer.

    Attention is what a softmax gives over as many keys as queries. It is found in the compiled graph, whatever layer,
    or code within a layer, computes it.
    """
    slot = networks.ScoreFunction()

    def step(images, class_ids):
        output, calls = networks.run_layer_by_layer(network, images)
        found = [op.outputs[0] for op in output.graph.get_operations() if op.type == "Softmax"]
        found = [x for x in found if x.shape.rank in (3, 4) and x.shape[-1] == x.shape[-2] and x.shape[-1]]
        scores = tf.cast(networks.scores(network, output, calls), tf.float32)
        score, scale = _scaled(_select(scores, class_ids, None if by_class else slot), calls)
        slopes = tf.gradients(score, found, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.cast(x, tf.float32) / scale for x in slopes]

    function = compiled(step, *_images_and_ids(network))
    if not function.structured_outputs:
        raise ValueError(f"LeGrad needs a transformer. Received: {network.name!r}, which has no attention")
    return function, slot


@kept
def masked_score_function(network, by_class):
    """image (H, W, 3), feature maps (h, w, C), class id, shares (P,), noise (P, H, W) → scores of the masked image.

    mask_c is the map, scaled to [0, 1]; what the network sees is the image times a share of mask_c, with the noise
    added to the mask. Returns the mean over P, (C,).
    """
    slot = networks.ScoreFunction()

    def step(image, maps, class_id, shares, noise):
        masks = tf.image.resize(tf.transpose(maps, (2, 0, 1))[..., None], tf.shape(image)[:2])  # (C,H,W,1)

        def of_pass(pair):
            noisy = masks + pair[1][None, ..., None]
            low, high = (reduce(noisy, axis=(1, 2), keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
            seen = image * (pair[0] * tf.math.divide_no_nan(noisy - low, high - low))
            output, calls = networks.run_layer_by_layer(network, seen)
            scores = tf.cast(networks.scores(network, output, calls), tf.float32)
            return _select(scores, tf.fill(tf.shape(scores)[:1], class_id), None if by_class else slot)

        passes = tf.map_fn(of_pass, (shares, noise), fn_output_signature=tf.TensorSpec((None,), tf.float32))
        return tf.reduce_mean(passes, axis=0)

    shapes = network.inputs[0].shape[1:], (None,) * 3, (), (None,), (None,) * 3
    inputs = [(shape, tf.float32 if shape else tf.int32) for shape in shapes]
    return compiled(step, *inputs), slot


@kept
def ablated_score_function(network, layer, by_class):
    """image (H, W, 3), class id, keep (B, C) of 1 and 0 → scores (B,) with the layer's other channels set to 0."""
    slot = networks.ScoreFunction()

    def step(image, class_id, keep):
        def call(name, operation, *args, **kwargs):
            output = networks.call_layer(name, operation, *args, **kwargs)
            if name != layer:
                return output
            return output * tf.cast(keep[:, None] if output.shape.rank == 3 else keep[:, None, None], output.dtype)

        images = tf.tile(image[None], (tf.shape(keep)[0], 1, 1, 1))
        output, calls = networks.run_layer_by_layer(network, images, call=call)
        scores = tf.cast(networks.scores(network, output, calls), tf.float32)
        return _select(scores, tf.fill(tf.shape(scores)[:1], class_id), None if by_class else slot)

    shape = network.inputs[0].shape[1:]
    return compiled(step, (shape, tf.float32), ((), tf.int32), ((None, None), tf.float32)), slot


def _bends(tape, slopes, sources):
    """Of each source A and its gradient g the second derivative along A, H·A."""
    found = []
    for slope, source in zip(slopes, sources, strict=True):
        bend = tape.gradient(slope, source, tf.cast(source, slope.dtype), tf.UnconnectedGradients.ZERO)
        found.append(tf.where(tf.math.is_finite(bend), bend, tf.zeros_like(bend)))  # what float16 cannot hold
    return found


def _call_twice_differentiable(name, operation, *args, **kwargs):
    """`networks.call_layer`; layer normalisation is written out: tf.nn.moments has a wrong second derivative."""
    is_norm = type(operation) is keras.layers.LayerNormalization and not getattr(operation, "rms_scaling", False)
    if not is_norm or len(args) != 1 or list(np.ravel(operation.axis)) not in ([-1], [len(args[0].shape) - 1]):
        return networks.call_layer(name, operation, *args, **kwargs)
    x = tf.cast(args[0], tf.float32) if args[0].dtype.size < 4 else args[0]
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    y = centred * tf.math.rsqrt(tf.reduce_mean(centred * centred, axis=-1, keepdims=True) + operation.epsilon)
    y = y if operation.gamma is None else y * tf.cast(operation.gamma, y.dtype)
    y = y if operation.beta is None else y + tf.cast(operation.beta, y.dtype)
    return tf.cast(y, operation.compute_dtype)


def compiled(step: Callable, *inputs) -> Callable:
    """The function, traced once for inputs of these (shape, dtype)."""
    # As Keras' own: layers are not rewritten by AutoGraph, and errors keep their one sentence.
    return tf.function(step, autograph=False).get_concrete_function(*(tf.TensorSpec(*pair) for pair in inputs))


def _images_and_ids(network):
    return ((None, *network.inputs[0].shape[1:]), tf.float32), ((None,), tf.int32)


def _select(scores, class_ids, slot, method=None):
    """What is differentiated, (n,)."""
    if slot and method == "finercam":
        raise ValueError("Finer-CAM compares classes: pass class ids as targets. Received: a function")
    if slot:
        score = tf.py_function(slot, [scores], tf.float32)
        score.set_shape((None,))
        return score
    if scores.shape.rank != 2:
        raise ValueError(
            f"Class ids need a network with scores (N, K); pass a function as targets. Received: {scores.shape}"
        )
    chosen = _chosen(scores, class_ids)
    if method == "finercam":
        return cams.finer_score(scores, chosen)
    return tf.gather(scores, chosen, axis=1, batch_dims=1)


def _chosen(scores, class_ids):
    return tf.where(class_ids == BEST, tf.argmax(scores, axis=1, output_type=tf.int32), class_ids)


def _scaled(score, calls):
    """The score, times a constant where gradients pass through float16; and that constant."""
    is_half = any(getattr(call.operation, "compute_dtype", "") == "float16" for call in calls.values())
    return (score * HALF_SCALE, HALF_SCALE) if is_half else (score, 1.0)


def _gradient(tape, score, sources, scale):
    gradients = tape.gradient(score, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    gradients = [tf.cast(array, tf.float32) / scale for array in gradients]
    if scale == 1:
        return gradients
    return [tf.where(tf.math.is_finite(array), array, 0.0) for array in gradients]  # what float16 cannot hold
