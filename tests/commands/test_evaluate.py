"""The table of ways and measures: undefined values stay undefined."""

import numpy as np

from utils.commands import comparison


def result(n_images, accuracy, **measures):
    return {"n_images": n_images, "accuracy": accuracy, "own": "clusters, contrast",
            "measures": {"clusters, contrast": measures}}


def test_the_mean_leaves_out_what_is_not_defined():
    assert comparison._mean(np.array([np.nan, 1, 0])) == 0.5
    assert comparison._mean(np.array([np.nan])) is None and comparison._mean(0.25) == 0.25


def test_the_table_marks_the_weights_that_the_model_has():
    lines = comparison.table(result(4, 0.75, keep=0.5, AP=None)).splitlines()
    assert lines[0] == "4 images that show a class; accuracy 0.7500"
    assert [cell.strip() for cell in lines[-1].strip("|").split("|")] == ["**clusters, contrast**", "0.500", ""]
