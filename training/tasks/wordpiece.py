"""A WordPiece tokenizer trained on the data, for models built from scratch: no hub needed."""

from __future__ import annotations

from collections import Counter

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer
from transformers import PreTrainedTokenizerFast

SPECIAL = PADDING, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
ALPHABET_SHARE = 0.25
"""Part of the vocabulary that single characters may take; the rarest ones beyond become [UNK]."""


def train_wordpiece(texts: list[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer of at most `vocab_size` tokens; the texts' labels play no part.

    The same texts give the same tokenizer. The library's trainer alone does not promise that: it numbers the characters
    in the order of a hash map, and its merges follow those numbers. So they are numbered for it, as special tokens of a
    tokenizer that is thrown away.
    """
    texts = [BertNormalizer(lowercase=True).normalize_str(text) for text in texts]
    counts = Counter(letter for text in texts for letter in text if not letter.isspace())
    by_use = sorted(counts, key=lambda letter: (-counts[letter], letter))
    common = sorted(by_use[: int(ALPHABET_SHARE * vocab_size)])
    rare = str.maketrans({letter: " " for letter in counts.keys() - set(common)})
    numbered = [*SPECIAL, *common, *(f"##{letter}" for letter in common)]
    scratch = _tokenizer(WordPiece(unk_token=UNKNOWN))
    trainer = WordPieceTrainer(vocab_size=vocab_size, special_tokens=numbered, show_progress=False)
    scratch.train_from_iterator((text.translate(rare) for text in texts), trainer=trainer)
    tokenizer = _tokenizer(WordPiece(scratch.get_vocab(), unk_token=UNKNOWN))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": PADDING, "unk_token": UNKNOWN, "cls_token": START, "sep_token": END}
    names |= {"bos_token": START, "eos_token": END}  # for language models
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, mask_token=MASK, **names
    )


def _tokenizer(model: WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer
