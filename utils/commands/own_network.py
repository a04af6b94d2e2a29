"""A user's own Keras network from a file, and the names of its classes, for ``explain --network FILE``."""

from pathlib import Path

from utils import imaging, networks
from utils.repro import keras


def read(file: Path, output: str | None = None) -> keras.Model:
    """The network in a ``.keras`` file, in safe mode: code that a file brings along is not run.

    Args:
        output: name or index of the output, where there are several.

    Raises:
        FileNotFoundError, ValueError: no such file, it cannot be read, or it is no network that can be explained.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no network file {imaging.printable(file)}.")
    try:
        network = keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # whatever a foreign file makes Keras raise
        reason = imaging.printable(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        raise ValueError(f"Cannot read {imaging.printable(file)} as a Keras network: {reason[:200]}") from None
    if output is not None:
        network = networks.single(network, output=int(output) if output.lstrip("-").isdecimal() else output)
    networks.check_network(network)
    return network


def class_names(network: keras.Model, file: Path | None) -> list[str]:
    """One name for each score: the lines of the file, or class_0, class_1, ...

    Raises:
        FileNotFoundError, ValueError: no such file, or another number of names.
    """
    n_classes = network.outputs[0].shape[-1]
    if file is None:
        return [f"class_{k}" for k in range(n_classes)]
    if not file.is_file():
        raise FileNotFoundError(f"There is no file of class names {imaging.printable(file)}.")
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"Expected class names as UTF-8 text. Received: {imaging.printable(file)}") from None
    if len(names) != n_classes:
        raise ValueError(f"Expected {n_classes} class names, one per line. Received: {len(names)} in {file.name}")
    return names
