"""A file knows of a field or a question where it names it, and not where it speaks of it."""

from pathlib import Path

import pytest

from tests.house_rules.touched_files import FIELDS, QUESTIONS, Probe, touched

SERVICES = Path("proto/actstore_api/v1/service.proto")
FIELD = Probe("a field", ("sink_ratio",))
QUESTION = Probe("a question", ("TokenizeText",), ("TextTokens", "lab.tokens"))


def _is_touched(probe: Probe, root: Path, text: str, name: str = "client/file.py") -> bool:
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return touched(probe, root) == [Path(name)]


@pytest.mark.parametrize(
    "code",
    [
        "sink_ratio",
        "request.sink_ratio",
        "request.inner().sink_ratio",
        "f(sink_ratio=1)",
        "def f(*, sink_ratio): ...",
        "def _check_sink_ratio(): ...",
        "class SinkRatio: ...",
        "from a import sink_ratio",
        "from a import SINK_RATIO as ratio",
        "class A:\n    sink_ratio: float = 0.0",
        "match a:\n    case A(sink_ratio=b): ...",
        "getattr(a, 'sink_ratio')",
        "add_argument('--sink-ratio')",
        "f'sink_ratio: {x}'",
        "default_sink_ratio_of_run",
    ],
)
def test_a_name_in_code_counts(tmp_path: Path, code: str) -> None:
    assert _is_touched(FIELD, tmp_path, code)


@pytest.mark.parametrize(
    "code",
    [
        "# sink_ratio",
        '"""sink_ratio"""',
        'def f():\n    """Takes sink_ratio."""',
        'class A:\n    a: int\n    """Not sink_ratio."""',
        "sink",
        "ratio_sink",
        "kitchensink_ratio",
        "sink_ratios",
    ],
)
def test_prose_and_other_names_do_not_count(tmp_path: Path, code: str) -> None:
    assert not _is_touched(FIELD, tmp_path, code)


@pytest.mark.parametrize(
    "code",
    [
        "TokenizeText",
        "TokenizeTextRequest()",
        "stub.TokenizeText",
        "def tokenize_text(): ...",
        "TextTokens",
        "lab.tokens(a)",
    ],
)
def test_a_question_is_known_by_its_names_and_its_call(tmp_path: Path, code: str) -> None:
    assert _is_touched(QUESTION, tmp_path, code)


@pytest.mark.parametrize(
    "code", ["run.tokens()", "tokens", "text_tokens", "def tokens(): ...", "Tokenize", "lab().tokens"]
)
def test_what_only_sounds_like_a_question_does_not_count(tmp_path: Path, code: str) -> None:
    assert not _is_touched(QUESTION, tmp_path, code)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("message A {\n  optional double sink_ratio = 1;\n}", True),
        ("// sink_ratio\nmessage A {}", False),
        ("/* of\n sink_ratio */ message A {}", False),
        ("message A { int32 a = 1; // sink_ratio\n}", False),
    ],
)
def test_the_contract_counts_without_its_comments(tmp_path: Path, text: str, counts: bool) -> None:
    assert _is_touched(FIELD, tmp_path, text, "proto/a.proto") == counts


@pytest.mark.parametrize("name", ["proto/a_pb2.py", "tests/test_a.py", "client/a.md", "proto/a_pb2_grpc.py"])
def test_generated_code_tests_and_prose_do_not_count(tmp_path: Path, name: str) -> None:
    assert not _is_touched(FIELD, tmp_path, "sink_ratio", name)


@pytest.mark.parametrize("probe", FIELDS, ids=lambda probe: probe.subject)
def test_fields_that_are_followed_are_in_the_contract(root: Path, probe: Probe) -> None:
    assert ".proto" in {path.suffix for path in touched(probe, root)}


@pytest.mark.parametrize("probe", QUESTIONS, ids=lambda probe: probe.subject)
def test_questions_that_are_followed_are_verbs_of_the_contract(root: Path, probe: Probe) -> None:
    assert SERVICES in touched(probe, root)
