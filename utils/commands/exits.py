"""How a command ends: errors as one sentence and an exit code; streams that are closed, odd, or that nobody reads."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from utils import imaging

BAD_INPUT, INTERRUPTED = 2, 130
UNREAD = 141  # 128 + SIGPIPE: what shells report of a program that a pipe ended


def code_of(command: Callable[[], int]) -> int:
    """The exit code of a command, after one sentence on stderr if something is wrong."""
    _mend_streams()
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()  # at Python's own end it would be too late for a sentence
    except BrokenPipeError:  # as by `| head -1`: whoever read has seen enough
        code, sentence = UNREAD, None
    except ModuleNotFoundError as error:  # a board with the light packages only
        sentence = f"error: this command needs the package {error.name}; pip install -r requirements.txt"
        code = BAD_INPUT
    except (ValueError, OSError, ImportError, MemoryError) as error:
        code, sentence = BAD_INPUT, f"error: {' '.join(str(error).split()) or type(error).__name__}"
    except KeyboardInterrupt:
        code, sentence = INTERRUPTED, "interrupted"
    drop_unread(sys.stdout)
    if sentence:
        with suppress(OSError):
            print(imaging.printable(sentence), file=sys.stderr, flush=True)
    drop_unread(sys.stderr)
    return code


def _mend_streams():
    """Open the standard streams that are closed, on nowhere: no file may get their numbers. Let all take any text."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  open until the end
        elif hasattr(stream, "reconfigure"):  # not that of a notebook
            stream.reconfigure(errors="backslashreplace")


def drop_unread(stream) -> None:
    """Write what a stream holds or, where nobody reads it, drop that and all that follows."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
