import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import gmail_align

PUBLIC = [
    "GmailEncoder",
    "Captioner",
    "Route",
    "alignment_loss",
    "load",
    "write_tabletop",
    "import_data",
    "choose_captions",
    "synthesize",
    "pair",
    "align",
    "align_features",
    "extract",
    "measure_gap",
    "train_captioner",
    "predict_captions",
    "train_llava",
    "predict_answers",
    "ask",
    "evaluate_captions",
    "evaluate_retrieval",
    "evaluate_zeroshot",
    "evaluate_probe",
    "evaluate_answers",
    "compare",
    "export",
    "push_to_hub",
    "run",
    "plan",
    "study",
    "GmailAlignError",
    "UserError",
    "__version__",
]


def test_the_public_names_are_these():
    assert gmail_align.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(gmail_align))


def test_every_public_name_is_there():
    for name in PUBLIC:
        assert getattr(gmail_align, name) is not None
    assert gmail_align.Route.REAL == "real"


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(gmail_align, "Trainer")


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, gmail_align; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "pydantic", "numpy", "typer", "PIL"}
    assert not heavy & set(ran.stdout.split())


def test_a_room_does_not_take_the_place_of_the_function_of_its_name() -> None:
    script = (
        "import gmail_align.export.config\n"
        "assert gmail_align.export.__module__ == 'gmail_align.api.stages', gmail_align.export\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_stage_that_failed_can_be_called_again(tmp_path: Path) -> None:
    """A notebook keeps the error, and with its traceback everything that the stage held."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "captions.csv").write_text("image,caption\na.png,a cup\n")
    with pytest.raises(gmail_align.UserError) as kept:
        gmail_align.import_data("imagefolder", tmp_path, tmp_path / "out")
    options = {"source": tmp_path, "limit_quarantine": 0.5}
    made = gmail_align.import_data("imagefolder", options, tmp_path / "out")
    assert made["images"].counts["images"] == 2
    assert "does not have a caption" in str(kept.value)
