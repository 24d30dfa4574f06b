"""Train the bundled byte-pair tokenizer: `python -m models.tokenizer`.

Byte-level, 4,096 entries, id 0 is `<|bos|>`. It adds no special token automatically: the code that makes a sequence
decides whether it begins with BOS.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models import corpus

FOLDER = Path(__file__).parent / "pystdlib"
BOS = "<|bos|>"
VOCABULARY_SIZE = 4096
CONTEXT_LENGTH = 256


def train() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.texts(held_out=False), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    train().save_pretrained(FOLDER)
    print(f"tokenizer of {VOCABULARY_SIZE} entries in {FOLDER}")
