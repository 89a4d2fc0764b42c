import errno
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmail_align.artifacts import (
    DRAFT,
    MANIFEST,
    atomic_file,
    begin,
    canonical_json,
    fingerprint,
    first_difference,
    load,
    one_at_a_time,
    read_jsonl,
    sha256_file,
    write_bytes,
    write_json,
    write_jsonl,
)
from gmail_align.errors import ArtifactError, DiskFullError

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
    assert sorted(path.name for path in artifact.folder.iterdir()) == [MANIFEST, "rows.txt"]


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
    with pytest.raises(ArtifactError, match="being written"):
        begin(tmp_path / "a", "captions", {"rule": "other"})
    del first
    begin(tmp_path / "a", "captions", {"rule": "other"})
    (tmp_path / "a" / "rows.jsonl").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.rule was 'other' and is now 'one'"):
        begin(tmp_path / "a", "captions", {"rule": "one"})


def test_other_inputs_are_refused(tmp_path):
    one, other = make(tmp_path / "a", text="a"), make(tmp_path / "b", text="b")
    begin(tmp_path / "c", "pairs", {}, {"real": one}).path("pairs.jsonl").write_text("{}")
    with pytest.raises(ArtifactError, match=r"inputs\.real was"):
        begin(tmp_path / "c", "pairs", {}, {"real": other})


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="not empty"):
        make(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="not empty"):
        make(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "thesis.txt"]


def test_an_unfinished_artifact_cannot_be_loaded(tmp_path):
    draft = begin(tmp_path / "a", "captions", {})
    with pytest.raises(ArtifactError, match="is unfinished"):
        load(draft.folder)
    with pytest.raises(ArtifactError, match="is no artifact"):
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
        with pytest.raises(ArtifactError, match="being written by another process"):
            begin(tmp_path / "a", "captions", {}, part=part)
    write_bytes(first.path("1.txt"), b"1")
    write_bytes(second.path("2.txt"), b"2")
    del first  # its process ends
    assert second.claim()
    assert sorted(second.finish({}).manifest["files"]) == ["1.txt", "2.txt"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["1.txt", "2.txt", MANIFEST]


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
    with pytest.raises(ArtifactError, match="being written by another process"):
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
        for name in ("replace", "fsync", "chmod"):
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
        assert not (home / str(kill_at) / artifacts.MANIFEST).exists()
        kill_at += 1
    print(kill_at - 1)
    for number in range(1, kill_at):
        stage(home / str(number), 0)
"""


def test_a_run_killed_at_any_write_goes_on_to_the_same_artifact(tmp_path):
    code = [sys.executable, "-c", textwrap.dedent(KILLER), str(tmp_path)]
    ran = subprocess.run(code, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == 12
    folders = list(tmp_path.iterdir())
    assert len(folders) == 13
    assert len({load(folder).fingerprint for folder in folders}) == 1
    for folder in folders:
        names = {path.name for path in folder.rglob("*")}
        assert names == {MANIFEST, "a", "0.txt", "1.txt"}


def test_a_manifest_beside_its_draft_counts_as_finished(tmp_path):
    artifact = make(tmp_path / "a")
    identity = {key: artifact.manifest[key] for key in ("kind", "config", "seed", "inputs")}
    write_json(artifact.path(DRAFT), identity)
    assert begin(tmp_path / "a", "captions", {}, {"source": "0123"}).complete is not None


def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_the_users_to_solve(tmp_path, monkeypatch, call, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    path = tmp_path / "a.txt"
    with pytest.raises(DiskFullError, match=rf"no space is left to write {path}: free some"):
        write_bytes(path, b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_first_step(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", fail)
    with pytest.raises(DiskFullError):
        write_bytes(tmp_path / "a.txt", b"x")


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
