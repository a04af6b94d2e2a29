"""The house the code lives in: its rooms, their size, which way imports go, and how calls read."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
UTILS = ROOT / "utils"
WINGS = ("networks", "metrics", "render", "storage", "commands")
FOUNDATION = {"imaging", "repro", "runtime"}  # of the top level, what the wings below it may use as well
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(UTILS.rglob("*.py"))}
FUNCTIONS = [
    (path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
]


def n_lines(paths):
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def room(module):
    """Of "utils.render.hands" the wing, "render"; of a module of the top level its name."""
    return (module.split(".") + [""])[1]


def imports(path):
    """The modules of this project that a file imports, as dotted names."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "utils":
            names = [alias.name for alias in node.names]
            yield from (f"utils.{name}" for name in names) if node.module == "utils" else [node.module]


def test_the_top_level_is_short_enough_to_be_read():
    top = [path for path in TREES if path.parent == UTILS]
    print(f"top level: {len(top)} files, {n_lines(top)} lines; the whole package: {n_lines(TREES)} lines")
    assert len(top) <= 18 and n_lines(top) <= 3400
    assert n_lines(TREES) <= 15000


def test_a_file_is_read_in_one_sitting_and_a_function_at_one_glance():
    sizes = {f"{path.stem}.{node.name}": node.end_lineno - node.lineno + 1 for path, node in FUNCTIONS}
    longest = sorted(sizes, key=sizes.get)[-5:]
    print("longest functions:", ", ".join(f"{name} {sizes[name]}" for name in longest))
    assert max(sizes.values()) <= 60 and sum(size > 45 for size in sizes.values()) <= 3
    assert max(n_lines([path]) for path in TREES) <= 450


def test_imports_go_one_way():
    for path in TREES:
        own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for module in imports(path):
            other = room(module)
            if own in ("commands", "__main__") or other == own:
                continue
            assert other != "commands", f"{path} imports {module}"
            if own in WINGS:
                assert other in FOUNDATION or other in WINGS, f"{path} imports {module}, which is above it"


def test_a_call_can_be_read_without_the_signature():
    ours = {node.name for _, node in FUNCTIONS} | {
        node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    }
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", None))
                assert name not in ours or len(node.args) <= 4, f"{path}:{node.lineno} {name}"


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(TREES[path])


def test_readme_is_read_in_some_minutes():
    n_words = len(re.findall(r"\S+", (ROOT / "README.md").read_text(encoding="utf-8")))
    print(f"README: {n_words} words")
    assert n_words <= 1600
