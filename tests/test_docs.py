"""Pages and help: links lead somewhere, commands and keys exist, sentences can be read once."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import gmail_align
from gmail_align.cli.main import COMMANDS, Entry, Group, app
from gmail_align.config import keys

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
assert SPEC is not None and SPEC.loader is not None
GENERATE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(GENERATE)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NOTES = {"log.md", "benchmarks.md", "CHANGELOG.md"}
"""Pages of figures and dates, whose rows are not prose."""
LONGEST = 30
"""Words of a sentence."""
ODD = re.compile(
    r"\b(is no|are no|holds no|to be had|is said|are said|and said|goes by|at hand|"
    r"the same again)\b"
)
"""Turns that a reader has to read twice."""


def prose(page: Path) -> list[str]:
    """Return a page's sentences, those of tables too, without code, headings and pictures."""
    text = re.sub(
        r"```.*?```|<!-- result.*?<!-- end of result -->", "\n\n", page.read_text(), flags=re.S
    )
    lines, cells = [], []
    for line in text.split("\n"):
        if line.lstrip().startswith("|"):
            cells += re.split(r"(?<!\\)\|", line)
        plain = not line.lstrip().startswith(("|", "#", "!["))
        lines.append(line if plain and " · " not in line else "")
    items = re.sub(r"\n\s*(?:[-*]|\d+\.)\s+", "\n\n", "\n".join(lines))
    paragraphs = [" ".join(part.split()) for part in (*re.split(r"\n\s*\n", items), *cells)]
    return [
        sentence
        for paragraph in paragraphs
        for sentence in re.split(r"(?<=[.!?])(?:\*\*)?\)?\s+(?=[A-Z`*\[(])", paragraph)
        if sentence
    ]


def headings(page: Path) -> set[str]:
    """Return the places that a link can name, on the site and on GitHub: those both name alike."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    titles = [
        re.sub(r"[^\w\s-]", "", re.sub(r"\]\([^)]*\)", "", title.lower())).strip()
        for title in re.findall(r"^#+ (.+)$", text, re.M)
    ]
    github = [title.replace(" ", "-") for title in titles]
    site = [re.sub(r"[-\s]+", "-", title) for title in titles]
    # of several headings of one name, both call the first by it
    return set(github) & set(site)


def commands_shown(text: str) -> Iterator[list[str]]:
    """Yield the words behind ``gmail-align`` of every command in a page's code."""
    code = "\n".join(re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.S))
    for line in code.replace("\\\n", " ").split("\n"):
        for words in re.findall(r"(?:^|[\s|&])gmail-align ([^#|]*)", line):
            yield words.split()


def known(words: list[str], table: Mapping[str, Entry | Group]) -> bool:
    """Whether the words begin with a command of the table, or with one of its group."""
    if not words or words[0].startswith("-"):
        return True
    entry = table.get(words[0])
    if isinstance(entry, Group) and entry.of_paths and len(words) > 1 and "/" in words[1]:
        return True
    if isinstance(entry, Group) and len(words) > 1 and not words[1].isupper():
        return known(words[1:], entry.commands)
    return entry is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_every_reader_has(page):
    """The site shows ``docs`` alone; a clone has what git tracks, not what a build makes."""
    missing, place = [], ROOT / "docs"
    for link, _ in links(page):
        file = (page.parent / link).resolve()
        on_the_site = page.is_relative_to(place) <= file.is_relative_to(place)
        if file not in tracked() or not on_the_site:
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_into_a_page_lead_to_a_heading(page):
    inside = [((page.parent / link).resolve() if link else page, at) for link, at in links(page)]
    assert [one for one in inside if one[1] and one[1] not in headings(one[0])] == []


def links(page: Path) -> list[tuple[str, str]]:
    """Return the file (empty: the page itself) and the heading (or nothing) of each own link."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    inline = re.findall(r"\]\(([^)\s]+)", text)
    named = re.findall(r"^\[[^]]+\]: (\S+)", text, flags=re.M)
    html = re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    own = [one for one in (*inline, *named, *html) if not re.match(r"\w+:", one)]
    return [(file or page.name, at) for file, _, at in (one.partition("#") for one in own)]


@cache
def tracked() -> set[Path]:
    """Return the files that a clone has; without git, the files that are there."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return {ROOT / name for name in listed.stdout.split("\0") if name}
    return {path for path in ROOT.rglob("*") if path.is_file()}


@cache
def commands() -> dict[str, Any]:
    """Return every command by the words behind ``gmail-align``."""
    return {path.partition(" ")[2]: command for path, command in GENERATE.commands()}


def loaded(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that the words call, and the words that are left for it."""
    both = " ".join(words[:2])
    return (
        (commands()[both], words[2:]) if both in commands() else (commands()[words[0]], words[1:])
    )


def unknown_options(words: list[str]) -> list[str]:
    """Return the options and the keys of ``--set`` that the words' command does not have."""
    if not words or words[-1] == "--help" or words[0].startswith("-"):
        return []
    if isinstance(COMMANDS[words[0]], Group) and " ".join(words[:2]) not in commands():
        words = [words[0], "path", *words[1:]]  # import my_photos
    command, rest = loaded(words)
    options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    wrong = [one for one in rest if one.startswith("--") and one.split("=")[0] not in options]
    if command.stage is None:
        return wrong
    known_keys = {key for key, _ in keys(command.stage)}
    given = [key.split("=")[0] for one, key in pairwise(rest) if one == "--set"]
    return [*wrong, *(key for key in given if key not in known_keys)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_and_key_shown_exists(page):
    shown = [words for words in commands_shown(page.read_text()) if "..." not in words[:2]]
    assert [(words, wrong) for words in shown if (wrong := unknown_options(words))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_inside_sentences_begins_and_ends_with_code(page):
    text = re.sub(r"```.*?```", "\n\n", page.read_text(), flags=re.S)
    code = re.findall(r"(?<!`)`([^`]+)`(?!`)", text)
    assert [one for one in code if one != one.strip()] == []


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in NOTES],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_files_of_the_code_that_a_page_names_exist(page):
    named = re.findall(r"`([\w./-]*/[\w.-]+\.(?:py|ipynb|toml))\b", page.read_text())
    homes = (ROOT, ROOT / "src", ROOT / "src/gmail_align", ROOT / "docs")
    assert [one for one in named if not any((home / one).exists() for home in homes)] == []


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("docs/[ht]*/*.md")), ids=lambda page: str(page.relative_to(ROOT))
)
def test_a_tutorial_and_a_how_to_say_what_to_read_next(page):
    (last,) = re.findall(r"^\*\*Next\*\*: (.*)", page.read_text(), flags=re.M)
    assert "](" in last


def sentences(text: str) -> list[str]:
    """Return the sentences of a help text."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Za-z(])", " ".join(text.replace("``", "").split()))


def helped() -> Iterator[tuple[str, str]]:
    """Yield each help text with its place: commands, options, keys, recipes, studies, Python."""
    for path, command in commands().items():
        yield path, command.help
        yield from ((f"{path} {one.opts[0]}", one.help) for one in command.params if one.help)
        if command.stage is not None:
            yield from ((f"{path} {key}", f.description) for key, f in keys(command.stage))
    for name, table in {**GENERATE.RECIPE_TABLES, **GENERATE.STUDY_TABLES}.items():
        yield name, table.__doc__
        yield from ((f"{name} {key}", f.description) for key, f in table.model_fields.items())
    for name in gmail_align.__all__:
        text = inspect.getdoc(getattr(gmail_align, name)) or ""
        yield from ((name, part) for part in re.split(r"\n\s*\n|\n\s+(?=\w+: )", text))


def test_help_can_be_read_once():
    texts = {text: at for at, text in helped() if text and "```" not in text and ">>>" not in text}
    assert len(texts) > 800
    assert [
        (at, s) for t, at in texts.items() for s in sentences(t) if len(s.split()) > LONGEST
    ] == []
    assert [(at, s) for t, at in texts.items() for s in sentences(t) if ODD.search(s)] == []
    assert [at for text, at in texts.items() if text.count("(") != text.count(")")] == []


@pytest.mark.parametrize("name", ["commands.md", "keys.md"])
def test_the_reference_is_that_of_the_code(name):
    """``python docs/generate.py`` writes it again."""
    assert (ROOT / "docs/reference" / name).read_text() == GENERATE.pages()[name]


def test_the_site_lists_every_command_and_the_keys_of_each():
    shown, listed = GENERATE.commands_page(), GENERATE.keys_page()
    assert shown.count("\n## gmail-align ") == len(commands())
    rows = [line.split(" | ") for line in listed.split("\n") if line.startswith("| `")]
    assert [row for row in rows if len(row) != 3 or len(row[2]) < 5] == []
    assert {"| `optim.lr`", "| `temperature`", "| `reads`"} <= {row[0] for row in rows}
    assert "Undefined" not in listed + shown and "<" not in listed.replace("&lt;", "")


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = set(re.findall(r"[\w/-]+\.md", nav))
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    pages = {page for page in pages if not page.startswith("studies/")}
    assert pages == named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_shown_exists(page):
    unknown = [words for words in commands_shown(page.read_text()) if not known(words, COMMANDS)]
    assert unknown == []


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in NOTES and page.parent.name != "reference"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_sentences_are_short_and_plain(page):
    assert [s for s in prose(page) if len(s.split()) > LONGEST] == []
    assert [s for s in prose(page) if ODD.search(s)] == []


def test_the_checks_see_what_they_look_for(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n```\ngmail-align bake --now\n```\n\nIt is no cake. Word " + "word " * 39
    )
    assert not all(known(words, COMMANDS) for words in commands_shown(page.read_text()))
    assert [bool(ODD.search(s)) for s in prose(page)] == [True, False]
    assert max(len(s.split()) for s in prose(page)) == 40
    page.write_text(
        "| a | "
        + "word; " * 31
        + "|\n\n[one](log.md), [two](#a-b) and [three](x/none.md#c)\n\n# A b"
    )
    assert max(len(s.split()) for s in prose(page)) == 31
    assert links(page) == [("log.md", ""), ("page.md", "a-b"), ("x/none.md", "c")]
    assert headings(page) == {"a-b"}


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Mo", "Yun"]


def test_every_dependency_is_listed_with_its_licence():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(one for own in extras.values() for one in own)]
    names = {re.split(r"[\[><=]", one)[0].lower() for one in needed} - {"gmail-align"}
    page = (ROOT / "docs/licences.md").read_text().lower()
    pinned = (ROOT / "constraints.txt").read_text().lower()
    assert [n for n in names if f"| {n} |" not in page and f"\n{n}==" in pinned] == []


def test_files_of_the_project_can_be_read():
    for path in (*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
    build = (ROOT / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", build, flags=re.M)
    named = [one for line in copied for one in line.split()]
    allowed = (ROOT / ".dockerignore").read_text()
    assert named and all((ROOT / one).exists() and f"!{one}" in allowed for one in named)


def test_the_job_files_of_the_cluster_page_parse():
    page = (ROOT / "docs/how-to/cluster.md").read_text()
    job, sky = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, flags=re.S))
    assert (job["kind"], job["spec"]["completionMode"]) == ("Job", "Indexed")
    (pod,) = job["spec"]["template"]["spec"]["containers"]
    assert f"+ 1))/{job['spec']['completions']}" in pod["args"][0]
    mounted = {one["name"] for one in pod["volumeMounts"]}
    assert mounted == {one["name"] for one in job["spec"]["template"]["spec"]["volumes"]}
    (batch,) = re.findall(r"```bash\n(.*?)```", page, flags=re.S)
    assert batch.startswith("#!") and re.search(r"^#SBATCH --array=1-8$", batch, flags=re.M)
    for script in (pod["args"][0], sky["run"], sky["setup"], batch):
        ran = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    for script in (pod["args"][0], sky["run"], batch):
        words = shlex.split(script.partition("gmail-align ")[2])
        options = {word for word in words if word.startswith("--")}
        shown = CliRunner().invoke(app, [words[0], "--help"], env={"COLUMNS": "300"}).stdout
        assert options and all(option in shown for option in options)
