"""The keys of objects in a bucket. docs/reference/format.md describes them in words."""

from actstore_storage.bucket import check_name
from actstore_storage.errors import BadRequest
from actstore_storage.format.blocks import block_name

RUNS = "runs"
MODELS = "models"
TOKENIZERS = "tokenizers"
SAES = "saes"
WANTED = "captures"
QUEUED = "captures-queued"
KEPT = "sweeps"
KEPT_LIST = "sweeps-kept"
# Top-level folders, of which a used store has at least one.
TOP_FOLDERS = (RUNS, MODELS, TOKENIZERS, SAES, WANTED, QUEUED, KEPT, KEPT_LIST)


def storage_name(name: str, field: str) -> str:
    """Turns a model's or SAE's name into one folder: the `/` of a hub id becomes `--`, as in the hub's own cache.

    Hub ids never contain `--`. Refusing it in other names too ensures that two names never share a folder.
    """
    if "--" in name:
        message = f"{field} {name!r} contains '--', which is reserved: it replaces '/' in the store"
        raise BadRequest(message, reason="NAME_INVALID", field=field, value=name, allowed="no '--'")
    for part in name.split("/"):
        check_name(part, field)
    return check_name(name.replace("/", "--"), field)


def run_key(run: str) -> str:
    return f"{RUNS}/{check_name(run, 'run')}/run.json"


def commits_folder(run: str) -> str:
    return f"{RUNS}/{check_name(run, 'run')}/commits"


def commit_key(run: str, shard: int) -> str:
    return f"{commits_folder(run)}/{shard:08d}.json"


def data_folder(run: str) -> str:
    return f"{RUNS}/{check_name(run, 'run')}/data"


def wanted_key(run: str) -> str:
    return f"{WANTED}/{check_name(run, 'run')}.json"


def queued_key(run: str) -> str:
    return f"{QUEUED}/{check_name(run, 'run')}.json"


def checkpoints_folder(run: str) -> str:
    return f"{RUNS}/{check_name(run, 'run')}/checkpoints"


def checkpoint_key(run: str, shards: range) -> str:
    return f"{checkpoints_folder(run)}/{block_name(shards)}.parquet"


def checkpoint_sketches_key(run: str, shards: range) -> str:
    """The key of the sketches of a checkpoint: next to the checkpoint, with a name that readers of
    checkpoints ignore.
    """
    return f"{checkpoint_key(run, shards).removesuffix('.parquet')}.norm-sketches.parquet"


def indexes_folder(run: str) -> str:
    return f"{RUNS}/{check_name(run, 'run')}/index"


def segments_folder(run: str, sae: str) -> str:
    """The folder of an index's manifests. It contains only manifests, because readers list it, and the objects are
    many.
    """
    return f"{indexes_folder(run)}/{storage_name(sae, 'sae')}/segments"


def segment_key(run: str, sae: str, shards: range) -> str:
    return f"{segments_folder(run, sae)}/{block_name(shards)}.json"


def merge_folder(run: str, sae: str, shards: range, attempt: str) -> str:
    folder = check_name(f"{block_name(shards)}-{check_name(attempt, 'attempt')}", "attempt")
    return f"{indexes_folder(run)}/{storage_name(sae, 'sae')}/objects/{folder}"


def segment_object_key(run: str, sae: str, shards: range, attempt: str, name: str) -> str:
    return f"{merge_folder(run, sae, shards, attempt)}/{check_name(name, 'name')}.parquet"


def object_key(run: str, shard: int, attempt: str, product: str) -> str:
    folder = check_name(f"{shard:08d}-{check_name(attempt, 'attempt')}", "attempt")
    return f"{RUNS}/{check_name(run, 'run')}/data/{folder}/{check_name(product, 'product')}.parquet"


def features_product(sae: str) -> str:
    return f"features-{storage_name(sae, 'sae')}"


def index_product(sae: str) -> str:
    return f"index-{storage_name(sae, 'sae')}"


def statistics_product(sae: str) -> str:
    return f"statistics-{storage_name(sae, 'sae')}"


def model_key(name: str, revision: str) -> str:
    folder = f"{MODELS}/{storage_name(name, 'model')}"
    return f"{folder}/revisions/{storage_name(revision, 'revision')}.json" if revision else f"{folder}/model.json"


def token_texts_key(tokenizer_sha256: str) -> str:
    return f"{_tokenizer_folder(tokenizer_sha256)}/token-texts.parquet"


def old_token_texts_key(tokenizer_sha256: str) -> str:
    """The key of token texts before format version 4. They were never overwritten, so texts by a new rule needed a new
    name.
    """
    return f"{_tokenizer_folder(tokenizer_sha256)}/texts.parquet"


def _tokenizer_folder(tokenizer_sha256: str) -> str:
    return f"{TOKENIZERS}/{check_name(tokenizer_sha256, 'tokenizer_sha256')}"


def sae_products(sae: str) -> tuple[str, str, str]:
    """The objects of a shard for an SAE."""
    return features_product(sae), index_product(sae), statistics_product(sae)


def sae_folder(sae: str) -> str:
    return f"{SAES}/{storage_name(sae, 'sae')}"


def sae_key(sae: str) -> str:
    return f"{sae_folder(sae)}/sae.json"


def sae_files_folder(sae: str, sha256: str) -> str:
    """The folder of an SAE's files. It is named by its content, so that a run finds its SAE even if the name now
    belongs to another one.
    """
    return f"{sae_folder(sae)}/files/{check_name(sha256, 'sha256')}"


def sae_files_key(sae: str, sha256: str) -> str:
    """The key of the record of an SAE's files. It is next to the folder, which contains only the files."""
    return f"{sae_files_folder(sae, sha256)}.json"


def training_key(sae: str) -> str:
    return f"{sae_folder(sae)}/training/training.json"


def training_checkpoints_folder(sae: str) -> str:
    return f"{sae_folder(sae)}/training/checkpoints"


def training_checkpoint_key(sae: str, step: int) -> str:
    return f"{training_checkpoints_folder(sae)}/{step:012d}.tar"


def kept_folder(sha256: str) -> str:
    return f"{KEPT}/{check_name(sha256, 'sha256')}"


def kept_key(sha256: str) -> str:
    return f"{kept_folder(sha256)}/answer.json"


def kept_object_key(sha256: str, attempt: str, name: str) -> str:
    return f"{kept_folder(sha256)}/{check_name(attempt, 'attempt')}/{check_name(name, 'name')}.parquet"


def kept_entry_key(seconds: int, size: int, sha256: str) -> str:
    """The key of an entry in the list of cached answers: when one was stored, and its bytes. In order of time."""
    return f"{KEPT_LIST}/{seconds:012d}-{size:015d}-{check_name(sha256, 'sha256')}"
