"""Measure the bundled model and SAE and write their cards: `python -m models.card`."""

import datetime
import json
import platform
from pathlib import Path

import torch
from transformers import AutoTokenizer, GPTNeoXForCausalLM

from models import language_model as recipe
from models import sae
from models.tokenizer import CONTEXT_LENGTH, FOLDER, VOCABULARY_SIZE

MODEL_CARD = """---
license: other
license_name: psf-2.0-derived
library_name: transformers
pipeline_tag: text-generation
tags: [gpt_neox, interpretability, python]
---
# pystdlib

A GPT-NeoX (the Pythia architecture) language model of {layers} layers, width {width}, {heads} heads and context
{context}, trained on the source of Python's standard library. {parameters:,} parameters; the unembedding is tied to the
embedding. It is small enough to live in this repository and large enough to be worth interpreting: it writes plausible
Python and it has learnt induction.

| | |
|---|---|
| data | {train_files} source files of Python {python}'s standard library, {train_tokens:,} tokens; {held_files} files, one in twenty by a hash of the path, were never trained on |
| tokenizer | byte-level BPE of {vocabulary:,} entries, trained on the same files; id 0 is `<|bos|>`; nothing is added by itself |
| recipe | `make models`: {steps:,} steps of {rows} x {context} tokens ({seen:.1f} M in all), {repeated} rows of each batch a random snippet repeated; Muon for the matrices inside the blocks, AdamW for the rest, warm-up and cosine; bfloat16 autocast on CPU |
| stored as | float16 safetensors, to be computed in float32 |
| held-out loss | **{held_out:.3f} nats per token** over {held_tokens:,} tokens of files it never saw, in windows of {context} |
| induction | on 64 random tokens repeated once, the mean loss of the second half is **{gap:.2f} nats** below the first |
| date | {date} |

## Revisions

Checkpoints at log-spaced steps, under `revisions/`. Induction appears between steps {before} and {after}.

| revision | step | tokens seen | held-out loss | induction, nats |
|---|---|---|---|---|
{revisions}

## Limits

A toy. It knows Python's surface, a few idioms and names, and how to copy; it does not write working programs. The
training text is under the Python Software Foundation License; the weights are derived from it.
"""

SAE_CARD = """---
license: other
license_name: psf-2.0-derived
library_name: saelens
tags: [sparse-autoencoder, interpretability]
---
# {name}

A TopK sparse autoencoder on `{hook}` of [pystdlib](../pystdlib), in SAELens's on-disk format:
`SAE.load_from_disk("models/{name}")`.

| | |
|---|---|
| width | {width} features, {expansion}x the residual stream |
| architecture | TopK, k = {k}, with SAELens's auxiliary loss for dead features |
| data | {train_rows:,} activations that actstore captured from the training files, BOS left out, seen {epochs:.1f} times in random order |
| recipe | `make models`: SAELens's trainer, {samples:,} samples in batches of {batch:,}, Adam at 1e-3 with cosine |
| L0 | {l0:.2f} features on a held-out token |
| FVU | {fvu:.4f} of the variance about the mean unexplained, on {held_rows:,} held-out tokens |
| dead features | {dead:.1%} fire on none of these tokens |
| date | {date} |
"""


def measured(folder: Path, held_out: torch.Tensor, max_windows: int | None) -> tuple[float, float]:
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return recipe.held_out_loss(model, held_out, max_windows), recipe.induction_gap(model)


def revision_rows(held_out: torch.Tensor) -> list[tuple[int, float, float]]:
    folders = (FOLDER / "revisions").glob("step*")
    steps = sorted(int(folder.name.removeprefix("step")) for folder in folders)
    return [(step, *measured(FOLDER / "revisions" / f"step{step}", held_out, recipe.REPORT_WINDOWS)) for step in steps]


def write_model_card() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, model_max_length=int(1e9))
    held_out = recipe.token_stream(tokenizer, held_out=True)
    train = recipe.token_stream(tokenizer, held_out=False)
    loss, gap = measured(FOLDER, held_out, None)
    rows = revision_rows(held_out)
    model = recipe.build_model()
    tokens_of_a_step = recipe.BATCH_ROWS * CONTEXT_LENGTH
    card = MODEL_CARD.format(
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        heads=model.config.num_attention_heads,
        context=CONTEXT_LENGTH,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        train_files=int((train == recipe.BOS_ID).sum()),
        held_files=int((held_out == recipe.BOS_ID).sum()),
        train_tokens=len(train),
        held_tokens=len(held_out),
        python=platform.python_version(),
        vocabulary=VOCABULARY_SIZE,
        steps=recipe.STEPS,
        rows=recipe.BATCH_ROWS,
        repeated=recipe.REPEATED_ROWS,
        seen=recipe.STEPS * tokens_of_a_step / 1e6,
        held_out=loss,
        gap=gap,
        date=datetime.datetime.now(datetime.UTC).date(),
        before=max(step for step, _, revision_gap in rows if revision_gap < 1),
        after=min(step for step, _, revision_gap in rows if revision_gap >= 1),
        revisions="\n".join(
            f"| step{step} | {step:,} | {step * tokens_of_a_step / 1e6:.2f} M | {revision_loss:.3f} | {revision_gap:.2f} |"
            for step, revision_loss, revision_gap in [*rows, (recipe.STEPS, loss, gap)]
        ).replace(f"| step{recipe.STEPS} |", "| (main) |"),
    )
    (FOLDER / "README.md").write_text(card)


def write_sae_card() -> None:
    folder = sae.MODELS / sae.NAME
    quality = json.loads((folder / "quality.json").read_text())
    layer, kind = sae.SITE.split(".")[1], sae.SITE.split(".")[0]
    card = SAE_CARD.format(
        name=sae.NAME,
        hook=f"blocks.{layer}.hook_{kind}",
        width=sae.WIDTH,
        expansion=sae.WIDTH // recipe.build_model().config.hidden_size,
        k=sae.K,
        train_rows=quality["train_rows"],
        epochs=sae.SAMPLES / quality["train_rows"],
        samples=sae.SAMPLES,
        batch=sae.BATCH_ROWS,
        l0=quality["l0"],
        fvu=quality["fvu"],
        held_rows=quality["held_out_rows"],
        dead=quality["dead_share"],
        date=datetime.datetime.now(datetime.UTC).date(),
    )
    (folder / "README.md").write_text(card)


if __name__ == "__main__":
    write_model_card()
    write_sae_card()
