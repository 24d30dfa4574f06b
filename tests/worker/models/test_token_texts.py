"""The text of a token alone and in a row, of every kind of tokenizer, against what the library makes of whole texts."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actstore_storage.registry.token_texts import TokenTexts
from actstore_worker.models.tokens.texts import describe_tokens
from tests.made_models.small_models import BOS, metaspace_tokenizer, small_tokenizer

TEXTS = (
    "the quick brown fox\n", "The user’s café – “menu”", "\ttabs and  two spaces", "日本語 🦊 ﷽", "a<b>c</b> <0x41>",
)  # fmt: skip


def wrapped(tokenizer: Tokenizer, **roles: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def gemma() -> Tokenizer:
    """As Gemma's: no space in front, and nothing is stripped."""
    found = metaspace_tokenizer()
    found.normalizer = normalizers.Replace(" ", "▁")
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return found


def metaspace() -> Tokenizer:
    """As T5's and XLM-R's."""
    vocabulary = [("<unk>", 0.0), *((piece, -1.0) for piece in ("▁the", "▁fox", "the", "▁", "f", "o", "x", "t", "he"))]
    found = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    return found


def word_piece() -> Tokenizer:
    pieces = ("[UNK]", "the", "fox", "##es", "##.", ".", "es")
    found = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    return found


def suffixed() -> Tokenizer:
    """As CLIP's and the first GPT's."""
    found = Tokenizer(models.BPE({"fox</w>": 0, "fox": 1, "es</w>": 2}, []))
    found.decoder = decoders.BPEDecoder(suffix="</w>")
    return found


def described(tokenizer: Tokenizer, **roles: str) -> TokenTexts:
    return describe_tokens(wrapped(tokenizer, **roles), 0)


def text_of(found: TokenTexts, tokenizer: Tokenizer, token: str) -> str:
    return found.alone[tokenizer.token_to_id(token)]


@pytest.mark.parametrize("build", [small_tokenizer, metaspace_tokenizer, gemma])
@pytest.mark.parametrize("text", TEXTS)
def test_texts_in_a_row_are_the_text(build: Callable[[], Tokenizer], text: str) -> None:
    tokenizer = build()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    shown = described(tokenizer).in_order(ids)
    assert len(shown) == len(ids)
    in_front = " " if build is metaspace_tokenizer else ""
    assert "".join(shown) == in_front + text
    assert tokenizer.decode(ids) == text  # which strips what was put in front


@pytest.mark.parametrize("build", [small_tokenizer, metaspace_tokenizer, gemma, metaspace, word_piece, suffixed])
def test_tokens_that_differ_differ_in_text(build: Callable[[], Tokenizer]) -> None:
    tokenizer = build()
    found = described(tokenizer).alone
    assert len(set(found)) == len(found) == tokenizer.get_vocab_size()


def test_a_token_keeps_its_space_and_a_byte_is_a_byte() -> None:
    tokenizer = metaspace_tokenizer()
    found = described(tokenizer, bos_token="<s>")
    shown = {
        token: text_of(found, tokenizer, token) for token in ("▁fox", "▁", "<0x0A>", "<0xE2>", "<0x61>", "a", "<s>")
    }
    assert shown == {
        "▁fox": " fox", "▁": " ", "<0x0A>": "\n", "<0xE2>": r"\xe2", "<0x61>": "<0x61>", "a": "a", "<s>": "<s>",
    }  # fmt: skip
    parts = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "’a".encode()]
    assert found.in_order(parts) == ["", "", "’", "a"]
    assert found.in_order(parts[1:]) == [r"\x80", r"\x99", "a"]  # of a window that begins in the middle of a character
    assert found.in_order(parts[:1]) == [r"\xe2"]


def test_other_kinds_of_decoders() -> None:
    for build, expected in (
        (metaspace, {"▁the": " the", "the": "the", "▁": " "}),
        (word_piece, {"the": " the", "##es": "##es", "es": " es", ".": " .", "##.": "##."}),
        (suffixed, {"fox</w>": "fox ", "fox": "fox"}),
    ):
        tokenizer = build()
        found = described(tokenizer)
        assert {token: text_of(found, tokenizer, token) for token in expected} == expected


def test_what_is_not_known_is_shown_as_the_vocabulary_writes_it() -> None:
    """CTC's decoder drops what is repeated, so that no token has a text by itself; and some tokenizers have none."""
    for decoder in (decoders.CTC(), None):
        tokenizer = metaspace()
        tokenizer.decoder = decoder
        assert text_of(described(tokenizer), tokenizer, "▁the") == "▁the"


def test_ids_without_a_token_have_no_text() -> None:
    tokenizer = wrapped(small_tokenizer(), bos_token=BOS)
    found = describe_tokens(tokenizer, len(tokenizer) + 2)
    assert found.alone[0] == BOS
    assert found.alone[-2:] == ("", "")


def test_the_ids_of_a_text() -> None:
    found = TokenTexts(("a", "", "b", "a"))
    assert found.ids == {"a": [0, 3], "b": [2]}
