"""Models at the Hugging Face hub: ``hf://OWNER/NAME`` stands for a model folder. Needs the package huggingface_hub."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from utils import imaging

SCHEME = "hf:"  # all that `Path` leaves of hf://
NEEDS = "Models at the hub need the package huggingface_hub; run `pip install huggingface_hub`."
CARD_FILES = ("MODEL_CARD.md", "README.md")  # the same card: in a model folder, at the hub
FILES = (  # of a model folder; nothing else travels
    "meta.json", "network.weights.h5", "network.keras", "faster_gradcam.npz", "anomaly.npz", "explainer.tflite",
    "explainer_int8.tflite", "README.md",
)
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def local(path: str | os.PathLike) -> Path:
    """The path itself; of ``hf://OWNER/NAME`` or ``hf://OWNER/NAME/FILE`` the copy in the hub's cache, made if need be.

    Where ``FASTER_GRAD_CAM_OFFLINE=1`` forbids downloads, it is the copy that is there.

    Raises:
        ValueError: huggingface_hub is not installed, or the name is no OWNER/NAME.
        OSError: there is no such model, it is private, or the hub cannot be reached.

    Example:
        >>> local("data/models/janken").as_posix()
        'data/models/janken'
    """
    path = Path(path)
    if path.parts[:1] != (SCHEME,):
        return path
    repository = check_name("/".join(path.parts[1:3]))
    is_offline = os.environ.get("FASTER_GRAD_CAM_OFFLINE") == "1"
    with reaching(repository) as hub:
        folder = hub.snapshot_download(repository, allow_patterns=list(FILES), local_files_only=is_offline)
    return Path(folder, *path.parts[3:])


def check_name(repository: str) -> str:
    """The name; ValueError if it is no OWNER/NAME."""
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"Expected OWNER/NAME of a model at the hub. Received: {imaging.printable(repository)}")
    return repository


@contextmanager
def reaching(repository: str) -> Iterator[ModuleType]:
    """The package huggingface_hub; what goes wrong with it meanwhile becomes one sentence."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise ValueError(NEEDS) from None
    try:
        yield huggingface_hub
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"There is no model {repository} at the hub, or it is private: then `hf auth login` is needed first."
        ) from None
    except errors.HFValidationError as error:
        raise ValueError(_first_line(error)) from None
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise PermissionError(f"The hub forbids this for {repository}; `hf auth login` logs in.") from None
        raise OSError(f"The hub failed on {repository}: {_first_line(error)}") from None
    except errors.LocalEntryNotFoundError:
        raise OSError(f"The hub cannot be reached, and there is no whole copy of {repository} here.") from None
    except Exception as error:  # of the network: which class it is depends on the version of the package
        raise OSError(f"Cannot reach the hub for {repository}: {_first_line(error)}") from None


def _first_line(error):
    return imaging.printable((str(error).strip().splitlines() or [type(error).__name__])[0][:200])
