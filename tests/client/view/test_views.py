"""What people see: whatever a token holds stays text, in a notebook and in a terminal."""

from html.parser import HTMLParser

import pyarrow as pa
import pytest

from actstore import (
    Answer,
    DirectionAblation,
    EncodedText,
    Examples,
    FeaturePage,
    FeatureStatistics,
    FeatureTable,
    Lab,
    LogitLens,
    SaeCheck,
    TextAblation,
    TokenR2,
)
from actstore._view import glossary as _definitions
from actstore._view import text as _text
from tests.client.workers.saes import told
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
HOSTILE_SAE = "<u>sae</u>"
# What a page is made of: nothing that runs, and nothing that is loaded.
TAGS = {
    "p",
    "b",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "div",
    "span",
    "br",
    "svg",
    "rect",
    "title",
    "details",
} | {"summary"}
ATTRIBUTES = {"style", "title", "width", "height", "role", "x", "y", "fill", "open"}
PROVENANCE = told(model="<b>model</b>", run="<i>run</i>")


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


def hostile_examples(how: str = "strongest") -> Examples:
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
    return Examples(table=pa.table(row), sae=HOSTILE_SAE, feature=1, how=how, provenance=PROVENANCE)


def hostile_statistics() -> FeatureStatistics:
    histogram = pa.table({"low": [0.0, 1.0], "high": [1.0, 2.0], "count": [9, 1]})
    return FeatureStatistics(
        table=histogram, sae=HOSTILE_SAE, feature=1, tokens=100, active_tokens=10, density=0.1, maximum=2.0,
        mean_when_active=0.6, provenance=PROVENANCE,
    )  # fmt: skip


def hostile_lens() -> LogitLens:
    rows = [
        {"feature": 1, "end": end, "rank": rank, "token": rank, "text": text, "logit": 1.0 - 2.0 * (end == "bottom")}
        for end in ("top", "bottom")
        for rank, text in enumerate(HOSTILE, start=1)
    ]
    table = pa.Table.from_pylist(rows)
    return LogitLens(
        table=table, sae=HOSTILE_SAE, side="decoder", fold_norm=True, masked_tokens=2, provenance=PROVENANCE
    )


def hostile_ablations() -> tuple[TextAblation, DirectionAblation]:
    positions = list(range(len(HOSTILE)))
    tokens = pa.table({"position": positions, "text": HOSTILE, "activation": [0.5] * len(HOSTILE)})
    effects = [(first, None, HOSTILE[first], None, 1.0, -1.0) for first in positions]
    effects += [(0, last, HOSTILE[0], HOSTILE[last], 0.0, -3.0) for last in positions[1:]]
    names = ("first", "second", "first_text", "second_text", "activation", "change")
    of_text = TextAblation(
        table=pa.Table.from_pylist([dict(zip(names, effect, strict=True)) for effect in effects]),
        sae=HOSTILE_SAE, feature=1, ablation="delete", tokens=tokens, position=positions[-1], activation=2.0,
        provenance=PROVENANCE,
    )  # fmt: skip
    rows = [
        {"position": i, "text": HOSTILE[i], "activation": 1.0, "next_text": text, "log_probability": -1.0,
         "ablated": -2.0, "change": -1.0}
        for i, text in enumerate(HOSTILE[1:])
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    return of_text, DirectionAblation(table=table, sae=HOSTILE_SAE, feature=1, provenance=PROVENANCE)


def hostile_features(title: str) -> FeatureTable:
    table = pa.table({"feature": [2, 3], "cosine": [0.5, 0.25]})
    return FeatureTable(
        table=table, sae=HOSTILE_SAE, title=title, definitions=_definitions.NEIGHBORS, provenance=PROVENANCE
    )


def hostile_page() -> FeaturePage:
    of_text, of_direction = hostile_ablations()
    r2 = pa.table({"feature": [1], "token_r2": [0.5]})
    return FeaturePage(
        statistics=hostile_statistics(),
        token_r2=TokenR2(table=r2, sae=HOSTILE_SAE, feature=1, provenance=PROVENANCE),
        top=hostile_examples(),
        uniform=hostile_examples("<i>uniform</i>"),
        quantiles=hostile_examples("by quantile"),
        cofiring=hostile_features("Fires with"),
        logit_lens=hostile_lens(),
        neighbors=hostile_features("Near"),
        ablated_text=(of_text,),
        ablated_direction=(of_direction,),
        missing={"<b>part</b>": "<script>alert(1)</script>\x1b[31m"},
    )


def test_hostile_tokens_are_inert_in_a_notebook() -> None:
    seen = Seen(hostile_page()._repr_html_())
    assert seen.tags <= TAGS
    assert seen.attributes <= ATTRIBUTES
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
    seen = Seen(hostile_examples()._repr_html_())
    tints = [float(style.partition(")")[0].rpartition(",")[2]) for style in seen.styles if "rgba" in style]
    assert tints == pytest.approx([i / (len(HOSTILE) - 1) for i in range(len(HOSTILE))], abs=0.01)
    assert any(title.endswith("| activation 3 | position 13") for title in seen.titles)


def hostile_answers() -> list[Answer]:
    of_text, of_direction = hostile_ablations()
    tokens = pa.table({"position": [0], "token": [1], "text": HOSTILE[:1], "special": [False]})
    activations = pa.table({"position": [0], "feature": [1], "activation": [2.0]})
    quantities = pa.table({"quantity": ["<b>l0</b>"], "value": [1.0], "claimed": [None]})
    return [
        of_text,
        of_direction,
        hostile_lens(),
        EncodedText(table=activations, sae=HOSTILE_SAE, tokens=tokens, provenance=PROVENANCE),
        SaeCheck(table=quantities, sae=HOSTILE_SAE, warnings=tuple(HOSTILE), provenance=PROVENANCE),
    ]


@pytest.mark.parametrize("answer", hostile_answers(), ids=lambda answer: type(answer).__name__)
def test_hostile_tokens_are_inert_in_every_answer(answer: Answer) -> None:
    seen = Seen(answer._repr_html_())
    assert seen.tags <= TAGS
    assert seen.attributes <= ATTRIBUTES
    assert all(character.isprintable() or character == "\n" for character in repr(answer))


def test_a_whole_page_loads_nothing_and_follows_the_readers_theme() -> None:
    seen = Seen(hostile_page().to_html())
    assert seen.tags <= TAGS | {"html", "head", "meta", "style", "body"}
    assert "light dark" in hostile_page().to_html()
    assert seen.attributes <= ATTRIBUTES | {"lang", "charset", "name", "content"}


def test_every_number_of_a_page_says_what_it_is() -> None:
    titles = Seen(hostile_page()._repr_html_()).titles
    for name, says in {**_definitions.STATISTICS, **_definitions.NEIGHBORS}.items():
        assert name == "feature" or f"{name}: {says}" in titles
    assert f"logit: {_definitions.LENS['logit']}" in titles
    assert _definitions.EXAMPLES["activation"] in titles


def test_an_index_has_no_thousands_apart() -> None:
    table = pa.table({"feature": [12345], "active_tokens": [67890]})
    shown = FeatureTable(table=table, sae="sae", title="Found", definitions={}, provenance=PROVENANCE)
    assert "12345" in repr(shown)
    assert "67,890" in repr(shown)


def test_changes_are_tinted_by_their_sign() -> None:
    of_text, _ = hostile_ablations()
    seen = Seen(of_text._strip_html())
    tinted = [style for style in seen.styles if "rgba" in style]
    assert all("rgba(86,180,233,0.50)" in style for style in tinted)  # -1 of 2, below 0
    assert len(tinted) == len(HOSTILE)


def test_on_a_strong_tint_the_ink_is_black() -> None:
    styles = [style for style in Seen(hostile_examples()._repr_html_()).styles if "rgba" in style]
    assert "color:#000" not in styles[0].replace("background-color", "")
    assert styles[-1].endswith(";color:#000")


def test_white_space_is_visible() -> None:
    assert _text.visible(" a\n\tb\r") == "·a↵⇥b␍"


def test_examples_show_the_strongest_token(lab: Lab) -> None:
    shown = repr(lab.run("planted").feature(SAE, FIRING).top(1, tokens_before=2, tokens_after=0))
    assert "·word18·word21«·word24»  (<b>.txt, sequence 6, position 6)" in shown
    assert "excluded: bos · model planted-model" in shown


def test_a_feature_that_never_fires_says_so(lab: Lab) -> None:
    page = lab.run("planted").feature(SAE, SILENT).page(live=False)
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
