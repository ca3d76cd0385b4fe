"""A trained tokenizer is a function of its texts."""

from __future__ import annotations

import json
import subprocess
import sys

from training.tasks.wordpiece import SPECIAL, train_wordpiece

TRAIN = """
import json, random
from training.tasks.wordpiece import train_wordpiece
words = random.Random(0)
texts = [" ".join(words.choice("alpha beta gamma delta déjà naïve ab ba bb aa".split()) for _ in range(9)) for _ in range(200)]
print(json.dumps(train_wordpiece(texts, vocab_size=120).get_vocab(), sort_keys=True))
"""  # noqa: E501


def test_another_process_trains_the_same_tokenizer() -> None:
    first, second = (
        subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, check=True).stdout for _ in range(2)
    )
    assert first == second
    assert len(json.loads(first)) > 40


def test_characters_are_ordinary_tokens_and_the_rarest_are_unknown() -> None:
    texts = ["the cat sat on the mat"] * 50 + ["".join(chr(0x4E00 + number) for number in range(200))]
    tokenizer = train_wordpiece(texts, vocab_size=100)
    assert tokenizer.tokenize("the mat tat") == ["the", "mat", "t", "##at"]
    assert tokenizer.tokenize(chr(0x4E00 + 199)) == ["[UNK]"]
    assert sorted(tokenizer.all_special_tokens) == sorted(SPECIAL)
    assert len(tokenizer) <= 100
