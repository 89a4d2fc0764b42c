"""Bad input of ``train llava``: one sentence, exit code 2, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration
from typer.testing import CliRunner

from gmail_align.cli.main import app
from worlds.captioning import byte_tokenizer
from worlds.encoders import World

from .conftest import write_llama


def said(*values: str) -> list[dict[str, str]]:
    roles = ("human", "gpt")
    return [{"from": roles[n % 2], "value": value} for n, value in enumerate(values)]


SAMPLES = {
    "unanswered": {"id": "s7", "image": "r1.png", "conversations": said("<image>")},
    "empty": {"id": "s7", "image": "r1.png", "conversations": said("<image>", " ")},
    "absent": {"id": "s7", "image": "r99.png", "conversations": said("<image>", "red")},
    "many": {"id": "s7", "image": ["r1.png", "r2.png"], "conversations": said("<image>", "red")},
    "long": {"id": "s7", "image": "r1.png", "conversations": said("<image>", "red " * 200)},
    "fine": {"id": "s1", "image": "r1.png", "conversations": said("<image>\nWhat?", "red")},
}


@pytest.fixture(scope="module")
def places(
    clip_folder: Path, llama: Path, world: World, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Name every good folder and every bad one."""
    work = tmp_path_factory.mktemp("mistakes")
    found = {"clip": clip_folder, "llama": llama, "real": world.real.folder}
    found |= {"captions": world.captions.folder}
    for name, sample in SAMPLES.items():
        found[name] = work / f"{name}.json"
        found[name].write_text(json.dumps([SAMPLES["fine"], sample]))
    found["bare"] = write_llama(work / "bare", byte_tokenizer(bos_token="<s>"))
    for name, width in (("wide", 16), ("nameless", 32)):
        tokenizer = AutoTokenizer.from_pretrained(llama)
        image = 5
        if name == "wide":
            tokenizer.add_tokens(["<image>"], special_tokens=True)
            image = tokenizer.convert_tokens_to_ids("<image>")
        text = json.loads((llama / "config.json").read_text()) | {"vocab_size": len(tokenizer)}
        vision = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2}
        vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
        config = LlavaConfig(
            vision_config={"model_type": "clip_vision_model", **vision},
            text_config=text,
            image_token_index=image,
        )
        LlavaForConditionalGeneration(config).save_pretrained(work / name)
        tokenizer.save_pretrained(str(work / name))
        found[name] = work / name
    return found


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ("--conversations {unanswered}", "s7"),
        ("--conversations {empty}", "s7"),
        ("--conversations {absent}", "r99"),
        ("--conversations {many}", "s7"),
        ("--conversations {long}", "row_tokens"),
        ("--language-model {wide}", "16 wide"),
        ("--language-model {nameless}", "<image>"),
        ("--language-model {bare} --set template=llama3", "<|eot_id|>"),
        ("--language-model {captions}", "config.json"),
        ("--encoder {llama}", "llama"),
        ("--images {captions}", "captions"),
        ("--set tune=projector --images none --conversations {text}", "nothing is trained"),
        ("--set parallel=shard", "torchrun"),
        ("--set attention=flash_attention_2", "flash_attention_2"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_lost(
    changes: str, named: str, places: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "text.json").write_text(json.dumps([{"conversations": said("Say it.", "word")}]))
    code, printed = call(changes, {**places, "text": tmp_path / "text.json"}, tmp_path / "out")
    sentences = [row for row in printed.splitlines() if row.startswith("gmail-align: ")]
    assert code == 2, printed
    assert len(sentences) == 1
    assert named in sentences[0]
    assert "Traceback" not in printed
    made = [path for path in (tmp_path / "out").rglob("*") if path.suffix not in (".json", ".log")]
    assert not [path for path in made if path.is_file() and path.stat().st_size]


def test_after_a_mistake_the_right_command_takes_the_folder(
    places: dict[str, Path], tmp_path: Path
) -> None:
    assert call("--conversations {many}", places, tmp_path / "out")[0] == 2
    assert call("", places, tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "manifest.json").exists()


def call(changes: str, places: dict[str, Path], out: Path) -> tuple[int, str]:
    """Run ``train llava`` with good input but for some changes; its exit code and stderr."""
    given = {"--conversations": "{fine}", "--images": "{real}", "--encoder": "{clip}"}
    given |= {"--language-model": "{llama}", "--out": str(out)}
    settings = ["device=cpu", "row_tokens=256", "optim.steps=1", "tune=full"]
    words = changes.split()
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name == "--set":
            settings.append(value)
        else:
            given[name] = value
    line = [word for pair in given.items() for word in pair]
    line += [word for setting in settings for word in ("--set", setting)]
    ran = CliRunner().invoke(app, ["train", "llava", *(word.format(**places) for word in line)])
    return ran.exit_code, ran.stderr
