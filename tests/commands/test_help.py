"""Every page of help: each option is explained, defaults are real ones, and the examples can be typed."""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from utils import gradcam, networks
from utils.__main__ import COMMANDS, build_parser
from utils.commands import explain, recipe
from utils.commands.common import DEFAULT_MODEL
from utils.networks import classifiers


def parts_of(parser):
    """The parsers below this one, by name."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: part for group in groups for name, part in group.choices.items()}


ALL = build_parser(COMMANDS)
PARSERS = {name: part for name, part in parts_of(ALL).items()}
PARSERS |= {f"anomaly {name}": part for name, part in parts_of(PARSERS["anomaly"]).items()}
every_parser = pytest.mark.parametrize("name", PARSERS)


def test_these_are_the_commands():
    assert set(PARSERS) == {*COMMANDS, "anomaly fit", "anomaly explain", "anomaly evaluate"} and len(COMMANDS) == 12


@every_parser
def test_every_option_has_help_and_no_empty_default(name):
    parser = PARSERS[name]
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help and len(action.help) > 10, action.dest
    text = parser.format_help()
    assert not re.search(r"default:\s+(None|False|True|\[|\()|==SUPPRESS==", text)
    assert text.count("default:") == len(re.findall(r"\(default:", text))


@every_parser
def test_a_default_is_shown_where_there_is_one(name):
    text = PARSERS[name].format_help()
    for action in PARSERS[name]._actions:
        is_number_or_word = isinstance(action.default, int | float | str) and not isinstance(action.default, bool)
        if is_number_or_word and action.default != argparse.SUPPRESS:
            assert re.search(rf"\(default:\s+{re.escape(str(action.default))}\)", text), action.dest


@every_parser
def test_no_path_of_this_machine(name):
    text = re.sub(r"\s+", "", PARSERS[name].format_help())  # long lines are broken
    for folder in (DEFAULT_MODEL.parents[2], Path.home(), Path.cwd()):
        assert str(folder) not in text
    assert not re.search(r"(?<![\w./])/(home|tmp|root|usr|work)/", PARSERS[name].format_help())


@every_parser
def test_two_examples_that_parse(name):
    examples = PARSERS[name].epilog.splitlines()
    assert examples[0] == "examples:" and len(examples) == 3
    for line in examples[1:]:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "utils"] and " ".join(words[3:]).startswith(name)
        assert callable(ALL.parse_args(words[3:]).main)


def test_choices_are_those_that_there_are():
    """They are written out, because what knows them needs TensorFlow."""
    assert set(recipe.BACKBONES) == set(networks.BACKBONES)
    assert list(explain.NETWORKS) == list(classifiers.NETWORKS)
    assert set(explain.METHODS) == {*gradcam.METHODS, *gradcam.OF_ATTENTION}


def test_a_wrong_choice_names_the_right_ones(capsys):
    for arguments in (["train", "--backbone", "vgg"], ["explain", "--network", "vgg"], ["annotate", "--format", "x"]):
        with pytest.raises(SystemExit) as ended:
            ALL.parse_args([*arguments, "--out", "o"])
        assert ended.value.code == 2 and "choose from" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["-h"], ["train", "-h"], ["benchmark", "-h"], ["anomaly", "fit", "-h"]])
def test_help_needs_no_tensorflow(arguments):
    code = (
        "import sys; from utils.__main__ import main\n"
        f"try: main({arguments})\n"
        "finally: assert not {'tensorflow', 'keras', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.startswith("usage: python -m utils"), run.stderr
