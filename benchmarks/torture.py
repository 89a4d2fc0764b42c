"""Kill every stage at every kind of moment, starve it and let it race, and compare what comes out.

    python benchmarks/torture.py --kills 12

Each stage runs once undisturbed. Then it is killed with SIGKILL just before one of its operations
on files (the last ones always, others spread over the run), started again, and must end with the
same files. Two runs begin on one folder at the same time. A limit on the size of files and a
read-only folder stop runs in the middle, and so do SIGTERM and SIGINT. Prints, for each stage,
what was lost, different, left behind or badly told; all must be 0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORLD = {
    "coco": "tabletop write --count 12 --size 32 --out {world}/coco",
    "test_coco": "tabletop write --count 8 --size 32 --split test --out {world}/coco",
    "train": "import coco --annotations {world}/coco/captions_train.json"
    " --images {world}/coco/images --out {world}/train",
    "test": "import coco --annotations {world}/coco/captions_test.json"
    " --images {world}/coco/images --out {world}/test",
    "chosen": "choose {world}/train/captions --each 1 --out {world}/chosen",
    "generated": "synthesize --captions {world}/chosen --model tabletop --steps 1"
    " --out {world}/generated",
    "pairs": "pair --captions {world}/chosen --real {world}/train/images"
    " --generated {world}/generated --out {world}/pairs",
    "real_features": "extract {world}/train/images --encoder tabletop --route frozen"
    " --out {world}/real_features",
    "features": "extract {world}/test/images --encoder tabletop --route frozen"
    " --out {world}/features",
    "texts": "extract {world}/test/captions --encoder tabletop --out {world}/texts",
    "encoder": "align --pairs {world}/pairs --real {world}/train/images"
    " --generated {world}/generated --base tabletop --preset eq1_only --batch-size 4"
    " --holdout 0.3 --set optim.steps=2 --set select=loss --set apply=best --out {world}/encoder",
    "captioner": "train clipcap --features {world}/real_features --captions {world}/train/captions"
    " --language-model tabletop --set optim.steps=2 --batch-size 4 --max-tokens 20"
    " --out {world}/captioner",
    "vlm": "train llava --encoder tabletop --language-model {world}/llama"
    " --conversations {world}/train/captions --images {world}/train/images --set optim.steps=1"
    " --row-tokens 512 --batch-rows 2 --out {world}/vlm",
    "said": "predict captions --captioner {world}/captioner --features {world}/features --beam 1"
    " --out {world}/said",
}
"""What stages are tried on, in the order in which it is made."""

STAGES = {
    "tabletop write": "tabletop write --count 70 --size 16 --out {out}",
    "import": "import coco --annotations {world}/coco/captions_train.json"
    " --images {world}/coco/images --shard-size 5 --out {out}",
    "choose": "choose {world}/train/captions --each 1 --out {out}",
    "leaks --drop": "leaks --train {world}/train/images --evaluation {world}/few --drop {out}",
    "synthesize": "synthesize --captions {world}/chosen --model tabletop --steps 1 --batch-size 3"
    " --shard-size 6 --out {out}",
    "filter": "filter {world}/generated --photos {world}/test/images --encoder tabletop"
    " --out {out}",
    "pair": "pair --captions {world}/chosen --real {world}/train/images"
    " --generated {world}/generated --out {out}",
    "extract images": "extract {world}/train/images --encoder tabletop --route frozen"
    " --batch-size 4 --out {out}",
    "extract captions": "extract {world}/train/captions --encoder tabletop --out {out}",
    "gap": "gap --real {world}/train/images --generated {world}/generated --pairs {world}/pairs"
    " --encoder tabletop --set resamples=20 --out {out}",
    "align": "align --pairs {world}/pairs --real {world}/train/images"
    " --generated {world}/generated --base tabletop --preset eq1_only --batch-size 4"
    " --holdout 0.3 --set optim.steps=4 --set optim.checkpoint_every=1 --out {out}",
    "train clip": "train clip --captions {world}/train/captions --images {world}/train/images"
    " --base tabletop --set optim.steps=4 --set optim.checkpoint_every=1 --batch-size 4"
    " --holdout 0.3 --out {out}",
    "convert": "convert {clip} --stretch 100 --out {out}",
    "export": "export {world}/encoder --format hf --route real --out {out}",
    "export peft": "export {world}/encoder --format peft --route generated --out {out}",
    "train clipcap": "train clipcap --features {world}/real_features"
    " --captions {world}/train/captions --language-model tabletop --set optim.steps=4"
    " --set optim.checkpoint_every=1 --batch-size 4 --max-tokens 20 --out {out}",
    "train llava": "train llava --encoder tabletop --language-model {world}/llama"
    " --conversations {world}/train/captions --images {world}/train/images --route frozen"
    " --validation-conversations {world}/test/captions --validation-images {world}/test/images"
    " --tune lora --row-tokens 512 --batch-rows 2 --set lora.rank=2 --set optim.steps=4"
    " --set optim.checkpoint_every=1 --set optim.evaluate_every=2 --out {out}",
    "predict answers": "predict answers --vlm {world}/vlm --images {world}/test/images"
    " --prompt Describe --max-tokens 3 --batch-size 3 --out {out}",
    "predict": "predict captions --captioner {world}/captioner --features {world}/features"
    " --beam 1 --batch-size 2 --out {out}",
    "evaluate captions": "evaluate captions {world}/said --references {world}/test/captions"
    " --metric ROUGE_L --out {out}",
    "evaluate retrieval": "evaluate retrieval --images {world}/features --texts {world}/texts"
    " --captions {world}/test/captions --out {out}",
    "evaluate zeroshot": "evaluate zeroshot --images {world}/features"
    " --labels {world}/labels_test.json --classes {world}/classes.json --encoder tabletop"
    " --out {out}",
    "evaluate probe": "evaluate probe --train {world}/real_features --test {world}/features"
    " --labels {world}/labels.json --out {out}",
    "evaluate finetune": "evaluate finetune --train {world}/train/images"
    " --test {world}/test/images --labels {world}/labels.json --encoder tabletop --epochs 1"
    " --set warmup_epochs=0 --out {out}",
}
RACES = ("import", "choose", "pair", "synthesize", "extract captions", "gap", "convert")
_COUNTED = ("open", "replace", "rename", "unlink", "mkdir", "rmdir", "fsync", "link", "symlink")
_VOLATILE = {"seconds", "versions", "speed", "memory_gb"}


@dataclass
class Tally:
    """What went wrong with one stage."""

    kills: int = 0
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """Runs that ended with another exit code than they should, or with a traceback."""

    @property
    def wrong(self) -> int:
        """How many things went wrong."""
        return sum(map(len, (self.lost, self.different, self.left, self.told)))

    def compare(self, expected: Mapping[str, str], here: Mapping[str, str], when: str) -> None:
        """Note the files that differ from those of the undisturbed run."""
        self.lost += [f"{name} ({when})" for name in sorted(expected.keys() - here.keys())]
        self.left += [f"{name} ({when})" for name in sorted(here.keys() - expected.keys())]
        shared = expected.keys() & here.keys()
        names = sorted(name for name in shared if expected[name] != here[name])
        self.different += [f"{name} ({when})" for name in names]


class Torturer:
    """Runs commands in children of this process, which has imported everything they need."""

    def __init__(self, work: Path) -> None:
        """Make the folders; the world is not made yet."""
        self.work, self.world = work, work / "world"
        self.case, self.out = work / "case", work / "case" / "out"
        self.temporary = work / "tmp"
        for folder in (self.world, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = str(self.temporary)
        tempfile.tempdir = None

    def words(self, text: str) -> list[str]:
        """Fill in the places of a command."""
        from gmail_align.encoders.shipped import shipped_models

        clip = shipped_models() / "clip"
        return [*text.format(world=self.world, out=self.out, clip=clip).split(), "--quiet"]

    def make_world(self, texts: Iterable[str]) -> None:
        """Make what commands are tried on: what they name, and what that needs."""
        needed = {"coco", "test_coco", "train"} | _named(texts)
        for name, text in reversed(WORLD.items()):
            needed |= _named([text]) if name in needed else set()
        if "llama" in needed:
            write_llama(self.world / "llama")
        for name, text in WORLD.items():
            if name not in needed:
                continue
            code = self.run(self.words(text)).code
            if code:
                sys.exit(f"{name} ended with {code}: {self.stderr()}")
        labels = {}
        for split in ("train", "test"):
            coco = json.loads((self.world / f"coco/captions_{split}.json").read_text())
            names = [str(image["id"]) for image in coco["images"]]
            own = {name: ("red", "blue")[row % 2] for row, name in enumerate(names)}
            labels |= own
            (self.world / f"labels_{split}.json").write_text(json.dumps(own))
        prompts = {"red": ["a red ball"], "blue": ["a blue ball"]}
        (self.world / "labels.json").write_text(json.dumps(labels))
        (self.world / "classes.json").write_text(json.dumps(prompts))
        few = self.world / "few_captions.json"
        coco = json.loads((self.world / "coco/captions_train.json").read_text())
        coco["images"] = coco["images"][:2]
        kept = {image["id"] for image in coco["images"]}
        coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] in kept]
        few.write_text(json.dumps(coco))
        text = f"import coco --annotations {few} --images {{world}}/coco/images --out {{world}}/f"
        self.run(self.words(text))
        (self.world / "f/images").rename(self.world / "few")

    def run(
        self,
        words: Sequence[str],
        kill_at: int = 0,
        limit: int = 0,
        disturb: Callable[[int], None] | None = None,
    ) -> Ended:
        """Run a command in a child.

        Args:
            words: The command.
            kill_at: Number of the operation on files before which it kills itself; 0 never.
            limit: Largest file in bytes that it may write; 0 is no limit.
            disturb: Called with the child's id as soon as it runs.
        """
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._in_child(words, kill_at, limit, writer)
        os.close(writer)
        if disturb is not None:
            disturb(child)
        with os.fdopen(reader) as pipe:
            calls = len(pipe.read())
        return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), calls)

    def _in_child(self, words: Sequence[str], kill_at: int, limit: int, pipe: int) -> None:
        stderr = os.open(self.work / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stderr, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        count = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*values: Any, **named: Any) -> Any:
                nonlocal count
                inside = isinstance(values[0], int) or str(values[0]).startswith(str(self.work))
                if inside:
                    count += 1
                    os.write(pipe, b".")
                    if count == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                return real(*values, **named)

            return call

        for name in _COUNTED:
            setattr(os, name, counted(getattr(os, name)))
        if limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        from gmail_align.cli.main import main

        sys.argv = ["gmail-align", *words]
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stderr.flush()
            os._exit(code)

    def stderr(self) -> str:
        """Return what the last command printed there."""
        return (self.work / "stderr").read_text(errors="replace")

    def clear(self) -> None:
        """Remove what the last run made."""
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()

    def files(self) -> dict[str, str]:
        """Return the files that a run made, and a hash of each that does not see times.

        Logs of stages are no part of their content: they tell what each attempt did.
        """
        made = {
            str(path.relative_to(self.case)): digest(path)
            for path in sorted(self.case.rglob("*"))
            if path.is_file() and path.name != "stage.log"
        }
        return made | {f"TMPDIR/{path.name}": "" for path in self.temporary.iterdir()}

    def kill(self, name: str, kills: int, tally: Tally) -> None:
        """Kill a stage before operations on files, the last four among them, and go on."""
        words = self.words(STAGES[name])
        self.clear()
        whole = self.run(words)
        expected = self.files()
        if whole.code:
            tally.told.append(f"undisturbed run ended with {whole.code}: {self.stderr()[-300:]}")
            return
        last = range(max(1, whole.calls - 3), whole.calls + 1)
        step = max(1, whole.calls // max(1, kills - len(last)))
        for at in sorted({*last, *range(1, whole.calls + 1, step)}):
            self.clear()
            if self.run(words, kill_at=at).code != -signal.SIGKILL:
                continue
            tally.kills += 1
            self._end(words, expected, tally, f"killed at {at} of {whole.calls}")

    def _end(self, words: list[str], expected: dict[str, str], tally: Tally, when: str) -> None:
        """Run a command to its end and compare."""
        code = self.run(words).code
        if code:
            tally.told.append(f"{when}, then exit {code}: {self.stderr()[-300:]}")
        tally.compare(expected, self.files(), when)

    def starve(self, name: str, tally: Tally) -> None:
        """Let files reach their limit at several sizes, and go on without one."""
        words = self.words(STAGES[name])
        self.clear()
        self.run(words)
        expected = self.files()
        sizes = {path.stat().st_size for path in self.case.rglob("*") if path.is_file()}
        for limit in sorted({1, *(size - 1 for size in sorted(sizes)[-2:] if size > 1)}):
            self.clear()
            code = self.run(words, limit=limit).code
            if code != 2 or "Traceback" in self.stderr():
                tally.told.append(f"files of {limit} bytes: exit {code}: {self.stderr()[-300:]}")
            self._end(words, expected, tally, f"files of {limit} bytes")

    def signals(self, name: str, tally: Tally) -> None:
        """Ask a run to end, by SIGTERM and SIGINT, and go on."""
        words = self.words(STAGES[name])
        self.clear()
        start = time.monotonic()
        self.run(words)
        seconds = time.monotonic() - start
        expected = self.files()
        for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            for share in (0.3, 0.6, 0.9):
                self.clear()

                def disturb(child: int, share: float = share, number: int = number) -> None:
                    time.sleep(seconds * share)
                    os.kill(child, number)

                ended = self.run(words, disturb=disturb).code
                # Before it begins and after it ends, a process has nothing to say or to save.
                here = self.files()
                begun = any(not name.startswith("TMPDIR/") for name in here)
                idle = ended == -number and (not begun or here == expected)
                if not (idle or ended in (0, code)) or "Traceback" in self.stderr():
                    lying = f"{sorted(here)[:5]}, {self.stderr()[-300:]}"
                    tally.told.append(f"signal {number}: exit {ended}: {lying}")
                self._end(words, expected, tally, f"signal {number}")

    def race(self, name: str, tally: Tally) -> None:
        """Begin one stage twice at the same time, then once more."""
        words = self.words(STAGES[name])
        self.clear()
        self.run(words)
        expected = self.files()
        for _ in range(3):
            self.clear()
            children = []
            for _ in range(2):
                child = os.fork()
                if child == 0:
                    _, writer = os.pipe()
                    os.set_blocking(writer, False)
                    self._in_child(words, 0, 0, writer)
                children.append(child)
            codes = [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in children]
            if not set(codes) <= {0, 2} or 0 not in codes or "Traceback" in self.stderr():
                tally.told.append(f"two at once: exits {codes}: {self.stderr()[-300:]}")
            self._end(words, expected, tally, "two at once")


def write_llama(folder: Path) -> None:
    """Write a small random Llama, with the tokenizer of the shipped GPT-2."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from gmail_align.encoders.shipped import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path("tabletop", "gpt2"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    end = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        eos_token_id=end,
        bos_token_id=end,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int
    """Its exit code, or the negative number of the signal that killed it."""
    calls: int
    """Operations on files that it began."""


def _named(texts: Iterable[str]) -> set[str]:
    """Return the parts of the world that commands name."""
    return {name for text in texts for name in re.findall(r"\{world\}/(\w+)", text)}


def digest(path: Path) -> str:
    """Return a hash of a file that does not see times."""
    data = path.read_bytes()
    if path.suffix == ".json":
        with suppress(ValueError):
            data = json.dumps(_without_times(json.loads(data)), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(own) for key, own in value.items() if key not in _VOLATILE}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def read_only(torturer: Torturer, tally: Tally) -> None:
    """Let every stage write to a read-only file system, where this process may mount one."""
    mount = torturer.work / "read_only"
    mount.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True).returncode:
        print("read-only: this process cannot mount a file system")
        return
    try:
        for name, text in STAGES.items():
            words = [
                word.replace(str(torturer.out), str(mount / "out")) for word in torturer.words(text)
            ]
            code = torturer.run(words).code
            if code != 2 or "Traceback" in torturer.stderr():
                tally.told.append(f"{name}: exit {code}: {torturer.stderr()[-300:]}")
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def main() -> int:
    """Torture the stages that were named; exit with 1 when anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=8, help="kills of each stage, about")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--only-kills", action="store_true", help="leave out all but the kills")
    chosen = parser.parse_args()
    warm_up()
    work = Path(tempfile.mkdtemp(prefix="torture-"))
    torturer = Torturer(work)
    torturer.make_world(STAGES[name] for name in chosen.stages)
    tallies = {}
    for name in chosen.stages:
        tally = tallies[name] = Tally()
        torturer.kill(name, chosen.kills, tally)
        if not chosen.only_kills:
            torturer.starve(name, tally)
            torturer.signals(name, tally)
            if name in RACES:
                torturer.race(name, tally)
        show(name, tally)
    if not chosen.only_kills:
        tallies["read-only"] = Tally()
        read_only(torturer, tallies["read-only"])
        show("read-only", tallies["read-only"])
    total = Tally(kills=sum(tally.kills for tally in tallies.values()))
    for tally in tallies.values():
        total.lost += tally.lost
        total.different += tally.different
        total.left += tally.left
        total.told += tally.told
    show("all", total, details=False)
    if total.wrong:
        print(f"kept for a look: {work}")
    else:
        shutil.rmtree(work)
    return int(total.wrong > 0)


def warm_up() -> None:
    """Import what the stages need, without computing anything, so that children begin at once."""
    os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads would not outlive the fork
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import importlib
    import pkgutil

    import gmail_align

    for module in pkgutil.walk_packages(gmail_align.__path__, "gmail_align."):
        if "tabletop.training" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    import torch

    torch.set_num_threads(1)


def show(name: str, tally: Tally, *, details: bool = True) -> None:
    """Print one row, and what went wrong."""
    counts = (tally.kills, len(tally.lost), len(tally.different), len(tally.left), len(tally.told))
    titles = ("kills", "lost", "different", "left behind", "badly told")
    row = ", ".join(f"{count} {title}" for count, title in zip(counts, titles, strict=True))
    print(f"{name:20} {row}", flush=True)
    if details:
        for what in ("lost", "different", "left", "told"):
            for line in getattr(tally, what)[:6]:
                print(f"    {what}: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
