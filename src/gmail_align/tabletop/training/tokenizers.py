"""The two tokenizers of the tabletop world, learnt from its captions: CLIP's format and GPT-2's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, GPT2Tokenizer

CLIP_LENGTH = 32
"""Longest caption of the tabletop CLIP, in tokens."""
VOCABULARY = 1024
_START, _END = "<|startoftext|>", "<|endoftext|>"


def train_clip_tokenizer(captions: Sequence[str]) -> CLIPTokenizer:
    """Learn a lower-case byte-level BPE with CLIP's end-of-word marks.

    The trainer numbers end-of-word letters in an order that changes from process to process, and
    breaks ties between merges by these numbers; naming the letters as special tokens fixes both.
    """
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    template = CLIPTokenizer().backend_tokenizer
    trained.normalizer, trained.pre_tokenizer = template.normalizer, template.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        end_of_word_suffix="</w>",
        special_tokens=[f"{letter}</w>" for letter in _last_letters(trained, captions)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    vocabulary, merges = _vocabulary_and_merges(trained)
    for token in (_START, _END):
        vocabulary[token] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)


def train_gpt2_tokenizer(captions: Iterable[str]) -> GPT2Tokenizer:
    """Learn a byte-level BPE in GPT-2's format; it keeps case and spaces."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    vocabulary, merges = _vocabulary_and_merges(trained)
    vocabulary[_END] = len(vocabulary)
    return GPT2Tokenizer(vocab=vocabulary, merges=merges, pad_token=_END, model_max_length=128)


def _last_letters(trained: Tokenizer, captions: Sequence[str]) -> list[str]:
    """Return the letters that words of the captions end in, sorted."""
    normal, split = trained.normalizer.normalize_str, trained.pre_tokenizer.pre_tokenize_str
    return sorted({word[-1] for text in set(captions) for word, _ in split(normal(text))})


def _vocabulary_and_merges(trained: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return merges, and the vocabulary: letters in their order, then what the merges make."""
    model = json.loads(trained.to_str())["model"]
    merges = [(left, right) for left, right in model["merges"]]
    made = list(dict.fromkeys(left + right for left, right in merges))
    letters = sorted(set(model["vocab"]) - set(made))
    return {token: number for number, token in enumerate([*letters, *made])}, merges
