"""The tabletop world's Llama: a language model of captions, questions and answers, for LLaVA.

It learns to answer from words what LLaVA answers from an image: a conversation begins with the long
caption of a scene in the place of the image.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gmail_align.data.questions import ANSWER_BY_PHRASE
from gmail_align.tabletop.conversations import asked_of
from gmail_align.tabletop.scenes import sample_scene
from gmail_align.tabletop.text import captions, long_caption
from gmail_align.training.config import OptimConfig
from gmail_align.training.loop import FitReport, fit

BATCH = 6
FIRST_SCENE = 2_000_000
"""The Llama takes train scenes from this index on, which are of no image of the corpus."""
DESCRIBE = "Describe the image."
_LONGEST = 512
_QUESTIONS = 7
_TOKENIZED = 2000
_START, _END, _IMAGE = "<s>", "</s>", "<image>"
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives"
    " helpful, detailed, and polite answers to the user's questions. "
)
CHAT_TEMPLATE = (
    "{{ bos_token }}" + _SYSTEM + "{% for message in messages %}{% if message['role'] == 'user' %}"
    "USER: {{ message['content'] }} ASSISTANT:"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""Vicuna's, as LLaVA-1.5 lays conversations out."""
Turn = tuple[str, str]
"""A prompt and its answer."""


def scene_turns(seed: int, split: str = "train") -> list[Turn]:
    """Return a conversation about a scene; the first prompt begins with its long caption.

    Questions about depth are left out, as the long caption does not answer all of them. Only one
    prompt says how to answer, which saves a third of the tokens.
    """
    scene = sample_scene(seed, split)
    rng = random.Random(f"conversation:{split}:{seed}")
    turns = [
        (one.question, one.right)
        for one in asked_of(scene, rng, _QUESTIONS)
        if "behind" not in one.choices
    ]
    told = rng.randrange(len(turns))
    turns[told] = (f"{turns[told][0]}\n{ANSWER_BY_PHRASE}", turns[told][1])
    turns.insert(rng.randrange(len(turns) + 1), (DESCRIBE, rng.choice(captions(scene))))
    turns[0] = (f"{long_caption(scene)}\n{turns[0][0]}", turns[0][1])
    return turns


def train_llama_tokenizer() -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE, with Llama's control tokens and ``<image>``, from conversations."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[_START, _END, _IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    scenes = range(FIRST_SCENE, FIRST_SCENE + _TOKENIZED)
    texts = (part for n in scenes for turn in scene_turns(n) for part in _parts(*turn))
    trained.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        additional_special_tokens=[_IMAGE],
        model_max_length=_LONGEST,
        chat_template=CHAT_TEMPLATE,
    )


def _parts(prompt: str, answer: str) -> Iterable[str]:
    return _SYSTEM, f"USER: {prompt} ASSISTANT:", f" {answer}"


def build_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained Llama of about a million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_LONGEST,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def optimisation(steps: int) -> OptimConfig:
    """Return the recipe of the Llama."""
    return OptimConfig(
        steps=steps, lr=3e-3, schedule="cosine", warmup=30, weight_decay=0.05, checkpoint_every=50
    )


Tokens = tuple[list[int], list[bool]]
"""The tokens of a conversation, and which of them belong to an answer."""


def tokens_of(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn]) -> Tokens:
    """Lay a conversation out as Vicuna does, every part tokenised by itself."""
    ids, answer = [tokenizer.bos_token_id], [False]
    for number, turn in enumerate(turns):
        system, prompt, said = _parts(*turn)
        for text, learnt in ((system if number == 0 else "", False), (prompt, False), (said, True)):
            part = tokenizer(text, add_special_tokens=False)["input_ids"]
            part += [tokenizer.eos_token_id] if learnt else []
            ids += part
            answer += [learnt] * len(part)
    return ids, answer


def token_losses(model: LlamaForCausalLM, rows: Sequence[Tokens]) -> dict[str, Tensor]:
    """Return the mean cross-entropy of all tokens and that of the answers, in nats."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    there, answers = (
        torch.zeros_like(ids, dtype=torch.bool),
        torch.zeros_like(ids, dtype=torch.bool),
    )
    for place, (own, learnt) in enumerate(rows):
        ids[place, : len(own)], there[place, : len(own)] = torch.tensor(own), True
        answers[place, : len(own)] = torch.tensor(learnt)
    logits = model(input_ids=ids, use_cache=False).logits  # padding stands behind everything
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return {"all": losses[there[:, 1:]].mean(), "answers": losses[answers[:, 1:]].mean()}


def train_llama(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: OptimConfig,
    folder: Path,
    *,
    seed: int = 0,
) -> FitReport:
    """Train on conversations, each seen once; the answers weigh as much as all tokens together."""

    def loss(step: int) -> dict[str, Tensor]:
        first = FIRST_SCENE + step * BATCH
        rows = [tokens_of(tokenizer, scene_turns(first + k)) for k in range(BATCH)]
        losses = token_losses(model, rows)
        return {"total": losses["all"] + losses["answers"], **losses}

    model.train()
    parameters = dict(model.named_parameters())
    return fit(parameters, loss, config, seed=seed, folder=folder, label="Llama")


@torch.inference_mode()
def losses_on_test(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, scenes: int
) -> dict[str, float]:
    """Return the mean losses over conversations about test scenes."""
    model.eval()
    rows = [tokens_of(tokenizer, scene_turns(number, "test")) for number in range(scenes)]
    parts = [token_losses(model, rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
    names = ("all", "answers")
    return {n: sum(float(part[n]) for part in parts) / len(parts) for n in names}
