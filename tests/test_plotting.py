"""What the notebooks show beyond plain figures."""

import base64
import sys

import matplotlib.pyplot as plt
import pytest

from utils import plotting

PNG = b"\x89PNG\r\n"


@pytest.fixture
def slider():
    drawn = []

    def draw(option):
        drawn.append(option)
        return plt.Figure(figsize=(1 + len(drawn), 1))

    return plotting.Slider(["early", "middle", "late"], draw, otherwise=plt.Figure(figsize=(1, 1))), drawn


def test_slider_draws_where_it_stops_and_only_once(slider):
    pytest.importorskip("ipywidgets")
    slider, drawn = slider
    choice, picture = slider.box().children
    first = bytes(picture.value)
    assert first.startswith(PNG) and drawn == ["early"]
    choice.value = "late"
    assert bytes(picture.value).startswith(PNG) and picture.value != first
    choice.value = "early"
    assert picture.value == first and drawn == ["early", "late"]


def test_slider_gives_the_front_end_a_picture_as_well(slider):
    pytest.importorskip("ipywidgets")
    bundle = slider[0]._repr_mimebundle_(include=None, exclude=None)
    assert bundle[plotting.WIDGET]["model_id"]
    assert base64.b64decode(bundle["image/png"]).startswith(PNG)
    assert bundle["text/plain"] == "<Slider with 3 stops>"


def test_without_widgets_the_picture_stands_there(slider, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    bundle = slider[0]._repr_mimebundle_()
    assert set(bundle) == {"image/png", "text/plain"}
    assert slider[1] == []
