"""The access file and the tokens in it: how they are made, read strictly, rotated, and read again."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from actstore_service.access import Access, Principal, Role
from actstore_service.access.__main__ import main
from actstore_service.access.access_file import AccessTable, read_access
from actstore_service.access.reloading import Reloaded
from actstore_service.access.tokens import is_whole, new_token, sha256_of
from actstore_storage.errors import ActstoreError, BadRequest

LATER = datetime.now(UTC) + timedelta(days=1)
EARLIER = datetime.now(UTC) - timedelta(days=1)


def entry(name: str, *tokens: str, expires: datetime = LATER, **changes: Any) -> dict[str, Any]:
    kept = [{"sha256": sha256_of(token), "expires": expires.isoformat()} for token in tokens]
    return {"name": name, "roles": ["reader"], "run_prefixes": [f"{name}-"], "tokens": kept} | changes


def written(path: Path, *entries: dict[str, Any], **more: Any) -> str:
    """Written as editors and mounted secrets do it: another file takes the name."""
    scratch = path.with_name("scratch")
    scratch.write_text(json.dumps({"principals": entries, **more}))
    scratch.replace(path)
    return str(path)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def name_of(access: Access, token: str) -> str:
    return access.identify(bearer(token), {}).name


def refusal(access: Access, headers: dict[str, str]) -> ActstoreError:
    with pytest.raises(ActstoreError) as caught:
        access.identify(headers, {})
    assert caught.value.reason == "UNAUTHENTICATED"
    return caught.value


def test_a_new_token_has_a_prefix_and_a_checksum() -> None:
    token = new_token()
    assert re.fullmatch(r"act_[0-9a-f]{72}", token)
    assert token != new_token()
    assert is_whole(token)
    for wrong in (token[:-1], token.replace(token[10], "x" if token[10] != "x" else "y", 1), "act_", f"{token}0"):
        assert not is_whole(wrong)


def test_the_command_prints_a_token_and_the_lines_that_accept_it(capsys: Any, tmp_path: Path) -> None:
    assert main(["new-token", "ada", "--roles", "reader", "writer", "--run-prefixes", "ada-"]) == 0
    token, _, lines = capsys.readouterr().out.partition("\n\n")
    assert token not in lines
    (tmp_path / "access.toml").write_text(lines)
    access = Access(file=str(tmp_path / "access.toml"))
    assert access.identify(bearer(token), {}) == Principal("ada", frozenset({Role.READER, Role.WRITER}), ("ada-",))
    assert main(["check", str(tmp_path / "access.toml")]) == 0
    assert main(["new-token", "no name"]) == 1
    assert "access file" in capsys.readouterr().err


def test_who_is_not_in_the_file_is_not_known(tmp_path: Path) -> None:
    known, other = new_token(), new_token()
    access = Access(file=written(tmp_path / "access", entry("ada", known)))
    assert name_of(access, known) == "ada"
    for headers in ({}, bearer(other), bearer(""), {"authorization": known}, bearer("x" * 9000), bearer("a.b.c")):
        assert "none or a wrong one" in refusal(access, headers).message
    cut = refusal(access, bearer(known[:-3]))
    assert "not whole" in cut.message
    assert known[:-3] not in str(cut.details)


def test_a_token_expires(tmp_path: Path) -> None:
    token = new_token()
    access = Access(file=written(tmp_path / "access", entry("ada", token, expires=EARLIER)))
    assert refusal(access, bearer(token)).message == "the token has expired"


def test_a_token_is_rotated_without_a_moment_at_which_none_is_valid(tmp_path: Path) -> None:
    old, new = new_token(), new_token()
    access = _watching(written(tmp_path / "access", entry("ada", old)))
    written(tmp_path / "access", entry("ada", old, new))
    assert name_of(access, old) == name_of(access, new) == "ada"
    written(tmp_path / "access", entry("ada", new))
    assert name_of(access, new) == "ada"
    refusal(access, bearer(old))


def _watching(file: str) -> Access:
    """Looks at the file at each call, and not once a second."""
    access = Access(file=file)
    assert access._file is not None
    access._file._check_seconds = 0.0
    return access


def test_a_broken_file_keeps_the_old_principals_and_says_so(tmp_path: Path) -> None:
    token = new_token()
    access = _watching(written(tmp_path / "access", entry("ada", token)))
    for breakage in (b'{"principals": [{', b"\xff", b"name = 3"):
        (tmp_path / "access").write_bytes(breakage)
        assert name_of(access, token) == "ada"
        assert access.reloads() == {"access": False}
    (tmp_path / "access").unlink()
    assert name_of(access, token) == "ada"
    written(tmp_path / "access", entry("bob", token))
    assert name_of(access, token) == "bob"
    assert access.reloads() == {"access": True}


def test_a_service_does_not_start_with_a_file_that_is_broken_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "access").write_text("principals = 3")
    for name in ("access", "nowhere"):
        with pytest.raises(BadRequest) as caught:
            Access(file=str(tmp_path / name))
        assert caught.value.details["field"] == "ACTSTORE_ACCESS_FILE"


def test_the_file_is_looked_at_once_in_a_while(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    now, read = [0.0], []
    found = Reloaded("x", [tmp_path / "file"], lambda content: read.append(content), clock=lambda: now[0])
    (tmp_path / "file").write_text("22")
    found.current()
    assert read == [b"1"]
    for now[0] in (1.0, 2.0, 3.0):
        found.current()
    assert read == [b"1", b"22"]  # and not where nothing has changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"naem": "x"}, "unknown field `naem`"),
        ({"roles": ["reader", "king"]}, "king"),
        ({"roles": []}, "roles"),
        ({"run_prefixes": []}, "run_prefixes"),
        ({"run_prefixes": [""]}, "run_prefixes"),
        ({"run_prefixes": "ada"}, "run_prefixes"),
        ({"name": "anonymous"}, "no principal may be named anonymous"),
        ({"name": "a b"}, "name"),
        ({"tokens": [{"sha256": "A" * 64, "expires": LATER.isoformat()}]}, "sha256"),
        ({"tokens": [{"sha256": "a" * 64, "expires": "2030-01-01T00:00:00"}]}, "expires"),
        ({"tokens": [{"sha256": "a" * 64}]}, "expires"),
    ],
)
def test_the_file_is_read_strictly(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_access(json.dumps({"principals": [entry("ada") | change]}).encode())
    assert said in caught.value.message


def _read(*entries: dict[str, Any]) -> AccessTable:
    return read_access(json.dumps({"principals": entries}).encode())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: _read(entry("ada"), entry("ada")), "two principals are named ada"),
        (lambda: _read(entry("ada", "x"), entry("bob", "x")), "two tokens have the hash"),
        (lambda: _read(entry("ada", "x", "y", "z")), "ada has 3 valid tokens"),
        (lambda: _read(entry("a", certificates=["c"]), entry("b", certificates=["c"])), "have the certificate c"),
    ],
)
def test_what_contradicts_itself_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        make()


def test_no_error_of_the_file_quotes_it() -> None:
    """Somebody may have put the token itself where its hash belongs."""
    token = new_token()
    for content in (f'sha256 = "{token}"', f"sha256 = {token}", json.dumps({"principals": [entry("ada") | {
        "tokens": [{"sha256": token, "expires": LATER.isoformat()}]}]})):  # fmt: skip
        with pytest.raises(BadRequest) as caught:
            read_access(content.encode())
        assert token not in f"{caught.value} {caught.value.details}"


def test_the_single_token_is_a_principal_with_every_role() -> None:
    access = Access(token="secret")
    assert access.identify(bearer("secret"), {}) == Principal("shared", frozenset(Role), ("",))
    refusal(access, bearer("secre"))


def test_nobody_is_anonymous_unless_the_operator_says_so() -> None:
    assert refusal(Access(), {}).message.startswith("this service requires a token")
    access = Access(anonymous=frozenset({Role.READER}))
    assert access.identify({}, {}) == Principal("anonymous", frozenset({Role.READER}), ("",))
    refusal(access, bearer("something else"))  # who presents what is wrong is not taken for nobody
