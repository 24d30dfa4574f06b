"""Train the bundled language model: `python -m models.language_model`.

`pystdlib` is a GPT-NeoX (the Pythia architecture) of four layers. One batch row in ten is a random sequence of tokens
that repeats, so that the model learns induction; the card that `models.card` writes says how well it does. Checkpoints
are kept at log-spaced steps, as in Pythia.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from models import corpus
from models.tokenizer import CONTEXT_LENGTH, FOLDER, VOCABULARY_SIZE

BOS_ID = 0
BATCH_ROWS = 16
REPEATED_ROWS = 2
MATRIX_LEARNING_RATE = 0.02
OTHER_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.01
WARM_UP_STEPS = 100
REPORT_EVERY_STEPS = 250
REPORT_WINDOWS = 100
SEED = 0
STEPS = 4500
REVISION_STEPS = (64, 128, 256, 512, 1024, 2048)


def build_model() -> GPTNeoXForCausalLM:
    """Four layers of width 128. The unembedding is tied, which leaves room for the checkpoints."""
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=CONTEXT_LENGTH,
        rotary_pct=0.25,
        use_parallel_residual=True,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=BOS_ID,
        attn_implementation="sdpa",
    )
    return GPTNeoXForCausalLM(config)


def token_stream(tokenizer: PreTrainedTokenizerFast, *, held_out: bool) -> Int[Tensor, " token"]:
    """All files of one side of the split, one after the other, with a BOS between them."""
    stream: list[int] = []
    for text in corpus.texts(held_out=held_out):
        stream.append(BOS_ID)
        stream.extend(tokenizer(text)["input_ids"])
    return torch.tensor(stream, dtype=torch.int64)


def batches(stream: Int[Tensor, " token"], steps: int) -> Iterator[Int[Tensor, "row position"]]:
    """Random windows of the stream, each after a BOS; the last rows are repeated random sequences."""
    generator = np.random.default_rng(SEED)
    body = CONTEXT_LENGTH - 1
    for _ in range(steps):
        rows = np.zeros((BATCH_ROWS, CONTEXT_LENGTH), dtype=np.int64)
        starts = generator.integers(0, len(stream) - body, BATCH_ROWS - REPEATED_ROWS)
        for row, start in enumerate(starts):
            rows[row, 1:] = stream[start : start + body].numpy()
        for row in range(BATCH_ROWS - REPEATED_ROWS, BATCH_ROWS):
            snippet = generator.integers(1, VOCABULARY_SIZE, generator.integers(8, body // 2 + 1))
            rows[row, 1:] = np.resize(snippet, body)
        yield torch.from_numpy(rows)


def next_token_loss(model: GPTNeoXForCausalLM, rows: Int[Tensor, "row position"]) -> Tensor:
    """Nats per predicted token, one number per token, flat."""
    logits = model(rows, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCABULARY_SIZE), rows[:, 1:].reshape(-1), reduction="none"
    )


@torch.no_grad()
def window_losses(
    model: GPTNeoXForCausalLM, stream: Int[Tensor, " token"], max_windows: int | None = None
) -> Float[Tensor, " window"]:
    """Mean nats per token of each of the stream's consecutive windows, each after a BOS."""
    body = CONTEXT_LENGTH - 1
    windows = stream[: len(stream) // body * body].reshape(-1, body)[:max_windows]
    rows = torch.cat([torch.full((len(windows), 1), BOS_ID), windows], dim=1)
    return torch.cat([next_token_loss(model, part).reshape(len(part), -1).mean(dim=1) for part in rows.split(32)])


def held_out_loss(model: GPTNeoXForCausalLM, stream: Int[Tensor, " token"], max_windows: int | None = None) -> float:
    """Mean nats per token over windows of held-out files."""
    return window_losses(model, stream, max_windows).mean().item()


@torch.no_grad()
def induction_gap(model: GPTNeoXForCausalLM, rows: int = 64, half: int = 64) -> float:
    """Mean loss on random tokens minus mean loss on their exact repetition, in nats (Olsson et al. 2022)."""
    generator = torch.Generator().manual_seed(SEED)
    snippet = torch.randint(1, VOCABULARY_SIZE, (rows, half), generator=generator)
    text = torch.cat([torch.full((rows, 1), BOS_ID), snippet, snippet], dim=1)
    loss = next_token_loss(model, text).reshape(rows, 2 * half)
    return (loss[:, :half].mean() - loss[:, half:].mean()).item()


def optimisers(model: GPTNeoXForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else (Jordan et al. 2024)."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY),
    ]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    if step < WARM_UP_STEPS:
        return (step + 1) / WARM_UP_STEPS
    progress = (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def save(model: GPTNeoXForCausalLM, folder: Path) -> None:
    """Saves the weights as float16, half the bytes; the configuration says float32, so a loader computes in that."""
    tied = {"lm_head.weight"}  # the same tensor as the embedding, and restored from it at loading
    halved = {name: value.half() for name, value in model.state_dict().items() if name not in tied}
    model.save_pretrained(folder, state_dict=halved)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)


def train(folder: Path, steps: int) -> None:
    """Writes final weights to `folder`, earlier ones to `folder/revisions`, and the losses to `training.jsonl`."""
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, model_max_length=int(1e9))  # files are cut into windows later
    train_stream = token_stream(tokenizer, held_out=False)
    held_stream = token_stream(tokenizer, held_out=True)
    model = build_model()
    rules = optimisers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(rule, lambda step: learning_rate_factor(step, steps)) for rule in rules
    ]
    started = time.monotonic()
    save(model, folder / "revisions" / "step0")
    with (folder / "training.jsonl").open("w") as log:
        for step, rows in enumerate(batches(train_stream, steps), start=1):
            loss = _update(model, rows, rules, schedules)
            if step in REVISION_STEPS:
                save(model, folder / "revisions" / f"step{step}")
            if step % REPORT_EVERY_STEPS == 0 or step in REVISION_STEPS or step == steps:
                report = {
                    "step": step,
                    "tokens": step * rows.numel(),
                    "train_loss": round(loss, 3),
                    "held_out_loss": round(held_out_loss(model, held_stream, REPORT_WINDOWS), 3),
                    "induction_gap": round(induction_gap(model, 16), 3),
                    "seconds": round(time.monotonic() - started),
                }
                print(json.dumps(report), file=log, flush=True)
    save(model, folder)


def _update(model: GPTNeoXForCausalLM, rows: Tensor, rules: list, schedules: list) -> float:
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(model, rows).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for rule, schedule in zip(rules, schedules, strict=True):
        rule.step()
        schedule.step()
        rule.zero_grad(set_to_none=True)
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.steps)


if __name__ == "__main__":
    main()
