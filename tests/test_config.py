import tomllib
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from gmail_align.config import Config, apply_overrides, build, keys, load_toml, parse_value, to_toml
from gmail_align.errors import ConfigError


class Inner(Config):
    steps: int = Field(10, ge=0)
    """Steps."""
    rate: float = 0.1
    """Rate."""


class Item(Config):
    width: int | None = 3
    """Width."""
    lr: float = 0.1
    """Rate."""


class Outer(Config):
    presets: ClassVar = {"fast": {"optim": {"steps": 2}, "name": "fast"}}
    optim: Inner = Inner()
    """Optimisation."""
    extra: Inner | None = None
    """Perhaps."""
    name: str = "x"
    """Name."""
    place: Path | None = None
    """Where."""
    items: dict[str, Item] = {}
    """Named tables."""
    sizes: tuple[float, ...] = (1.5, 2.0)
    """Sizes."""

    @model_validator(mode="after")
    def _check(self):
        if self.name == "forbidden":
            raise ValueError("The name is forbidden")
        return self


def test_fields_are_described_by_their_docstrings():
    assert Inner.model_fields["steps"].description == "Steps."


def test_configuration_is_frozen():
    with pytest.raises(ValidationError):
        Outer().name = "y"


def test_values_are_built():
    config = build(Outer, {"optim": {"steps": 3}, "name": "y"})
    assert (config.optim.steps, config.optim.rate, config.name) == (3, 0.1, "y")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"optim": {"stps": 3}}, "f.toml: unknown key 'optim.stps'; did you mean 'optim.steps'?"),
        ({"extra": {"rte": 3}}, "f.toml: unknown key 'extra.rte'; did you mean 'extra.rate'?"),
        ({"opim": {}}, "f.toml: unknown key 'opim'; did you mean 'optim'?"),
        (
            {"zzz": 1},
            "f.toml: unknown key 'zzz'; known keys are optim, extra, name, place, items, sizes",
        ),
        (
            {"learning_rate": 1},
            "f.toml: unknown key 'learning_rate'; did you mean 'items.NAME.lr'?",
        ),
        ({"rat": 1}, "f.toml: unknown key 'rat'; did you mean 'optim.rate'?"),
        (
            {"steps": 1},
            "f.toml: unknown key 'steps'; did you mean 'optim.steps' or 'extra.steps'?",
        ),
        ({"name": "forbidden"}, "f.toml: the name is forbidden"),
        (
            {"optim": {"steps": -1}},
            "f.toml: optim.steps: input should be greater than or equal to 0 (got -1)",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_place_and_hint(data, message):
    with pytest.raises(ConfigError) as caught:
        build(Outer, data, "f.toml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("true", True),
        ("null", None),
        ('["a", "b"]', ["a", "b"]),
        ("{a = 1}", {"a": 1}),
        ("'quoted'", "quoted"),
        ("plain words", "plain words"),
        ("/some/path.toml", "/some/path.toml"),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_right_hand_sides(text, value):
    assert parse_value(text) == value


def test_overrides_reach_into_tables_and_leave_the_original():
    data = {"optim": {"steps": 1}}
    assert apply_overrides(data, ["optim.steps=2", "optim.rate=0.5", "a.b.c=x=y"]) == {
        "optim": {"steps": 2, "rate": 0.5},
        "a": {"b": {"c": "x=y"}},
    }
    assert data == {"optim": {"steps": 1}}


@pytest.mark.parametrize("override", ["steps", "=3", "a..b=1", ".a=1", ""])
def test_a_bad_override_is_quoted(override):
    with pytest.raises(ConfigError, match="key.subkey=value"):
        apply_overrides({}, [override])


@pytest.mark.parametrize("value", [3, None, [1]])
def test_an_override_cannot_go_through_a_value(value):
    with pytest.raises(ConfigError, match="'steps', which holds a value"):
        apply_overrides({"steps": value}, ["steps.x=1"])


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.integers() | st.booleans()))
def test_overrides_build_any_table(table):
    texts = [f"t.{key}={str(value).lower()}" for key, value in table.items()]
    assert apply_overrides({}, texts).get("t", {}) == table


def test_toml_files(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[optim]\nsteps = 3\n")
    assert load_toml(path) == {"optim": {"steps": 3}}


@pytest.mark.parametrize("text", ["a = " + "[" * 10**5, "a = " + "9" * 5000])
def test_what_python_cannot_hold_is_no_toml(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.toml"):
        load_toml(tmp_path / "mine.toml")
    assert parse_value(text[4:]) == text[4:]


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path):
    (tmp_path / "mine.toml").write_text("a = 1", encoding="utf-8-sig")
    assert load_toml(tmp_path / "mine.toml") == {"a": 1}


def test_files_that_cannot_be_read_are_named(tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("steps = = 3")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"no configuration file at .*absent"):
        load_toml(tmp_path / "absent.toml")
    for path in (bad, binary):
        with pytest.raises(ConfigError, match=f"{path.name} is not a TOML file"):
            load_toml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path)


class Required(Config):
    model: str
    """Folder of ``x``."""


def test_a_missing_key_is_named_with_its_meaning():
    with pytest.raises(ConfigError, match="'model' is missing: Folder of x"):
        build(Required, {})


def test_every_key_is_listed():
    assert [key for key, _ in keys(Outer)] == [
        *("optim", "optim.steps", "optim.rate", "extra", "extra.steps", "extra.rate", "name"),
        *("place", "items", "items.NAME.width", "items.NAME.lr", "sizes"),
    ]


class Slow(Config):
    optim: Inner = Inner(rate=0.5)
    """Optimisation with another rate than its class's."""


@pytest.mark.parametrize("fast", [{"steps": 3}, {"steps": 3, "rate": 0.5}])
def test_a_key_of_a_table_leaves_what_the_tables_default_sets(fast):
    assert build(Slow, {"optim": fast}).optim == Inner(steps=3, rate=0.5)
    assert build(Slow, {"optim": {"rate": 0.2}}).optim == Inner(rate=0.2)
    assert build(Slow, {}).optim.model_fields_set == {"rate"}
    assert build(Slow, {"optim": {"steps": 3}}).optim.model_fields_set == {"steps", "rate"}


def test_presets_belong_to_the_class():
    built = Outer.from_preset("fast", {"optim": {"rate": 0.5}})
    assert (built.optim.steps, built.optim.rate, built.name) == (2, 0.5, "fast")
    assert Outer.from_preset("fast", {"optim": Inner(steps=7)}).optim.steps == 7
    with pytest.raises(ConfigError, match="'fats'; did you mean 'fast'"):
        Outer.from_preset("fats")


@given(
    st.text(st.characters(codec="utf-8")),
    st.floats(allow_nan=False),
    st.none() | st.integers(-9, 9),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=3),
)
def test_a_configuration_written_as_toml_is_read_as_the_same(name, rate, width, key):
    config = Outer(
        name="x" if name == "forbidden" else name,
        optim=Inner(rate=rate),
        place=Path("/a b"),
        items={key: Item(width=width), "plain": Item()},
        sizes=(rate,),
    )
    assert build(Outer, tomllib.loads(to_toml(config))) == config


def test_tables_that_lie_too_deep_in_each_other_are_refused(tmp_path):
    path = tmp_path / "deep.toml"
    for text in (f"[{'.'.join(['a'] * 3000)}]", "a = " + "[" * 300 + "]" * 300):
        path.write_text(text)
        with pytest.raises(ConfigError, match="deep"):
            load_toml(path)
    for override in ("a." * 3000 + "b=1", "a=" + "[" * 300 + "]" * 300):
        with pytest.raises(ConfigError, match="deep"):
            apply_overrides({}, [override])
