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

TEMPLATES = Path(__file__).parent / "cards"


def measured(folder: Path, held_out: torch.Tensor) -> tuple[float, float, float]:
    """Held-out loss, its mean over tokens and median over windows, and the induction gap, all in nats."""
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses = recipe.window_losses(model, held_out)
    return losses.mean().item(), losses.median().item(), recipe.induction_gap(model)


def revision_rows(held_out: torch.Tensor) -> list[tuple[int, float, float, float]]:
    folders = (FOLDER / "revisions").glob("step*")
    steps = sorted(int(folder.name.removeprefix("step")) for folder in folders)
    return [(step, *measured(FOLDER / "revisions" / f"step{step}", held_out)) for step in steps]


def write_model_card() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, model_max_length=int(1e9))
    held_out = recipe.token_stream(tokenizer, held_out=True)
    train = recipe.token_stream(tokenizer, held_out=False)
    loss, median, gap = measured(FOLDER, held_out)
    rows = revision_rows(held_out)
    model = recipe.build_model()
    card = (
        (TEMPLATES / "pystdlib.md")
        .read_text()
        .format(
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
            seen=recipe.STEPS * recipe.BATCH_ROWS * CONTEXT_LENGTH / 1e6,
            held_out=loss,
            held_out_median=median,
            gap=gap,
            date=datetime.datetime.now(datetime.UTC).date(),
            before=max(step for step, _, _, revision_gap in rows if revision_gap < 1),
            after=min(step for step, _, _, revision_gap in rows if revision_gap >= 1),
            revisions="\n".join(_table_row(f"step{row[0]}", *row) for row in rows),
            final=_table_row("(main)", recipe.STEPS, loss, median, gap),
        )
    )
    (FOLDER / "README.md").write_text(card)


def _table_row(revision: str, step: int, loss: float, median: float, gap: float) -> str:
    seen = step * recipe.BATCH_ROWS * CONTEXT_LENGTH / 1e6
    return f"| {revision} | {step:,} | {seen:.2f} M | {loss:.3f} | {median:.3f} | {gap:.2f} |"


def write_sae_card() -> None:
    folder = sae.MODELS / sae.NAME
    quality = json.loads((folder / "quality.json").read_text())
    card = (
        (TEMPLATES / "sae.md")
        .read_text()
        .format(
            name=sae.NAME,
            hook=sae.HOOK,
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
    )
    (folder / "README.md").write_text(card)


if __name__ == "__main__":
    write_model_card()
    write_sae_card()
