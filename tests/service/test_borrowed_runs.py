"""A run over another's rows, as the catalogue shows it."""

from actstore_storage.answers.catalog import run_of
from actstore_storage.bucket import Bucket
from actstore_storage.runs.opening import open_run
from tests.storage.random_run import make_run, write_run
from tests.storage.runs.test_borrowed_rows import encode, new_features, over


def test_it_says_whose_rows_it_has_and_which_saes(local_bucket: Bucket) -> None:
    run = make_run(1)
    write_run(local_bucket, run)
    encode(local_bucket, over(run.record), new_features(run))
    base, borrowed = (run_of(open_run(local_bucket, name)) for name in ("run", "over"))
    assert (base.specification.rows_of, borrowed.specification.rows_of) == ("", "run")
    assert [sae.name for sae in borrowed.saes] == ["sae", "new"]
    assert borrowed.tokens_committed == base.tokens_committed == borrowed.tokens_total
