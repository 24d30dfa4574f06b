"""What people see: whatever a token holds stays text, in a notebook and in a terminal."""

from html.parser import HTMLParser

import pyarrow as pa
import pytest

from actstore import Examples, FeaturePage, FeatureStatistics, Lab, Provenance, _text
from tests.stored_run import FIRING, SAE, SILENT

HOSTILE = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "</span></td><img src=x onerror=alert(1)>",
    "'; background: url(https://example.org)",
    "\x1b[31m\x1b]0;title\x07",
    "\u202eevil\u200b",
    "&lt;b&gt;",
    "\r\n\t ",
]
PROVENANCE = Provenance(model="<b>model</b>", run="<i>run</i>")


class Seen(HTMLParser):
    """The elements, attributes and text that a browser would make of it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.titles: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.titles += [value or "" for name, value in attrs if name == "title"]
        self.styles += [value or "" for name, value in attrs if name == "style"]

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_page() -> FeaturePage:
    activations = [float(i) for i in range(len(HOSTILE))]
    row = {
        "rank": [1],
        "activation": [activations[-1]],
        "sequence": [0],
        "position": [10 + len(HOSTILE) - 1],
        "document": [0],
        "first_position": [10],
        "tokens": [list(range(len(HOSTILE)))],
        "texts": [HOSTILE],
        "activations": [activations],
    }
    examples = Examples(table=pa.table(row), sae="<u>sae</u>", feature=1, provenance=PROVENANCE)
    histogram = pa.table({"low": [0.0, 1.0], "high": [1.0, 2.0], "count": [9, 1]})
    statistics = FeatureStatistics(
        table=histogram, sae="<u>sae</u>", feature=1, tokens=100, active_tokens=10, density=0.1, maximum=2.0,
        mean_when_active=0.6, provenance=PROVENANCE,
    )  # fmt: skip
    return FeaturePage(statistics, examples)


def test_hostile_tokens_are_inert_in_a_notebook() -> None:
    seen = Seen(hostile_page()._repr_html_())
    assert seen.tags <= {"p", "b", "table", "tbody", "tr", "td", "span", "br", "svg", "rect", "title"}
    assert seen.attributes <= {"style", "title", "width", "height", "role", "x", "y", "fill"}
    assert not any("url" in style for style in seen.styles)
    for token in HOSTILE:
        assert _text.visible(token) in seen.text
    assert "<u>sae</u>" in seen.text
    assert "<i>run</i>" in seen.text


def test_hostile_tokens_are_inert_in_a_terminal() -> None:
    shown = repr(hostile_page())
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert "\\x1b[31m" in shown
    assert "\\u202eevil\\u200b" in shown


def test_hostile_names_are_inert_in_a_table(direct: Lab) -> None:
    from actstore import Table

    table = Table(table=pa.table({"<b>name": ["<script>\x1b"]}))
    assert Seen(table._repr_html_()).tags == {"p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert "\x1b" not in repr(table)


def test_each_token_is_tinted_by_its_activation_and_says_its_numbers() -> None:
    seen = Seen(hostile_page().examples._repr_html_())
    tints = [float(style.rpartition(",")[2].rstrip(")")) for style in seen.styles if "rgba" in style]
    assert tints == pytest.approx([i / (len(HOSTILE) - 1) for i in range(len(HOSTILE))], abs=0.01)
    assert seen.titles[3].endswith("| activation 3 | position 13")


def test_white_space_is_visible() -> None:
    assert _text.visible(" a\n\tb\r") == "·a↵⇥b␍"


def test_examples_show_the_strongest_token(lab: Lab) -> None:
    shown = repr(lab.run("planted").feature(SAE, FIRING).top(1, tokens_before=2, tokens_after=0))
    assert "·word18·word21«·word24»  (sequence 6, position 6)" in shown
    assert "excluded: bos · model planted-model" in shown


def test_a_feature_that_never_fires_says_so(lab: Lab) -> None:
    page = lab.run("planted").feature(SAE, SILENT).page()
    assert "never active on 62 tokens" in repr(page)
    assert "never active on 62 tokens" in page._repr_html_()


def test_a_table_is_aligned_and_cut_with_a_word_about_the_rest() -> None:
    from actstore import Table

    table = Table(table=pa.table({"name": ["a", "bb"] * 11, "rows": [1, 1234] * 11}))
    lines = repr(table).splitlines()
    assert lines[:4] == ["22 rows", "name   rows", "a         1", "bb    1,234"]
    assert lines[-1] == "… 2 more rows"


def test_a_histogram_in_a_line() -> None:
    assert _text.spark([0, 1, 16, 64]) == " ▁▄█"
    assert _text.spark([]) == ""
