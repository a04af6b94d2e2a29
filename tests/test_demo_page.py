"""The page that `make demo` writes, made here of the stored notebook: it shows everything, from any folder, offline."""

import re
from html.parser import HTMLParser

import nbformat
import notebooks
import pytest


class Reader(HTMLParser):
    """The tags with their attributes, in order, and the text between them (style sheets apart)."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text, self.styles, self.open = [], "", "", None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open = tag

    def handle_data(self, data):
        if self.open == "style":
            self.styles += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(notebooks.ROOT / "Demo.ipynb", as_version=4)


@pytest.fixture(scope="module")
def page(notebook):
    return Reader(notebooks.page(notebook, notebooks.ROOT))


def test_refers_to_nothing_outside(page):
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object"), (tag, attributes)
        for name in {"src", "href", "srcset", "poster", "data"} & set(attributes):
            allowed = ("#", "https://") if tag == "a" else ("data:",)
            assert attributes[name].startswith(allowed), (tag, name, attributes[name][:200])
    assert "@import" not in page.styles
    assert set(re.findall(r"url\(['\"]?(\w+:|.{9})", page.styles)) <= {"data:"}


def test_leads_with_the_picture(page):
    picture = next(i for i, (tag, _) in enumerate(page.tags) if tag == "img")
    code = next(i for i, (_, attributes) in enumerate(page.tags) if "jp-CodeCell" in (attributes.get("class") or ""))
    assert picture < code
    assert page.tags[picture][1]["src"].startswith("data:image/png;base64,")
    assert page.tags[picture][1]["alt"]


def test_holds_every_picture(page, notebook):
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    drawn = sum(any(kind.startswith("image/") for kind in data) for data in outputs)
    written = sum(len(re.findall(r"!\[.+?\]\(data/", c.source)) for c in notebook.cells if c.cell_type == "markdown")
    assert drawn >= 5 and written >= 1
    assert sum(tag == "img" for tag, _ in page.tags) == drawn + written


def test_hides_the_setup_code_alone(page, notebook):
    assert "#@title" not in page.text and "subprocess" not in page.text
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum("jp-CodeCell" in (attributes.get("class") or "") for _, attributes in page.tags) == len(code) - 1


def test_has_a_title_and_no_formula(page, notebook):
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    assert page.text.strip().startswith(title)
    assert not [cell.source for cell in notebook.cells if cell.cell_type == "markdown" and "$" in cell.source]
