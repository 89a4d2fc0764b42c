"""Captioning against the way ClipCap's released code goes about it.

    python benchmarks/captioning.py [--repeats 3] [--gpt2 DIR] [--published] [--retrieval 1000000]

1. Captions a second: beam 5 over a batch of 32 with a key-value cache, against one image after the
   other with the whole caption run through GPT-2 for every token. The two searches are written
   apart and score alike, so the captions they share are counted too.
2. Training examples a second out of the feature store, against a DataLoader over a pickle for every
   caption.

3. With ``--retrieval``: looking five captions up among so many, from a file of fp16 features, and
   the memory that this takes beside the file's own pages.

One thread, medians of CPU time, both ways in turn.
"""

from __future__ import annotations

import argparse
import copy
import pickle
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from gmail_align.captioning.caption_set import CaptionSet
from gmail_align.captioning.clipcap.model import ClipCap
from gmail_align.captioning.decode import Decoding, decode
from gmail_align.captioning.ifcap.retrieval import nearest
from gmail_align.captioning.tokens import tokenise
from gmail_align.data.batches import batch_indices
from gmail_align.encoders.language import LanguageModel, fuse_gelu, load_tokenizer
from gmail_align.encoders.shipped import model_path

BEAM, TOKENS, BATCH = 5, 16, 32
WIDTH, CAPTIONS = 512, 4000


@torch.no_grad()
def one_by_one(gpt2: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, prefix: Tensor) -> str:
    """Beam search of one caption without a cache; scores are mean log-probabilities."""
    end, embed = tokenizer.eos_token_id, gpt2.transformer.wte
    first = gpt2(inputs_embeds=prefix[None]).logits[0, -1].log_softmax(-1)
    first[end] = -torch.inf
    scores, tokens = first.topk(BEAM)
    beams = tokens[:, None]
    lengths, done = torch.ones(BEAM), torch.zeros(BEAM, dtype=torch.bool)
    for _ in range(TOKENS - 1):
        inputs = torch.cat([prefix.expand(BEAM, -1, -1), embed(beams)], dim=1)
        step = gpt2(inputs_embeds=inputs).logits[:, -1].log_softmax(-1)
        step[done] = -torch.inf
        step[done, end] = 0.0
        longer = lengths + (~done).float()
        mean = (scores[:, None] + step) / longer[:, None]
        best, places = mean.view(-1).topk(BEAM)
        origin, token = places // step.shape[1], places % step.shape[1]
        beams = torch.cat([beams[origin], token[:, None]], dim=1)
        lengths, done = longer[origin], done[origin] | (token == end)
        scores = best * lengths
        if done.all():
            break
    ids = beams[(scores / lengths).argmax()].tolist()
    text: str = tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)
    return text.strip()


class Pickles(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """One pickle a caption: tokens, mask and the feature, as long as the longest."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = pickle.loads(self.files[index].read_bytes())
        return found


def medians(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median CPU seconds of runs that take turns."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, found in zip(runs, seconds, strict=True):
            start = time.process_time()
            run()
            found.append(time.process_time() - start)
    return [statistics.median(found) for found in seconds]


def compare_decoding(
    plain: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, repeats: int, singles: int
) -> None:
    """Caption 32 images in a batch, and ``singles`` of them one by one with GPT-2 as it comes."""
    torch.manual_seed(0)
    language = LanguageModel(fuse_gelu(copy.deepcopy(plain)), tokenizer)
    model = ClipCap(language, WIDTH).eval()
    with torch.no_grad():
        model.mapper[-1].weight.mul_(8)
        prompt = model.prompt(torch.randn(BATCH, WIDTH))
    how = Decoding(beam=BEAM, max_tokens=TOKENS)
    said: dict[str, list[str]] = {}

    def batched() -> None:
        said["batched"] = [found.text for found in decode(language, prompt, how)]

    def single() -> None:
        rows = prompt.embeddings[:singles]
        said["single"] = [one_by_one(plain, tokenizer, row) for row in rows]

    batched()
    fast, slow = medians((batched, single), repeats)
    slow *= BATCH / singles
    same = sum(a == b for a, b in zip(said["batched"], said["single"], strict=False))
    print(f"batched, cached      {BATCH / fast:8.1f} captions/s")
    print(f"one by one, no cache {BATCH / slow:8.1f} captions/s")
    print(f"ratio {slow / fast:.1f}; {same} of {singles} captions are the same")


def compare_batches(folder: Path, repeats: int) -> None:
    """Read an epoch of training batches both ways."""
    tokenizer = load_tokenizer(folder)
    array = torch.randn(CAPTIONS // 5, WIDTH)
    texts = (f"a red ball and {n} blue cubes" for n in range(CAPTIONS))
    rows = torch.arange(CAPTIONS) % len(array)
    captions = CaptionSet((array,), rows, tokenise(texts, tokenizer, 40))
    steps = CAPTIONS // 40

    def store() -> None:
        for step in range(steps):
            picked = torch.from_numpy(batch_indices(step, 40, len(captions), 0))
            captions.features(captions.rows[picked])
            captions.tokens.batch(picked)

    with tempfile.TemporaryDirectory() as temporary:
        for number in range(CAPTIONS):
            tokens, length = captions.tokens.ids[number].long(), captions.tokens.lengths[number]
            mask = (torch.arange(len(tokens)) < length).float()
            found = (tokens, mask, array[captions.rows[number]].clone())
            (Path(temporary) / f"{number:06}.pkl").write_bytes(pickle.dumps(found))
        loader = DataLoader(Pickles(Path(temporary)), batch_size=40, shuffle=True)

        def pickles() -> None:
            for _ in loader:
                pass

        fast, slow = medians((store, pickles), repeats)
    print(f"feature store        {CAPTIONS / fast:8.0f} examples/s")
    print(f"pickle a caption     {CAPTIONS / slow:8.0f} examples/s")
    print(f"ratio {slow / fast:.1f}")


def time_retrieval(count: int, queries: int = 256) -> None:
    """Look captions up in a store on disk, and say how much memory was held at most."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "features"
        noise = torch.randn(16_384, WIDTH).half().numpy().tobytes()
        with path.open("wb") as file:
            for _ in range(-(-count // 16_384)):
                file.write(noise)
        store = torch.from_file(str(path), size=count * WIDTH, dtype=torch.float16).view(count, -1)
        wanted, peak, done = torch.randn(queries, WIDTH), [anonymous()], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                peak.append(anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.process_time()
        nearest(wanted, store, 5)
        seconds = time.process_time() - start
        done.set()
        watcher.join()
    print(
        f"{queries} queries among {count} captions: {seconds:.1f} s of CPU, at most"
        f" {max(peak) - peak[0]:.0f} MB of memory beside the file"
    )


def anonymous() -> float:
    """Return the memory of this process that belongs to no file, in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def main() -> None:
    """Print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gpt2", type=Path, default=model_path("tabletop", "gpt2"))
    parser.add_argument("--published", action="store_true", help="time 124 M parameters too")
    parser.add_argument("--retrieval", type=int, default=0, metavar="N", help="captions to search")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, one thread, Python"
        f" {platform.python_version()}, torch {torch.__version__}, transformers"
        f" {transformers.__version__}"
    )
    tokenizer = load_tokenizer(given.gpt2)
    words = GPT2LMHeadModel.from_pretrained(given.gpt2, dtype=torch.float32).eval()
    print("GPT-2 of the tabletop world:")
    compare_decoding(words, tokenizer, given.repeats, BATCH)
    if given.published:
        print(f"GPT-2 of the published size, random weights, captions of {TOKENS} tokens:")
        torch.manual_seed(0)
        large = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)).eval()
        compare_decoding(large, tokenizer, 1, 2)
    compare_batches(given.gpt2, given.repeats)
    if given.retrieval:
        time_retrieval(given.retrieval)


if __name__ == "__main__":
    main()
