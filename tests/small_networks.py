"""Small random networks of the kinds that are not built in: transformer, U-Net, several inputs and outputs."""

import keras
from keras import layers


@keras.saving.register_keras_serializable("tests")
class Tokens(layers.Layer):
    """Patches (N, h, w, C) as tokens (N, T, C), a class token in front of them if wanted, positions added."""

    def __init__(self, class_token=True, **kwargs):
        super().__init__(**kwargs)
        self.class_token = class_token

    def build(self, shape):
        n_tokens = shape[1] * shape[2] + self.class_token
        if self.class_token:
            self.token = self.add_weight(shape=(1, 1, shape[3]), initializer="random_normal", name="token")
        self.positions = self.add_weight(shape=(1, n_tokens, shape[3]), initializer="random_normal", name="positions")

    def call(self, patches):
        x = keras.ops.reshape(patches, (-1, patches.shape[1] * patches.shape[2], patches.shape[3]))
        if self.class_token:
            token = keras.ops.tile(self.token, (keras.ops.shape(x)[0], 1, 1))
            x = keras.ops.concatenate([token, x], axis=1)
        return x + self.positions

    def get_config(self):
        return super().get_config() | {"class_token": self.class_token}


def small_transformer(size, *, patch=4, depth=2, width=8, heads=2, n_classes=5, class_token=True):
    """A vision transformer; its head sees the class token, or the mean of the patches where there is none."""
    inputs = keras.Input((*size, 3))
    x = layers.Conv2D(width, patch, patch, name="patches")(inputs)
    x = Tokens(class_token, name="tokens")(x)
    for n in range(depth):
        y = layers.LayerNormalization(epsilon=1e-5, name=f"block_{n}_norm1")(x)
        y = layers.MultiHeadAttention(heads, width // heads, name=f"block_{n}_attention")(y, y)
        x = layers.Add(name=f"block_{n}_add1")([x, y])
        y = layers.LayerNormalization(epsilon=1e-5, name=f"block_{n}_norm2")(x)
        y = layers.Dense(2 * width, "gelu", name=f"block_{n}_dense1")(y)
        x = layers.Add(name=f"block_{n}_add2")([x, layers.Dense(width, name=f"block_{n}_dense2")(y)])
    x = layers.LayerNormalization(epsilon=1e-5, name="norm")(x)
    x = x[:, 0] if class_token else layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(n_classes, name="head")(x))


def small_unet(side=16, n_classes=3):
    """Images → logits of each pixel (N, side, side, n_classes), with a softmax behind them."""
    inputs = keras.Input((side, side, 3))
    top = layers.Conv2D(4, 3, padding="same", activation="relu", name="down")(inputs)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="bottom")(layers.MaxPooling2D()(top))
    x = layers.Concatenate()([layers.UpSampling2D()(x), top])
    x = layers.Conv2D(5, 3, padding="same", activation="relu", name="up")(x)
    x = layers.Conv2D(n_classes, 1, name="logits")(x)
    return keras.Model(inputs, layers.Softmax(name="shares")(x))


def two_by_two(side=12):
    """An image and a number in; a class of four and a measure out."""
    image, number = keras.Input((side, side, 3), name="image"), keras.Input((2,), name="number")
    maps = layers.Conv2D(6, 3, activation="relu", name="maps")(image)
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(maps), number])
    hidden = layers.Dense(8, "tanh", name="hidden")(x)
    outputs = [layers.Dense(4, "softmax", name="kind")(hidden), layers.Dense(1, name="measure")(hidden)]
    return keras.Model([image, number], outputs)
