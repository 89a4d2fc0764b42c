import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmail_align.errors import ConfigError, Terminated
from gmail_align.runtime import (
    random_source,
    resolve_device,
    resolve_dtype,
    stable_seed,
    termination_deferred,
    termination_raised,
    versions,
)

PARTS = st.lists(st.integers() | st.text(max_size=5), max_size=3)


def test_numbers_are_drawn_by_negative_seeds_too():
    assert random_source(7).random() == np.random.default_rng(7).random()
    assert random_source(7, 2).random() == np.random.default_rng([7, 2]).random()
    drawn = {random_source(seed, part).random() for seed in (-1, -2, 1) for part in (None, 2)}
    assert len(drawn) == 6


def test_a_seed_is_the_same_on_every_machine():
    assert stable_seed("noise", 0, "caption-7") == 1662110465550040431
    assert stable_seed() == 8203414616412130826


@given(PARTS, PARTS)
def test_seeds_differ_where_parts_do(one, other):
    assert (stable_seed(*one) == stable_seed(*other)) == (one == other)
    assert 0 <= stable_seed(*one) < 2**63


def test_a_number_and_its_digits_are_different_parts():
    assert stable_seed(1) != stable_seed("1")


def test_versions_name_what_results_depend_on():
    result = versions()
    assert result.keys() >= {"python", "gmail-align", "torch", "transformers", "numpy"}
    assert all(result.values())


def test_devices():
    import torch

    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="'gpu'"):
        resolve_device("gpu")


def test_a_device_that_is_absent_is_the_users_mistake(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="'cuda'"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0").index == 0
    with pytest.raises(ConfigError, match="'cuda:"):
        resolve_device("cuda:1")


def test_dtypes():
    import torch

    assert resolve_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ConfigError, match="float32, float16, bfloat16"):
        resolve_dtype("int8")


def test_a_termination_is_raised_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), termination_raised():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_termination_waits_for_work_that_asks_for_it():
    with termination_raised(), termination_deferred() as ends:
        assert not ends()
        os.kill(os.getpid(), signal.SIGTERM)
        assert ends()


def test_a_child_process_ends_at_once():
    with termination_raised():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
