"""``evaluate retrieval`` and ``evaluate zeroshot`` on plain files, as anyone would check them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save as tensors
from typer.testing import CliRunner

from gmail_align.artifacts import begin, write_bytes, write_jsonl
from gmail_align.cli.main import app
from gmail_align.data.classes import CLASS_SETS, class_set
from gmail_align.data.labels import class_prompts
from gmail_align.data.protocols import PROTOCOLS
from gmail_align.encoders.route import Route

KEYS = {"metrics", "intervals", "n", "protocol", "unavailable", "seconds"}


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def save(path, array):
    np.save(path, np.asarray(array))
    return path


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(30), 5)
    images = rng.standard_normal((30, 16)).astype(np.float32)
    texts = images[owner] + 2 * rng.standard_normal((150, 16)).astype(np.float32)
    return {
        "--image-features": save(tmp_path / "i.npy", images),
        "--text-features": save(tmp_path / "t.npy", texts),
        "--text-image": save(tmp_path / "o.npy", owner),
    }


def flat(options):
    return [word for pair in options.items() for word in pair]


def test_retrieval_of_files(pairs, tmp_path):
    ran = call("evaluate", "retrieval", *flat(pairs), "--json", "--out", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert set(result) >= KEYS
    assert set(result["metrics"]) == {f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    kept = json.loads((tmp_path / "out" / "result.json").read_text())
    assert kept.items() <= result.items() and result["folder"] == str(tmp_path / "out")
    again = call("evaluate", "retrieval", *flat(pairs), "--json", "--out", tmp_path / "out")
    assert json.loads(again.stdout) == result
    lines = call("evaluate", "retrieval", *flat(pairs)).stdout.splitlines()
    assert lines[0] == "retrieval, 30 images, 150 texts"
    assert len(lines) == 7 and all(" to " in line for line in lines[1:])


def test_images_without_a_text_are_named_and_count_as_not_found(pairs, tmp_path):
    owner = save(tmp_path / "some.npy", np.repeat(np.arange(15), 10))
    ran = call("evaluate", "retrieval", *flat({**pairs, "--text-image": owner}), "--json")
    assert ran.exit_code == 0
    assert "15 of 30 images" in ran.stderr
    result = json.loads(ran.stdout)
    assert result["n"] == {"images": 30, "texts": 150, "images_without_text": 15}
    assert result["metrics"]["i2t_r10"] <= 0.5


def test_a_folder_of_other_things_is_left_alone(pairs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    ran = call("evaluate", "retrieval", *flat(pairs), "--out", tmp_path / "mine")
    assert ran.exit_code == 2 and "mine" in ran.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_retrieval_by_another_rule_says_so(pairs):
    ran = call("evaluate", "retrieval", *flat(pairs), "--json", "--compat", "long_clip")
    assert json.loads(ran.stdout)["compat"] == "long_clip"


def test_a_protocol_asserts_its_counts(pairs):
    ran = call("evaluate", "retrieval", *flat(pairs), "--protocol", "coco_val2017_5k")
    assert ran.exit_code == 2
    assert "coco_val2017_5k" in ran.stderr and "30 images" in ran.stderr
    ran = call(
        *("evaluate", "retrieval", *flat(pairs), "--protocol", "coco_val2017_5k", "--subset"),
        "--json",
    )
    assert json.loads(ran.stdout)["protocol"].startswith("coco_val2017_5k (subset: 30 of 5000")
    ran = call("evaluate", "retrieval", *flat(pairs), "--protocol", "dtd")
    assert ran.exit_code == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"--text-image": None}, "--captions"),
        ({"--compat": "open_clip"}, "'open_clip'"),
        ({"--image-features": np.full((30, 16), np.nan)}, "bad.npy"),
        ({"--image-features": np.ones((30, 8))}, "dimensions"),
        ({"--image-features": np.ones((0, 16))}, "bad.npy"),
        ({"--text-image": np.full(150, 30)}, "i.npy"),
        ({"--text-image": np.arange(30)}, "t.npy"),
        ({"--text-image": np.full(150, 2**64 - 1, dtype=np.uint64)}, "i.npy"),
        ({"--text-features": "absent.npy"}, "absent.npy"),
    ],
)
def test_mistakes_are_explained_in_a_sentence(pairs, tmp_path, change, named):
    given = {**pairs, **change}
    for name, value in change.items():
        if isinstance(value, np.ndarray):
            given[name] = save(tmp_path / "bad.npy", value)
    ran = call("evaluate", "retrieval", *flat({k: v for k, v in given.items() if v is not None}))
    assert ran.exit_code == 2, ran.stderr
    assert named in ran.stderr.splitlines()[-1]


def test_a_dry_run_writes_nothing(pairs, tmp_path):
    ran = call("evaluate", "retrieval", *flat(pairs), "--dry-run", "--out", tmp_path / "out")
    assert ran.exit_code == 0 and "would evaluate retrieval into" in ran.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", CLASS_SETS)
def test_every_set_runs_under_its_protocol(name, tmp_path):
    """Its real class names and templates, its number of images, features drawn at random."""
    rng = np.random.default_rng(1)
    known, counts = class_set(name), PROTOCOLS[name].counts
    prompts = class_prompts(None, name)
    assert list(prompts) == list(known.keys) and len(prompts) == counts["classes"]
    assert all(len(own) == len(known.templates) for own in prompts.values())
    classes = rng.standard_normal((len(prompts), len(known.templates), 4)).astype(np.float32)
    labels = np.arange(counts["images"]) % len(prompts)
    images = classes.mean(1)[labels] + rng.standard_normal((len(labels), 4)).astype(np.float32)
    ran = call(
        *("evaluate", "zeroshot", "--protocol", name, "--json"),
        *("--image-features", save(tmp_path / "i.npy", images)),
        *("--labels", save(tmp_path / "y.npy", labels)),
        *("--class-features", save(tmp_path / "c.npy", classes)),
    )
    assert ran.exit_code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["protocol"] == name
    assert result["n"] == dict(counts)
    assert result["headline"] == PROTOCOLS[name].metric
    assert 1 / len(prompts) < result["metrics"]["accuracy"] < 1
    low, high = result["intervals"]["class_mean"]
    assert low < result["metrics"]["class_mean"] < high


def test_results_kept_can_be_compared(pairs, tmp_path):
    rng = np.random.default_rng(5)
    worse = np.load(pairs["--text-features"]) + rng.standard_normal((150, 16))
    changed = {**pairs, "--text-features": save(tmp_path / "w.npy", worse.astype(np.float32))}
    for name, options in (("a", pairs), ("b", changed)):
        ran = call("evaluate", "retrieval", *flat(options), "--out", tmp_path / name, "--json")
        assert ran.exit_code == 0, ran.stderr
    ran = call("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert ran.exit_code == 0, ran.stderr
    result = json.loads(ran.stdout)
    first, second = (
        json.loads((tmp_path / name / "result.json").read_text())["metrics"] for name in ("a", "b")
    )
    for name, value in result["metrics"].items():
        assert value == pytest.approx(first[name] - second[name])
        low, high = result["intervals"][name]
        assert low <= value <= high
    images, labels = save(tmp_path / "x.npy", np.eye(3)[[0, 1, 2, 0]]), tmp_path / "y.npy"
    zeroshot = ("--labels", save(labels, [0, 1, 1, 0]), "--out", tmp_path / "z", "--json")
    ran = call(
        *("evaluate", "zeroshot", "--image-features", images, *zeroshot),
        *("--class-features", save(tmp_path / "c.npy", np.eye(3))),
    )
    same = json.loads(call("compare", tmp_path / "z", tmp_path / "z", "--json").stdout)
    assert same["a"] == pytest.approx(json.loads(ran.stdout)["metrics"], abs=1e-9)
    assert set(same["metrics"].values()) == {0}


@pytest.fixture
def pets(tmp_path):
    """Image features that are prompts of the first three breeds, and their labels."""
    from gmail_align.encoders.encoder import GmailEncoder
    from gmail_align.encoders.shipped import model_path

    encoder = GmailEncoder.from_pretrained(model_path("tabletop", "clip"))
    prompts = class_set("oxford_pets").prompts()
    rows = torch.stack(
        [encoder.embed_texts(own, Route.FROZEN)[0] for own in list(prompts.values())[:3]]
    )
    made = {"encoder": encoder.base_fingerprint, "weights": encoder.base_fingerprint}
    draft = begin(tmp_path / "seen", "features", {**made, "what": "image", "route": "frozen"})
    write_jsonl(draft.path("ids.jsonl"), ["a", "b", "c"])
    write_bytes(draft.path("features.safetensors"), tensors({"features": rows.contiguous()}))
    draft.finish({"rows": 3})
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(dict(zip("abc", list(prompts)[:3], strict=True))))
    return ("evaluate", "zeroshot", "--images", tmp_path / "seen", "--labels", labels, "--json")


def test_a_protocol_brings_its_prompts(pets, tmp_path):
    words = (*pets, "--encoder", "tabletop", "--protocol", "oxford_pets", "--out", tmp_path / "out")
    assert "oxford_pets has 3669 images and 37 classes" in call(*words).stderr
    ran = call(*words, "--subset", "--device", "cpu")
    assert ran.exit_code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["protocol"] == "oxford_pets (subset: 3 of 3669 images)"
    assert result["headline"] == "class_mean" and result["n"] == {"images": 3, "classes": 37}
    assert result["metrics"]["accuracy"] > 0.3


def test_the_prompts_of_another_encoder_are_refused(pets, tmp_path):
    words = (*pets, "--protocol", "oxford_pets", "--subset", "--out", tmp_path / "out")
    ran = call(*words, "--encoder", "tabletop/long_clip")
    assert ran.exit_code == 2 and "seen" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_zero_shot_runs_where_it_is_told_to(pets, monkeypatch):
    """A device that does not exist here is asked for: the model would have been moved to it."""
    from gmail_align.encoders.encoder import GmailEncoder

    moved = []
    plain = GmailEncoder.to

    def recorded(self, device):
        moved.append(str(device))
        return plain(self, device)

    monkeypatch.setattr(GmailEncoder, "to", recorded)
    ran = call(*pets, "--encoder", "tabletop", "--protocol", "oxford_pets", "--subset")
    assert ran.exit_code == 0 and moved, ran.stderr
    if not torch.cuda.is_available():
        ran = call(*pets, "--encoder", "tabletop", "--protocol", "dtd", "--device", "cuda")
        assert ran.exit_code == 2, ran.output
