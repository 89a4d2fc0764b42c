import errno
import json
import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmail_align import artifacts
from gmail_align.artifacts import (
    DRAFT,
    MANIFEST,
    atomic_file,
    begin,
    beside,
    canonical_json,
    fingerprint,
    first_difference,
    is_unfinished,
    load,
    read_jsonl,
    sha256_file,
    write_bytes,
    write_jsonl,
)
from gmail_align.errors import ArtifactError, DiskFullError
from gmail_align.leases import one_at_a_time
from gmail_align.progress import LOG, say, set_quiet

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def make(folder, seed=0, text="a", **config):
    draft = begin(folder, "captions", config, {"source": "0123"}, seed)
    if draft.complete is None:
        write_bytes(draft.path("rows.txt"), text.encode())
        return draft.finish({"captions": 1})
    return draft.complete


def test_a_finished_artifact_says_what_it_is(tmp_path):
    artifact = make(tmp_path / "a", size=3)
    assert artifact.kind == "captions"
    assert artifact.counts == {"captions": 1}
    manifest = json.loads(artifact.path(MANIFEST).read_text())
    assert manifest["config"] == {"size": 3}
    assert manifest["inputs"] == {"source": "0123"}
    assert manifest["files"] == {"rows.txt": sha256_file(artifact.path("rows.txt"))}
    assert manifest["versions"]["python"]
    assert {path.name for path in artifact.folder.iterdir()} == {MANIFEST, LOG, "rows.txt"}


def test_a_finished_artifact_is_not_made_again(tmp_path):
    first = make(tmp_path / "a", size=3)
    before = first.path(MANIFEST).stat().st_mtime_ns
    assert make(tmp_path / "a", size=3, text="never written").fingerprint == first.fingerprint
    assert first.path(MANIFEST).stat().st_mtime_ns == before


def test_fingerprints_follow_content_and_not_place_or_time(tmp_path):
    one, same = make(tmp_path / "a", size=3), make(tmp_path / "b", size=3)
    others = [
        make(tmp_path / "c", size=4),
        make(tmp_path / "d", size=3, seed=1),
        make(tmp_path / "e", size=3, text="b"),
    ]
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": 4}, "config.size was 3 and is now 4"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"more": True}, "config.more was None and is now True"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_run_is_refused_and_the_field_named(tmp_path, change, named, finished):
    folder = tmp_path / "a"
    if finished:
        make(folder, size=3)
    else:
        begin(folder, "captions", {"size": 3}, {"source": "0123"})
        (folder / "part.jsonl").write_text("{}")
    with pytest.raises(ArtifactError, match=named):
        make(folder, **{"size": 3, **change})


def test_a_run_that_failed_before_it_made_anything_stands_in_nobodys_way(tmp_path):
    first = begin(tmp_path / "a", "captions", {"rule": "one"})
    (tmp_path / "a" / "rows.jsonl").touch()
    with pytest.raises(ArtifactError, match="a"):
        begin(tmp_path / "a", "captions", {"rule": "other"})
    del first
    begin(tmp_path / "a", "captions", {"rule": "other"})
    (tmp_path / "a" / "rows.jsonl").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.rule .*'other' .*'one'"):
        begin(tmp_path / "a", "captions", {"rule": "one"})


def test_other_inputs_are_refused(tmp_path):
    one, other = make(tmp_path / "a", text="a"), make(tmp_path / "b", text="b")
    begin(tmp_path / "c", "pairs", {}, {"real": one}).path("pairs.jsonl").write_text("{}")
    with pytest.raises(ArtifactError, match=r"inputs\.real was"):
        begin(tmp_path / "c", "pairs", {}, {"real": other})


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match=tmp_path.name):
        make(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=tmp_path.name):
        make(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "thesis.txt"]


def test_an_unfinished_artifact_cannot_be_loaded(tmp_path):
    draft = begin(tmp_path / "a", "captions", {})
    with pytest.raises(ArtifactError, match="is unfinished"):
        load(draft.folder)
    with pytest.raises(ArtifactError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_another_kind_cannot_be_loaded(tmp_path):
    folder = make(tmp_path / "a").folder
    assert load(folder, "captions").kind == "captions"
    with pytest.raises(ArtifactError, match="holds captions, but images are needed"):
        load(folder, "images")


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "captions"}', "\xff"])
def test_a_damaged_or_foreign_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=MANIFEST):
        load(tmp_path)


def test_parts_write_at_once_and_the_last_one_finishes(tmp_path):
    first, second = (begin(tmp_path / "a", "captions", {}, part=part) for part in ("1-2", "2-2"))
    for part in ("", "2-2"):
        with pytest.raises(ArtifactError, match="a"):
            begin(tmp_path / "a", "captions", {}, part=part)
    write_bytes(first.path("1.txt"), b"1")
    write_bytes(second.path("2.txt"), b"2")
    del first  # its process ends
    assert second.claim()
    assert sorted(second.finish({}).manifest["files"]) == ["1.txt", "2.txt"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "1.txt",
        "2.txt",
        MANIFEST,
        LOG,
    ]


def test_only_one_of_the_parts_that_end_together_finishes(tmp_path):
    drafts = [begin(tmp_path / "a", "captions", {}, part=part) for part in ("1-2", "2-2")]
    finished = []

    def end(draft):
        claimed = draft.claim()
        if claimed:
            draft.finish({})
        finished.append(claimed)
        draft._release()

    threads = [threading.Thread(target=end, args=(draft,), daemon=True) for draft in drafts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(finished) == [False, True]


def test_two_writers_are_refused(tmp_path):
    draft = begin(tmp_path / "a", "captions", {})
    with pytest.raises(ArtifactError, match="a"):
        begin(tmp_path / "a", "captions", {})
    draft.finish({})
    assert begin(tmp_path / "a", "captions", {}).complete is not None


KILLER = """
    import os, signal, sys
    from pathlib import Path
    from gmail_align import artifacts

    def stage(folder, kill_at):
        calls = 0
        def counted(real):
            def call(*values):
                nonlocal calls
                calls += 1
                if calls == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*values)
            return call
        for name in ("open", "replace", "fsync", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        draft = artifacts.begin(folder, "captions", {"size": 3}, seed=1)
        if draft.complete is None:
            for name in ("a/0.txt", "a/1.txt"):
                if not draft.path(name).exists():
                    artifacts.write_bytes(draft.path(name), name.encode())
            draft.finish({"rows": 2})
        return calls

    def killed(folder, kill_at):
        child = os.fork()
        if child == 0:
            stage(folder, kill_at)
            os._exit(0)
        return os.waitpid(child, 0)[1] == signal.SIGKILL

    home = Path(sys.argv[1])
    kill_at = 1
    while killed(home / str(kill_at), kill_at):
        kill_at += 1
    print(kill_at - 1)
    for number in range(1, kill_at):
        stage(home / str(number), 0)
"""


def test_a_run_killed_at_any_write_goes_on_to_the_same_artifact(tmp_path):
    code = [sys.executable, "-c", textwrap.dedent(KILLER), str(tmp_path)]
    ran = subprocess.run(code, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    folders = list(tmp_path.iterdir())
    assert len(folders) == int(ran.stdout) + 1 >= 12
    assert len({load(folder).fingerprint for folder in folders}) == 1
    for folder in folders:
        names = {path.name for path in folder.rglob("*")}
        assert names == {MANIFEST, LOG, "a", "0.txt", "1.txt"}, f"killed at call {folder.name}"


def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_the_users_to_solve(tmp_path, monkeypatch, call, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    path = tmp_path / "a.txt"
    with pytest.raises(DiskFullError, match=re.escape(str(path))):
        write_bytes(path, b"x")
    assert list(tmp_path.iterdir()) == []


def test_other_failures_of_the_disk_stay_what_they_are(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_bytes(tmp_path / "a.txt", b"x")


@given(st.lists(JSON))
def test_jsonl_gives_back_what_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    write_jsonl(path, rows)
    assert list(read_jsonl(path)) == rows


@pytest.mark.parametrize("line", ["{", '"\\ud800"', "[" * 100_000, "9" * 5000])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(f"1\n{line}\n")
    with pytest.raises(ArtifactError, match=r"line 2 of .*rows\.jsonl"):
        list(read_jsonl(tmp_path / "rows.jsonl"))


@given(JSON)
def test_canonical_json_does_not_see_the_order_of_keys(value):
    turned = json.loads(canonical_json(value), object_pairs_hook=lambda p: dict(reversed(p)))
    assert fingerprint(turned) == fingerprint(value)


@given(JSON, JSON)
def test_a_difference_is_named_exactly_where_there_is_one(old, new):
    difference = first_difference({"k": old}, {"k": new})
    assert (difference is None) == (without_nulls(old) == without_nulls(new))


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(own) for key, own in value.items() if own is not None}
    return value


def _hold(folder, ready, leave):
    draft = begin(folder, "captions", {})
    ready.set()
    leave.wait(30)
    assert draft.complete is None


def test_the_lease_of_a_dead_process_is_free(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "a", ready, leave))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(ArtifactError, match="another process"):
        begin(tmp_path / "a", "captions", {})
    holder.kill()
    holder.join()
    assert begin(tmp_path / "a", "captions", {}).complete is None


def test_what_several_need_is_made_by_one_while_the_others_wait(tmp_path):
    made, inside = [], []

    def work():
        with one_at_a_time(tmp_path / "cache"):
            inside.append(threading.get_ident())
            assert len(inside) == 1
            made.append(make(tmp_path / "cache" / "a").fingerprint)
            inside.clear()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len(set(made)) == 1


def test_who_has_the_turn_does_not_wait_for_itself(tmp_path):
    inside = []

    def work(here):
        with one_at_a_time(tmp_path / "cache"):
            with one_at_a_time(tmp_path / "." / "cache"):
                inside.append(here)
            assert list((tmp_path / "cache").glob(".lease*"))  # the turn is not over yet
        assert not list((tmp_path / "cache").glob(".lease*"))

    thread = threading.Thread(target=work, args=(1,), daemon=True)
    thread.start()
    thread.join(20)
    assert inside == [1]


def test_a_folder_that_another_process_finishes_meanwhile_is_complete(tmp_path, monkeypatch):
    take = artifacts.take_leases

    def late(folder, part=""):
        monkeypatch.setattr(artifacts, "take_leases", take)
        make(folder)
        return take(folder, part)

    monkeypatch.setattr(artifacts, "take_leases", late)
    draft = begin(tmp_path / "a", "captions", {}, {"source": "0123"})
    assert draft.complete is not None
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [MANIFEST, "rows.txt", LOG]


@pytest.mark.parametrize("left", [[DRAFT], [".lease"], [DRAFT, ".lease", ".lease-1-2"]])
def test_what_a_run_left_that_was_killed_after_its_manifest_is_removed(tmp_path, left):
    artifact = make(tmp_path / "a")
    for name in left:
        artifact.path(name).touch()
    assert load(artifact.folder).fingerprint == artifact.fingerprint
    assert not is_unfinished(artifact.folder)
    make(tmp_path / "a")
    assert sorted(path.name for path in artifact.folder.iterdir()) == [MANIFEST, "rows.txt", LOG]


def test_temporaries_of_killed_processes_are_removed_and_those_of_live_ones_stay(tmp_path):
    folder = tmp_path / "a"
    begin(folder, "captions", {}, {"source": "0123"})
    (folder / "b").mkdir()
    (folder / "b" / ".dead.txt.tmp").write_text("half")
    (folder / ".export.tmp").mkdir()
    with atomic_file(folder / "b" / "live.txt") as file:
        draft = begin(folder, "captions", {}, {"source": "0123"})
        assert [path.name for path in (folder / "b").iterdir()] == [".live.txt.tmp"]
        assert not (folder / ".export.tmp").exists()
        assert draft.files() == []
        file.write(b"whole")
    assert draft.files() == ["b/live.txt"]


def test_a_file_replaces_the_temporary_that_a_killed_process_left(tmp_path):
    (tmp_path / ".a.txt.tmp").write_text("half")
    write_bytes(tmp_path / "a.txt", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_two_writers_of_one_file_do_not_share_a_temporary(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_file(path) as first:
        first.write(b"first")
        write_bytes(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_nothing_is_written_into_a_finished_artifact(tmp_path):
    artifact = make(tmp_path / "a")
    with pytest.raises(ArtifactError, match=re.escape(str(artifact.folder))):
        write_bytes(artifact.path("more.txt"), b"x")
    assert sorted(path.name for path in artifact.folder.iterdir()) == [MANIFEST, "rows.txt", LOG]


def test_the_seconds_of_a_killed_attempt_count(tmp_path):
    draft = begin(tmp_path / "a", "captions", {}, {"source": "0123"})
    write_bytes(draft.path("first.txt"), b"x")
    os.utime(draft.path("first.txt"), times=(time.time() + 100,) * 2)
    del draft
    assert 100 <= make(tmp_path / "a").manifest["seconds"] < 200


def test_files_have_the_permissions_that_the_umask_leaves(tmp_path):
    before = os.umask(0o077)
    try:
        artifact = make(tmp_path / "a")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in artifact.folder.iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["x" * 300, "loop", "dangling/a", "file/a"])
def test_a_folder_that_cannot_be_made_is_the_users_to_choose_anew(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=name.partition("/")[0][:20]):
        begin(tmp_path / name, "captions", {})


def test_a_read_only_artifact_with_leftovers_is_complete(tmp_path, monkeypatch):
    artifact = make(tmp_path / "a")
    artifact.path(DRAFT).touch()

    def fail(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", fail)
    assert begin(tmp_path / "a", "captions", {}, {"source": "0123"}).complete is not None
    with pytest.raises(ArtifactError, match=re.escape(str(tmp_path / "b"))):
        begin(tmp_path / "b", "captions", {})


RACERS = """
    import json, os, sys
    from pathlib import Path
    from gmail_align.artifacts import begin, write_bytes
    from gmail_align.errors import ArtifactError

    def race(folder, number, gate):
        os.read(gate, 1)
        try:
            draft = begin(folder, "captions", {"number": number})
        except ArtifactError:
            os._exit(0)
        if draft.complete is None:
            write_bytes(draft.path("made"), str(number).encode())
        os._exit(1)  # dies at work

    for turn in range(40):
        folder, (gate, start) = Path(sys.argv[1]) / str(turn), os.pipe()
        children = []
        for number in range(3):
            child = os.fork()
            if not child:
                race(folder, number, gate)
            children.append(child)
        os.write(start, b"---")
        won = sum(os.waitpid(child, 0)[1] != 0 for child in children)
        winner = int((folder / "made").read_text())
        draft = json.loads((folder / "draft.json").read_text())
        assert won == 1 or draft["config"]["number"] == winner
        begin(folder, "captions", {"number": winner})
"""


def test_of_runs_that_begin_at_once_the_draft_is_the_one_that_works(tmp_path):
    code = [sys.executable, "-c", textwrap.dedent(RACERS), str(tmp_path)]
    ran = subprocess.run(code, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_stage_that_begins_while_another_looks_is_not_foreign(tmp_path, monkeypatch):
    folder, listing = tmp_path / "new", Path.iterdir
    folder.mkdir()
    begun = []

    def list_late(path):
        monkeypatch.undo()
        other = begin(folder, "captions", {})
        write_bytes(other.path("rows"), b"x")
        other.finish({})
        begun.append(path)
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", list_late)
    assert begin(folder, "captions", {}).complete is not None
    assert begun == [folder]


def test_the_same_stage_in_several_processes_is_made_once(tmp_path):
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from gmail_align.artifacts import begin, write_bytes
        from gmail_align.errors import ArtifactError
        for turn in range(60):
            try:
                draft = begin(Path(sys.argv[1]) / str(turn), "captions", {})
            except ArtifactError as error:
                assert "another process" in str(error), error
                continue
            if draft.complete is None:
                write_bytes(draft.path("rows"), b"x")
                draft.finish({})
        """
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    assert [run.communicate()[1] for run in runs] == [b"", b"", b""]
    for folder in tmp_path.iterdir():
        assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "rows", LOG]


def test_a_folder_beside_another_is_named_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    assert beside(Path("a/b"), "-x") == Path("a/b-x")
    assert beside(Path("."), "-x") == tmp_path.with_name(f"{tmp_path.name}-x")
    assert beside(Path("in/.."), "-x") == tmp_path.with_name(f"{tmp_path.name}-x")
    with pytest.raises(ArtifactError, match="another folder"):
        beside(Path("/"), "-x")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' + "[" * 900 + "]" * 900 + "}",
        '{"kind": ' + "9" * 5000 + "}",
        json.dumps({"kind": "\ud800"}),
        "{} x",
    ],
)
def test_a_manifest_that_no_parser_takes_is_damaged(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=MANIFEST):
        load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("counts", "x"), ("counts", {"rows": "many"}), ("inputs", []), ("kind", 1)]
)
def test_a_manifest_with_values_of_other_types_is_refused(tmp_path, key, value):
    manifest = {**make(tmp_path / "a").manifest, key: value}
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=MANIFEST):
        load(tmp_path / "a")


def test_a_log_keeps_what_was_said_and_is_no_content(tmp_path):
    plain = begin(tmp_path / "plain", "captions", {"a": 1}).finish({"rows": 0})
    draft = begin(tmp_path / "told", "captions", {"a": 1})
    set_quiet(True)
    try:
        say("the first of two lines")
    finally:
        set_quiet(False)
    logged = draft.finish({"rows": 0})
    say("after the end")
    log = logged.path(LOG).read_text()
    assert "the first of two lines" in log and "after the end" not in log
    assert logged.fingerprint == plain.fingerprint and LOG not in logged.manifest["files"]
