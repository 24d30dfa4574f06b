"""What is exported, as the programs that it is for read it."""

import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import actstore
from actstore_storage.bucket.opening import open_bucket
from tests.storage.random_run import make_run, write_run

SITE = "resid_post.3"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_safetensors_have_every_row(dtype: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    run = make_run(1, dtype=dtype)
    write_run(open_bucket(str(tmp_path / "store")), run)
    with actstore.connect(str(tmp_path / "store")) as lab:
        files = lab.run("run").export(SITE, tmp_path / "out")
        snapshot = lab.run("run").provenance.snapshot
    *documents, path = sorted((tmp_path / "out").iterdir())
    paths = [path]
    assert len(paths) == files == 1
    found = pq.read_table(*documents)
    assert found["document"].to_pylist() == run.sources.numbers.tolist()
    assert found["source"].to_pylist() == run.sources.source.tolist()
    found = load_file(paths[0])
    assert found["activation"].dtype == getattr(torch, dtype)
    assert found["activation"].view(torch.uint8).numpy().tobytes() == run.dense[SITE].tobytes()
    for name in ("sequence", "position", "document", "token", "flags"):
        np.testing.assert_array_equal(found[name].numpy(), getattr(run.tokens, name))
    with safe_open(paths[0], "np") as file:
        metadata = file.metadata()
    assert (metadata["run"], metadata["site"], metadata["snapshot"]) == ("run", SITE, snapshot)


def test_saelens_reads_whole_contexts(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports deprecate each other
        from sae_lens.training.activations_store import ActivationsStore
    (tmp_path / "store").mkdir()
    run = make_run(4, sequences=40, longest=6, dtype="float32")
    write_run(open_bucket(str(tmp_path / "store")), run)
    with actstore.connect(str(tmp_path / "store")) as lab:
        contexts = lab.run("run").export(SITE, tmp_path / "out", layout="saelens")
    whole = [rows for rows in np.split(np.arange(len(run.tokens.token)), np.flatnonzero(run.tokens.position == 0)[1:])
             if len(rows) == 6]  # fmt: skip
    assert contexts == len(whole) > 3
    store = ActivationsStore(
        model=None, dataset=None, streaming=False, hook_name="blocks.3.hook_resid_post", hook_head_index=None,
        context_size=6, d_in=8, n_batches_in_buffer=2, total_training_tokens=6 * contexts, store_batch_size_prompts=1,
        train_batch_size_tokens=6, prepend_bos=True, normalize_activations="none", device=torch.device("cpu"),
        dtype="float32", cached_activations_path=str(tmp_path / "out"),
    )  # fmt: skip
    for rows in whole:
        activations, token_ids = store.get_raw_llm_batch()
        np.testing.assert_array_equal(activations.numpy(), run.dense[SITE][rows])
        np.testing.assert_array_equal(token_ids.numpy(), run.tokens.token[rows])


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from actstore._cli.main import main

    (tmp_path / "store").mkdir()
    write_run(open_bucket(str(tmp_path / "store")), make_run(1))
    address = ["--address", str(tmp_path / "store"), "--json"]
    assert main(["export", "run", SITE, str(tmp_path / "out"), *address]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 1
    assert main(["export", "run", SITE, str(tmp_path / "out"), *address]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main(["export", "run", "resid_post.1", str(tmp_path / "new"), *address]) == 1
    assert "does not store resid_post.1" in capsys.readouterr().err
    assert main(["check", *address]) == 0
    assert json.loads(capsys.readouterr().out)["sound"]
    assert main(["remove", "run", *address]) == 1
    assert "--yes" in capsys.readouterr().err
    key = next((tmp_path / "store/runs/run/data").glob("*/norms.parquet"))
    key.write_bytes(key.read_bytes()[:-1])
    assert main(["check", *address]) == 3
    assert json.loads(capsys.readouterr().out)["findings"][0]["kind"] == "damaged"
    assert main(["remove", "run", "--yes", *address]) == 0
    assert main(["remove", "run", "--yes", *address]) == 1
    assert "no run 'run'" in capsys.readouterr().err
