"""``gap`` as a stranger meets it: two folders of images, or two files of features."""

import io
import json
import sys
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from gmail_align.cli.main import app

KEYS = {"metrics", "intervals", "n", "protocol", "unavailable", "seconds"}
QUICK = ("--set", "resamples=20")


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Images of two colours as two classes; generated ones are noisy, by two generators."""
    home, rng = tmp_path_factory.mktemp("gap"), np.random.default_rng(0)
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        for number in range(6):
            spots = {"real": rng.normal(0, 8, (64, 64, 3)), "made": rng.normal(0, 50, (64, 64, 3))}
            for side, above in (("real", ""), ("made", ("sd/", "flux/")[number % 2])):
                path = home / side / f"{above}{name}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((colour + spots[side]).clip(0, 255).astype(np.uint8)).save(path)
    return home


@pytest.fixture(scope="module")
def measured(folders):
    words = ("gap", "--real", folders / "real", "--generated", folders / "made")
    words += (
        "--encoder",
        "tabletop",
        "--out",
        folders / "out",
        *QUICK,
        "--set",
        "least_in_group=4",
    )
    ran = call(*words, "--json")
    assert ran.exit_code == 0, ran.stderr
    return words, json.loads(ran.stdout), folders / "out"


def test_two_folders_give_a_result_and_a_page(measured):
    _, said, out = measured
    result = said
    assert said["kind"] == "result" and result["protocol"] == "gap_unpaired"
    assert said["counts"] == {"images": 12}
    assert set(result["groups"]) == {"classes", "generators"}
    assert set(result["groups"]["generators"]) == {"sd", "flux"}
    assert {"class_margin", "text_recall_real", "text_recall_generated"} <= set(result["metrics"])
    assert result["features"]["real"]["route"] == "frozen"
    page = (out / "report" / "index.html").read_text()
    assert result["advice"]["sentence"].partition(": ")[2][1:40] in page
    assert "http" not in page.replace("http-equiv", "")
    assert (out / "report" / "figures" / "embeddings.svg").exists()
    assert "flux" in (out / "report" / "tables" / "generators.md").read_text()


def test_without_the_extra_there_is_a_result_and_no_page(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.chdir(tmp_path)
    words = ("--encoder", "tabletop", "--out", "out", *QUICK)
    ran = call("gap", folders / "real", folders / "made", *words)
    assert ran.exit_code == 0, ran.stderr
    assert "gmail-align[report]" in ran.stderr + ran.stdout
    assert (tmp_path / "out/result.json").exists() and not (tmp_path / "out/report").exists()
    monkeypatch.undo()
    page = call("report", tmp_path / "out", "--out", tmp_path / "page")
    assert page.exit_code == 0 and (tmp_path / "page/index.html").exists(), page.stderr


def test_a_finished_gap_is_not_measured_again(measured):
    words, said, out = measured
    before = (out / "report" / "index.html").stat().st_mtime_ns
    ran = call(*words, "--json")
    assert json.loads(ran.stdout) == said and ran.stderr == ""
    assert (out / "report" / "index.html").stat().st_mtime_ns == before
    last = call(*words).stdout.splitlines()[-2:]
    assert last == [said["advice"]["sentence"], str(out / "report" / "index.html")]


def test_zips_and_names_as_pairs(folders, tmp_path):
    for side, inside in (("real", "real"), ("made", "made/sd")):
        with zipfile.ZipFile(tmp_path / f"{side}.zip", "w") as archive:
            for path in sorted((folders / inside).rglob("*.png")):
                archive.write(path, path.relative_to(folders / inside))
    ran = call(
        *("gap", "--real", tmp_path / "real.zip", "--generated", tmp_path / "made.zip", "--paired"),
        *("--encoder", "tabletop", "--out", tmp_path / "out", "--json", *QUICK),
        *("--atlas", tmp_path / "gap.parquet"),
    )
    assert ran.exit_code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert (result["protocol"], result["n"]) == ("gap_paired", {"pairs": 6})
    rows = pq.read_table(tmp_path / "gap.parquet").to_pylist()
    assert len(rows) == 12 and {row["side"] for row in rows} == {"real", "generated"}
    mean = np.mean([row["cosine"] for row in rows])
    assert mean == pytest.approx(result["metrics"]["paired_cosine"], abs=1e-5)
    with Image.open(io.BytesIO(rows[0]["image"]["bytes"])) as picture:
        assert picture.size == (64, 64)


def test_two_sides_one_after_the_other_or_by_name(folders):
    real, made = folders / "real", folders / "made"
    plan = json.loads(
        call("gap", real, made, "--encoder", "tabletop", "--dry-run", "--json").stdout
    )
    assert (plan["real"], plan["generated"]) == (str(real), str(made))
    for words in ([], [real], [real, "--generated", made], [real, made, real]):
        ran = call("gap", *words)
        assert ran.exit_code == 2 and "REAL GENERATED" in ran.stderr


def test_an_atlas_of_another_format_is_refused_before_anything_is_made(folders, tmp_path):
    words = ("gap", "--real", folders / "real", "--generated", folders / "made")
    ran = call(*words, "--encoder", "tabletop", "--out", tmp_path / "o", "--atlas", "gap.csv")
    assert ran.exit_code == 2 and "gap.csv" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_clip_on_this_machine_is_taken_where_none_is_named(folders, tmp_path, monkeypatch):
    from gmail_align.gap import prepare

    held = {("openai/clip-vit-base-patch32", name) for name in ("config.json", "model.safetensors")}
    monkeypatch.setattr(
        prepare, "try_to_load_from_cache", lambda *what: str(tmp_path) if what in held else None
    )
    words = ("gap", "--real", folders / "real", "--generated", folders / "made", "--dry-run")
    assert "taking openai/clip-vit-base-patch32" in call(*words).stderr
    held.remove(("openai/clip-vit-base-patch32", "config.json"))
    ran = call(*words)
    assert ran.exit_code == 2 and "no CLIP is on this machine" in ran.stderr


def test_captions_of_the_images_give_text_recall(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for side, inside in (("real", "real"), ("made", "made/sd")):
        for path in sorted((folders / inside).rglob("*.png")):
            copy = tmp_path / side / f"{path.parent.name}-{path.name}"
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    words = ("gap", "--real", "real", "--generated", "made", "--encoder", "tabletop", "--json")
    plain = json.loads(call(*words, *QUICK).stdout)
    assert not [name for name in plain["metrics"] if "text" in name]
    assert (tmp_path / "gap-real-made" / "report" / "index.html").exists()
    rows = [
        {"file_name": path.name, "text": f"a {path.stem[:3]} ball"}
        for path in sorted((tmp_path / "real").iterdir())
    ]
    (tmp_path / "real" / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    one = json.loads(call(*words, *QUICK, "--out", "one").stdout)
    assert one["unavailable"]["text_recall_generated"] == "its images have no captions"
    assert one["units"]["text_recall_real"] == 6
    for path in sorted((tmp_path / "made").glob("*.png")):
        path.with_suffix(".txt").write_text(f"a {path.stem[:3]} ball\n")
    both = json.loads(call(*words, *QUICK, "--out", "both").stdout)
    assert {"text_recall_real", "text_recall_generated"} <= set(both["metrics"])
    next((tmp_path / "made").glob("*.txt")).unlink()
    some = call(*words, *QUICK, "--out", "some")
    assert "1 of 6 generated images lack a caption" in some.stderr
    assert "text_recall_real" in json.loads(some.stdout)["metrics"]


def save(path, array):
    np.save(path, array)
    return path


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    real = rng.standard_normal((40, 6)).astype(np.float32)
    made = real + 0.5 * rng.standard_normal((40, 6)).astype(np.float32)
    (tmp_path / "c.txt").write_text("\n".join(["cat", "dog"] * 20))
    return {
        "--real-features": save(tmp_path / "r.npy", real),
        "--generated-features": save(tmp_path / "g.npy", made),
    }


def flat(options):
    return [word for pair in options.items() for word in pair if word is not None]


def test_files_of_features(files, tmp_path):
    ran = call("gap", *flat(files), "--paired", "--json", *QUICK)
    assert ran.exit_code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert set(result) >= KEYS and result["protocol"] == "gap_paired"
    assert {"paired_cosine", "gen_to_real_r1", "probe_auc", "cmmd"} <= set(result["metrics"])
    classes = ("--real-classes", tmp_path / "c.txt", "--generated-classes", tmp_path / "c.txt")
    texts = ("--text-features", save(tmp_path / "t.npy", np.eye(6, dtype=np.float32)[:2]))
    ran = call("gap", *flat(files), *classes, *texts, *QUICK, "--out", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    assert "gap_unpaired, 40 images" in ran.stdout.splitlines()
    assert ran.stdout.splitlines()[-1] == str(tmp_path / "out" / "report" / "index.html")
    kept = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {"class_margin", "text_recall_real"} <= set(kept["metrics"])
    assert "cat" in (tmp_path / "out" / "report" / "index.html").read_text()
    dry = call("gap", *flat(files), "--out", tmp_path / "dry", "--dry-run")
    assert dry.exit_code == 0 and not (tmp_path / "dry").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--real-features": None}, "--real"),
        ({"--encoder": "tabletop"}, "--encoder"),
        ({"--generated-features": np.ones((40, 5), np.float32)}, "40 rows|dimensions"),
        ({"--generated-features": np.full((40, 6), np.nan, np.float32)}, "NaN or infinity"),
        (
            {"--generated-features": np.ones((39, 6), np.float32), "--paired": None},
            "do not pair up",
        ),
        ({"--generated-features": np.ones((0, 6), np.float32)}, "is empty"),
        (
            {"--real-classes": "{c}", "--generated-classes": "{short}"},
            "2 labels .* 40 images",
        ),
        ({"--real-classes": "{gap}"}, "line 2 of"),
        ({"--text-features": "{r}"}, "needs pairs or classes"),
        ({"--pairs": "x"}, "--pairs"),
    ],
)
def test_mistakes_in_files_are_explained_in_a_sentence(files, tmp_path, change, sentence):
    import re

    (tmp_path / "short.txt").write_text("cat\ndog\n")
    (tmp_path / "gap.txt").write_text("cat\n\ndog\n")
    places = {"c": tmp_path / "c.txt", "short": tmp_path / "short.txt", "gap": tmp_path / "gap.txt"}
    places["r"] = tmp_path / "r.npy"
    given = dict(files)
    for name, value in change.items():
        if isinstance(value, np.ndarray):
            given[name] = save(tmp_path / "bad.npy", value)
        elif value is None and name != "--paired":
            del given[name]
        else:
            given[name] = value if value is None else value.format(**places)
    ran = call("gap", *flat(given), *QUICK)
    assert ran.exit_code == 2, ran.stderr
    assert re.search(sentence, ran.stderr.splitlines()[-1])


def test_mistakes_in_folders_are_explained_in_a_sentence(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    real, made = folders / "real", folders / "made"
    encoder, out = ("--encoder", "tabletop"), ("--out", tmp_path / "out")
    for words, sentence in (
        (("--real", real, "--generated", made), "no CLIP is on this machine"),
        (("--real", real, "--generated", made, *out), "name an --encoder"),
        (("--real", real, *out), "--generated"),
        (("--real", tmp_path / "no", "--generated", made, *encoder, *out), "does not exist"),
        (
            ("--real", tmp_path / "empty", "--generated", made, *encoder, *out),
            "does not hold an image",
        ),
        (("--real", real, "--generated", made, "--generators", real, *encoder, *out), "go with"),
    ):
        ran = call("gap", *words)
        assert ran.exit_code == 2, ran.stderr
        assert sentence in ran.stderr.splitlines()[-1]
