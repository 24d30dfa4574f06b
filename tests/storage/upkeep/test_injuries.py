"""A byte that changed, an object that is cut, gone, or another's: every object of a small store, every question.

An injury may cost an answer. It never changes one: each question gives what it gave before, or an error that names the
object; and `fsck` names it too.
"""

import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import actstore
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.errors import ActstoreError, CorruptObject
from actstore_storage.features.segments import Segment
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import (
    old_token_texts_key,
    sae_files_key,
    sae_key,
    token_texts_key,
    training_checkpoint_key,
    training_key,
    wanted_key,
)
from actstore_storage.format.records import canonical_json, seal, unseal
from actstore_storage.format.specification import RunRecord
from actstore_storage.parquet.pages import footer_bytes
from actstore_storage.parquet.reading import open_product
from actstore_storage.registry.archives import read_archive, write_archive
from actstore_storage.registry.models import ModelRecord, find_registered_model, list_models, register_model
from actstore_storage.registry.saes import (
    SaeModelRecord,
    fetch_sae_files,
    find_registered_sae,
    register_sae,
    store_sae_files,
)
from actstore_storage.registry.token_texts import read_token_texts
from actstore_storage.runs.opening import open_run
from actstore_storage.upkeep import folding
from actstore_storage.upkeep.answer_cache import KeptAnswer, keep, read_kept
from actstore_storage.upkeep.folding import fold_commits
from actstore_storage.upkeep.fsck import check_runs
from tests.run_state import merge_index
from tests.stored_run import FIRING, MODEL, SAE, TOKEN_TEXTS, write_stored_run

RUNS = "folded", "loose"
TRAINED = "trained/sae"
KEPT = "e" * 64, "f" * 64
TABLE = pa.table({"cell": pa.array([1.0, 2.0])})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one shape, one folded, with its index merged; SAEs that were trained here; kept answers."""
    root = tmp_path_factory.mktemp("store")
    bucket, folder = LocalBucket(root), tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as small:
        small.setattr(folding, "BLOCKS", (2, 4))
        write_stored_run(bucket, RUNS[0])
        fold_commits(open_run(bucket, RUNS[0]))
        merge_index(bucket, RUNS[0], SAE, "merge")
        write_stored_run(bucket, RUNS[1], scale=3.0, revision="later")
    [model] = list_models(bucket)
    register_model(bucket, replace(model, revision="later"), TOKEN_TEXTS)
    (folder / "cfg.json").write_text("{}")
    (folder / "quality.json").write_text('{"fvu": 0.25}')
    for name in (TRAINED, "another"):
        store_sae_files(bucket, name, "a" * 64, folder)
        bucket.put(training_key(name), seal({"name": name, "width": 16}))
        write_archive(bucket, training_checkpoint_key(name, 7), shutil.copytree(folder, folder.parent / name[:5]))
        register_sae(bucket, SaeModelRecord(name, "a" * 64, "topk", "resid_post.1", 8, 64, MODEL))
    for run in ("wanted", "wanted-too"):
        bucket.put(wanted_key(run), seal({"run": run, "model": MODEL}))
    for sha256 in KEPT:
        keep(bucket, sha256, KeptAnswer({"of": sha256}, {"cells": TABLE}))
    return root


def questions(root: Path, scratch: Path) -> dict[str, Callable[[], object]]:
    """Each asks anew, through a client and a bucket of its own."""
    bucket = LocalBucket(root)
    found: dict[str, Callable[[], object]] = {}
    for name in RUNS:
        found |= {f"{name} {what}": ask for what, ask in _of_run(lambda name=name: lab(root).run(name))}
    return found | {
        "model": lambda: find_registered_model(bucket, MODEL, ""),
        "sae": lambda: find_registered_sae(bucket, TRAINED),
        "texts": lambda: read_token_texts(bucket, token_texts_key("b" * 64), "b" * 64),
        "files": lambda: _files(lambda folder: fetch_sae_files(bucket, TRAINED, "a" * 64, folder), scratch),
        "training": lambda: _files(
            lambda folder: read_archive(bucket, training_checkpoint_key(TRAINED, 7), folder), scratch
        ),
    }


def lab(root: Path) -> actstore.Lab:
    return actstore.connect(str(root))


def _of_run(run: Callable[[], actstore.Run]) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "itself", lambda: (run().specification, run().provenance, run().tokens_total, run().tokens_committed)
    yield "tokens", lambda: run().tokens().to_pandas().to_dict("list")
    yield "norms", lambda: run().norms().to_pandas().to_dict("list")
    yield "exact norms", lambda: run().norms(exact=True).to_pandas().to_dict("list")
    yield "rows", lambda: run().activations("resid_post.1").to_numpy().tobytes()
    yield "feature", lambda: run().feature(SAE, FIRING).statistics()
    yield "examples", lambda: run().feature(SAE, FIRING).top(3).to_pandas().to_dict("list")


def _files(fetch: Callable[[Path], object], scratch: Path) -> dict[str, bytes]:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    fetch(scratch)
    return {path.name: path.read_bytes() for path in sorted(scratch.iterdir())}


def asked(question: Callable[[], object]) -> tuple[str, str]:
    """The answer in words, or "refused" and what the error says. Nothing registered is no answer."""
    try:
        found = question()
    except (actstore.ActstoreError, ActstoreError) as error:
        refused = error.reason == "OBJECT_CORRUPT" or error.reason.endswith("_NOT_FOUND")
        return ("refused" if refused else error.reason), str(error)
    except KeyError as error:  # of a training's checkpoint
        return "refused", str(error)
    return ("refused", NOT_THERE) if found is None else ("answer", repr(found))


NOT_THERE = "nothing of that name is there"
# Told by their names, as an error of another reason tells of them.
NAMED_OTHERWISE = ("run.json", "token-texts.parquet", "model.json", "sae.json")
# Of these only bytes that nobody reads are without a checksum: of a footer, or between an archive's files.
PARTLY_READ = (".tar", "token-texts.parquet", "/checkpoints/")
# Nothing else in a bucket tells that these were there.
ALONE = ("captures/", "models/planted-model/revisions/", ".tar", "sweeps-kept/")


@dataclass(frozen=True)
class Injured:
    """A store that was hurt at `keys`, and what each of its questions said before."""

    root: Path
    scratch: Path
    before: dict[str, tuple[str, str]]
    keys: tuple[str, ...]

    def check(self, *, gone: bool = False) -> None:
        changed = {name: found for name, found in self._asked() if found != self.before[name]}
        for name, (kind, words) in changed.items():
            if kind == "answer":
                assert gone, (self.keys, name)
                self._check_fewer(name)
            else:
                assert kind == "refused", (self.keys, name, words)
                told = any(key in words or key.endswith(NAMED_OTHERWISE) for key in self.keys)
                assert told, (self.keys, name, words)
        findings = check_runs(LocalBucket(self.root)).findings
        folders = {key.rpartition("/")[0] for key in self.keys}
        named = any(finding.key in self.keys or finding.key.rpartition("/")[0] in folders for finding in findings)
        unread = not changed and any(part in key for part in PARTLY_READ for key in self.keys)
        alone = gone and any(part in key for part in ALONE for key in self.keys)
        of_index = gone and "/segments/" in self.keys[0] and any("/index/" in finding.key for finding in findings)
        of_answer = self.keys[0].startswith("sweeps/") and any(one.key.startswith("sweeps/") for one in findings)
        assert named or unread or alone or of_index or of_answer, (self.keys, findings)

    def _asked(self) -> Iterator[tuple[str, tuple[str, str]]]:
        """Those that may read what was hurt."""
        own = [run for run in RUNS if any(key.startswith(f"runs/{run}/") for key in self.keys)]
        for name, question in questions(self.root, self.scratch).items():
            of_run = name.split()[0] if " " in name else ""
            if of_run in own or (not own and (not of_run or self.keys[0].startswith("tokenizers/"))):
                yield name, asked(question)

    def _check_fewer(self, name: str) -> None:
        """A run without one of its commits says that it is not complete; one without a checkpoint adds up its commits
        instead, in another order.
        """
        [key] = self.keys
        run = lab(self.root).run(name.split()[0])
        if "/checkpoints/" in key:
            assert run.complete
            assert "norms" in name
        else:
            assert "/commits/" in key
            assert not run.complete


@pytest.fixture
def injure(store: Path, tmp_path: Path) -> Iterator[Callable[[dict[str, bytes | None]], Injured]]:
    """Puts other bytes, or none, under keys; what was there before is put back with the next ones."""
    whole: dict[str, bytes] = {}
    before = {name: asked(question) for name, question in questions(store, tmp_path / "scratch").items()}
    assert {kind for kind, _ in before.values()} == {"answer"}

    def put_back() -> None:
        for key, data in whole.items():
            (store / key).parent.mkdir(parents=True, exist_ok=True)
            (store / key).write_bytes(data)

    def hurt(changes: dict[str, bytes | None]) -> Injured:
        put_back()
        for key, data in changes.items():
            whole.setdefault(key, (store / key).read_bytes())
            if data is None:
                (store / key).unlink()
            else:
                (store / key).write_bytes(data)
        return Injured(store, tmp_path / "scratch", before, tuple(changes))

    yield hurt
    put_back()


def objects(store: Path) -> Iterator[tuple[str, bytes]]:
    """One of each kind, and both runs' records; of shards the second one."""
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        key = path.relative_to(store).as_posix()
        if not re.search(r"0000000[02]-attempt|loose/data|0000000[02]\.json|00000002-00000002|another|f{64}|too", key):
            yield key, path.read_bytes()


def contents(store: Path) -> Iterator[tuple[str, bytes]]:
    """Of the objects those that have bytes: some say everything by their names."""
    yield from ((key, data) for key, data in objects(store) if data)


def test_a_sound_store_is_sound(store: Path) -> None:
    assert check_runs(LocalBucket(store)).findings == ()


def test_a_flipped_bit_changes_no_answer(store: Path, injure: Callable[..., Injured]) -> None:
    """Anywhere, and near the end, where Parquet's footers are."""
    rng = np.random.default_rng(14)
    for key, data in contents(store):
        near_the_end = max(0, len(data) - 300)
        for first in (0, near_the_end):
            place = int(rng.integers(first, len(data)))
            injure({key: _flipped(data, place, int(rng.integers(8)))}).check()


@pytest.mark.parametrize("cut", [lambda data: b"", lambda data: data[: len(data) // 2]], ids=["empty", "half"])
def test_an_object_that_was_cut_changes_no_answer(
    cut: Callable[[bytes], bytes], store: Path, injure: Callable[..., Injured]
) -> None:
    for key, data in contents(store):
        injure({key: cut(data)}).check()


def test_an_object_that_is_gone_changes_no_answer(store: Path, injure: Callable[..., Injured]) -> None:
    for key, _ in objects(store):
        injure({key: None}).check(gone=True)


def test_an_object_in_anothers_place_changes_no_answer(store: Path, injure: Callable[..., Injured]) -> None:
    """The same object of the other run, shard, SAE, request or kept answer."""
    others = [
        ("runs/folded/run.json", "runs/loose/run.json"),
        ("runs/folded/commits/00000001.json", "runs/loose/commits/00000001.json"),
        ("runs/loose/commits/00000000.json", "runs/loose/commits/00000001.json"),
        ("captures/wanted.json", "captures/wanted-too.json"),
        ("models/planted-model/model.json", "models/planted-model/revisions/later.json"),
        (sae_key(TRAINED), sae_key("another")),
        (sae_files_key(TRAINED, "a" * 64), sae_files_key("another", "a" * 64)),
        (training_key(TRAINED), training_key("another")),
        (training_checkpoint_key(TRAINED, 7), training_checkpoint_key("another", 7)),
        *(
            (f"runs/loose/data/0000000{shard}-attempt{shard}/{name}.parquet", f"runs/{run}/{name}.parquet")
            for shard, run in ((1, "folded/data/00000001-attempt1"), (0, "loose/data/00000001-attempt1"))
            for name in ("norms", "norm-sketches")
        ),
    ]
    for one, other in others:
        injure({one: (store / other).read_bytes(), other: (store / one).read_bytes()}).check()


def test_kept_answers_are_of_their_own_key(store: Path, injure: Callable[..., Injured]) -> None:
    one, other = (f"sweeps/{sha256}/answer.json" for sha256 in KEPT)
    injure({one: (store / other).read_bytes()})
    assert read_kept(LocalBucket(store), KEPT[0]) is None
    kept = read_kept(LocalBucket(store), KEPT[1])
    assert kept is not None
    assert kept.record == {"of": KEPT[1]}


READERS: dict[str, Callable[[bytes, str], object]] = {
    "runs/folded/run.json": RunRecord.from_json,
    "runs/folded/commits/00000001.json": Commit.from_json,
    "runs/folded/index/planted-sae/segments/00000000-00000002.json": Segment.from_json,
    "models/planted-model/model.json": lambda data, key: unseal(data, key, lambda fields: ModelRecord(**fields)),
    f"sweeps/{KEPT[0]}/answer.json": lambda data, key: unseal(data, key, dict, sealed=True),
}


@pytest.mark.parametrize("key", READERS)
def test_no_byte_of_a_record_can_change(key: str, store: Path) -> None:
    """Also where records without a hash are read, as those of earlier formats are."""
    data, read, rng = (store / key).read_bytes(), READERS[key], np.random.default_rng(20)
    read(data, key)
    hurt = [_flipped(data, place, int(rng.integers(8))) for place in range(len(data))]
    hurt += [data[:end] for end in range(0, len(data), 17)]
    hurt += [data + b" ", data + b"\n", data + data, data[:-2] + b'","a":1}']
    for changed in hurt:
        with pytest.raises(CorruptObject) as caught:
            read(changed, key)
        assert caught.value.details["value"] == key


def test_no_byte_of_a_footer_can_change(store: Path, injure: Callable[..., Injured]) -> None:
    """Row groups' statistics are there, by which readers of features skip rows, and pages' checksums are not of it."""
    commit = open_run(LocalBucket(store), "loose").commits[1]
    key = commit.objects[f"index-{SAE}"].key
    data, rng = (store / key).read_bytes(), np.random.default_rng(7)
    for place in range(len(data) - footer_bytes(data), len(data)):
        injure({key: _flipped(data, place, int(rng.integers(8)))})
        with pytest.raises(CorruptObject) as caught, open_product(LocalBucket(store), commit, f"index-{SAE}"):
            pytest.fail(f"byte {place} may change")
        assert caught.value.details["value"] == key


@pytest.mark.parametrize("name", ["run.json", "commits/00000001.json"])
def test_a_record_without_its_hash_is_damaged(name: str, store: Path, injure: Callable[..., Injured]) -> None:
    key = f"runs/loose/{name}"
    injure({key: canonical_json(unseal((store / key).read_bytes(), key, dict))})
    with pytest.raises(CorruptObject, match="has no record_sha256"):
        open_run(LocalBucket(store), "loose")


def test_records_of_earlier_formats_have_no_hash_and_nothing_that_was_not_there(store: Path) -> None:
    key = "runs/loose/run.json"
    fields = unseal((store / key).read_bytes(), key, dict) | {"format_version": 3}
    assert RunRecord.from_json(canonical_json(fields), key).tokens_total == 69
    other = {**fields, "specification": {**fields["specification"], "max_tokens": 7}}
    for damaged in (
        canonical_json(fields) + b"\n",
        canonical_json(fields | {"more": 1}),
        canonical_json(other),
        canonical_json(fields).replace(b'{"attention', b'{"device":"gpu","attention', 1),
    ):
        with pytest.raises(CorruptObject):
            RunRecord.from_json(damaged, key)


def test_commits_that_are_gone_are_put_back_from_a_checkpoint(store: Path, injure: Callable[..., Injured]) -> None:
    """Where the run is captured again, as fsck says."""
    key = "runs/folded/commits/00000001.json"
    whole = (store / key).read_bytes()
    injure({key: None})
    bucket = LocalBucket(store)
    assert [(found.kind, found.key) for found in check_runs(bucket).findings] == [("missing", key)]
    with pytest.MonkeyPatch.context() as small:
        small.setattr(folding, "BLOCKS", (2, 4))
        assert fold_commits(open_run(bucket, "folded")) == [key]
    assert (store / key).read_bytes() == whole


def test_files_of_an_sae_that_nothing_was_recorded_of_are_checked_by_their_folders_name(tmp_path: Path) -> None:
    """As an earlier version stored them."""
    bucket, files = LocalBucket(tmp_path), {"cfg.json": b"{}", "sae_weights.safetensors": b"numbers"}
    sha256 = hashlib.sha256(b"".join(files.values())).hexdigest()
    for name, data in files.items():
        bucket.put(f"saes/old/files/{sha256}/{name}", data)
    bucket.put(training_key("old"), canonical_json({"name": "old"}))
    record = SaeModelRecord("old", sha256, "topk", "resid_post.1", 8, 64, MODEL)
    bucket.put(sae_key("old"), canonical_json(asdict(record)))
    assert find_registered_sae(bucket, "old") == record
    assert check_runs(bucket).findings == ()
    key = f"saes/old/files/{sha256}/sae_weights.safetensors"
    bucket.put(key, b"number5")
    assert [(found.kind, found.key) for found in check_runs(bucket).findings] == [("damaged", key)]


def test_keys_that_nobody_writes_are_told(store: Path) -> None:
    own = ["models/planted-model/old.json", "tokenizers/texts", "saes/another/notes.txt"]
    names = ["runs/loose/notes", "notes.txt", "elsewhere/notes", *own]
    bucket = LocalBucket(store)
    for name in names:
        bucket.put(name, b"")
    verdict = check_runs(bucket)
    assert verdict.sound
    told = ["runs/loose/notes", "notes.txt", "elsewhere/", *own]
    assert [(found.kind, found.key) for found in verdict.findings] == [("unknown", name) for name in told]
    for name in names:
        bucket.delete(name)


def _flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


def test_texts_that_are_gone_beside_those_of_an_earlier_version_are_missed(tmp_path: Path) -> None:
    """Readers would take the earlier ones, which show some tokens otherwise."""
    bucket = LocalBucket(tmp_path)
    write_stored_run(bucket)
    key = token_texts_key("b" * 64)
    bucket.put(old_token_texts_key("b" * 64), _old_texts())
    assert check_runs(bucket).findings == ()
    bucket.delete(key)
    assert {("missing", key)} == {(found.kind, found.key) for found in check_runs(bucket).findings}


def _old_texts() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": TOKEN_TEXTS}), sink)
    return sink.getvalue()
