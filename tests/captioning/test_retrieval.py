from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmail_align.captioning.ifcap import retrieval
from gmail_align.captioning.ifcap.retrieval import Groups, build_index, nearest, nearest_by_faiss
from gmail_align.errors import ConfigError, DataError


def naive(queries: torch.Tensor, store: torch.Tensor, k: int, apart: Groups | None) -> list:
    """Sort the cosines of one query after the other."""
    result = []
    for number, query in enumerate(queries):
        scores = torch.cosine_similarity(query[None], store)
        if apart is not None:
            scores[apart.store == apart.queries[number]] = -2
        result.append(scores.argsort(descending=True, stable=True)[:k].tolist())
    return result


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(8, 90), st.integers(1, 5), st.integers(0, 99))
def test_blocks_find_what_sorting_everything_finds(q: int, n: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, store = (torch.randn(count, 6, generator=generator) for count in (q, n))
    groups = Groups(torch.arange(q) % 7, torch.arange(n) % 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "STORE_BLOCK", 11)
        patch.setattr(retrieval, "QUERY_BLOCK", 9)
        assert nearest(queries, store, k).tolist() == naive(queries, store, k, None)
        apart = nearest(queries, store, k, groups).tolist()
    assert apart == naive(queries, store, k, groups)


def test_equal_cosines_are_in_the_order_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "STORE_BLOCK", 3)
    store = torch.tensor([[1.0, 0], [0, 1], [2, 0], [3, 0], [0, 2], [4, 0]])
    assert nearest(torch.tensor([[1.0, 0]]), store, 3).tolist() == [[0, 2, 3]]


def test_faiss_finds_the_same_with_a_flat_index() -> None:
    generator = torch.Generator().manual_seed(0)
    store = torch.randn(300, 16, generator=generator)
    queries = store[:50] + 0.3 * torch.randn(50, 16, generator=generator)
    groups = Groups(torch.arange(50), torch.arange(300) % 50)
    assert torch.equal(
        nearest_by_faiss(queries, store, 5, build_index(store, "Flat"), groups),
        nearest(queries, store, 5, groups),
    )
    near = nearest_by_faiss(queries, store, 5, build_index(store, "IVF4,Flat"))
    assert (near[:, 0] == nearest(queries, store, 5)[:, 0]).float().mean() > 0.5


def test_a_query_that_faiss_leaves_short_is_searched_exactly() -> None:
    store = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    store[:50] = store[0]
    groups = Groups(torch.tensor([1]), torch.tensor([1] * 50 + [0] * 10))
    result = nearest_by_faiss(store[:1], store, 3, build_index(store, "Flat"), groups)
    assert torch.equal(result, nearest(store[:1], store, 3, groups))
    assert (result >= 50).all()


def test_what_cannot_be_looked_up_is_refused() -> None:
    store = torch.eye(4)
    with pytest.raises(DataError, match="5 captions .* 4"):
        nearest(store, store, 5)
    with pytest.raises(DataError, match="3 wide .* 4"):
        nearest(torch.eye(3), store, 1)
    same = Groups(torch.zeros(4).long(), torch.tensor([0, 0, 0, 1]))
    with pytest.raises(DataError, match="4 of 4 queries"):
        nearest(store, store, 2, same)
    with pytest.raises(ConfigError, match="index 'nonsense'"):
        build_index(store, "nonsense")
    with pytest.raises(ConfigError, match="'IVF99,Flat'.*4"):
        build_index(store, "IVF99,Flat")
