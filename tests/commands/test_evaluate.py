"""The table of ways and measures: folds are pooled by their size, undefined values stay undefined."""

import numpy as np

from utils.commands import evaluate


def result(n_images, accuracy, **measures):
    return {"n_images": n_images, "accuracy": accuracy, "own": "clusters, contrast",
            "measures": {"clusters, contrast": measures}}  # fmt: skip


def test_pooling_weighs_by_the_number_of_images():
    pooled = evaluate.pool([result(10, 1.0, keep=0.5, AP=None), result(30, 0.9, keep=0.9, AP=0.4)])
    assert pooled["n_images"] == 40 and pooled["accuracy"] == 0.925 and "cpu" in pooled["machine"]
    assert pooled["measures"] == {"clusters, contrast": {"keep": 0.8, "AP": 0.4}}
    assert evaluate.pool([result(3, 1.0, AP=None)])["measures"]["clusters, contrast"]["AP"] is None


def test_the_mean_leaves_out_what_is_not_defined():
    assert evaluate._mean(np.array([np.nan, 1, 0])) == 0.5
    assert evaluate._mean(np.array([np.nan])) is None and evaluate._mean(0.25) == 0.25


def test_the_table_marks_the_weights_that_the_model_has():
    lines = evaluate.table(result(4, 0.75, keep=0.5, AP=None)).splitlines()
    assert lines[0] == "4 images that show a class; accuracy 0.7500"
    assert [cell.strip() for cell in lines[-1].strip("|").split("|")] == ["**clusters, contrast**", "0.500", ""]
