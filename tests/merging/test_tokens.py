"""Tests of Tokens and Grouping: built from grids and sequences, checked, copied, flattened as pytrees."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests import reference
from vtm.merging import FeatureGrid, Grid, Grouping, Tokens, match_bipartite


def random_grouping() -> Grouping:
    """Return a random merge of 5 of 12 tokens, in a batch of 2."""
    keys = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
    return match_bipartite(keys, torch.tensor([[0, 5], [1, 7]]), 5)


@pytest.mark.parametrize("masked", [False, True])
def test_pickle_and_deepcopy_keep_every_field(masked: bool) -> None:
    tokens = Tokens(*reference.random_tokens(2, 12, seed=0, real_fraction=0.5 if masked else None, garbage=1.0))
    grouping = random_grouping()
    for twin in (pickle.loads(pickle.dumps((tokens, grouping))), copy.deepcopy((tokens, grouping))):
        for before, after in zip((tokens, grouping), twin, strict=True):
            assert type(after) is type(before)
            for field in dataclasses.fields(before):
                old, new = getattr(before, field.name), getattr(after, field.name)
                assert torch.equal(old, new) if isinstance(old, Tensor) else old == new
                assert old is not new or not isinstance(old, Tensor)


def test_pytree_round_trip() -> None:
    tokens = Tokens(*reference.random_tokens(2, 12, seed=0))
    grouping = random_grouping()
    leaves, spec = pytree.tree_flatten((tokens, grouping))
    assert sum(isinstance(leaf, Tensor) for leaf in leaves) == 7
    same_tokens, same_grouping = pytree.tree_unflatten(leaves, spec)
    assert isinstance(same_tokens, Tokens)
    assert isinstance(same_grouping, Grouping)
    assert same_tokens.mask is None
    assert same_tokens.saliency is tokens.saliency
    assert same_grouping.num_groups == 7
    assert same_grouping.anchor is grouping.anchor
    doubled = pytree.tree_map_only(torch.Tensor, lambda leaf: leaf * 2, tokens)
    assert torch.equal(doubled.x, 2 * tokens.x)


@pytest.mark.parametrize("masked", [False, True])
def test_tokens_of_a_grid_equal_the_loops(masked: bool) -> None:
    features = torch.randn(3, 4, 2, 3, 5, dtype=torch.float64)
    motion = torch.rand(3, 4, 2, 3, dtype=torch.float64) if masked else None
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4]) if masked else None
    tokens = Tokens.from_grid(features, motion=motion, mask=mask)
    expected = reference.windows_loops(features, window_frames=4, motion=motion, mask=mask)
    for name, value in expected._asdict().items():
        found = getattr(tokens, name)
        assert (found is None) == (value is None), name
        assert value is None or torch.equal(found.to(value.dtype), value), name


def test_grid_has_frames_height_and_width() -> None:
    grid = Grid(4, 5, 6)
    assert (grid.frames, grid.height, grid.width) == (4, 5, 6)


@pytest.mark.parametrize(
    ("field", "wrong", "expected"),
    [
        ("size", (2, 9), (2, 12)),
        ("position", (2, 12, 2), (2, 12, 3)),
        ("position", (1, 12, 3), (2, 12, 3)),
        ("motion", (2, 12, 1), (2, 12)),
        ("saliency", (12,), (2, 12)),
        ("mask", (3, 12), (2, 12)),
    ],
)
def test_fields_of_another_shape_are_errors_that_print_both(
    field: str, wrong: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    tokens = reference.random_tokens(2, 12, seed=0)
    dtype = {"position": torch.int64, "mask": torch.bool}.get(field, torch.float64)
    bad = tokens._replace(**{field: torch.zeros(wrong, dtype=dtype)})
    with pytest.raises(ValueError, match=field) as error:
        Tokens(*bad)
    assert str(wrong) in str(error.value)
    assert str(expected) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_sequence_is_frames_of_one_token(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 3, dtype=dtype)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    tokens = Tokens.from_sequence(x, mask=mask)
    assert tokens.x.dtype == dtype
    assert torch.equal(tokens.x, x)
    assert torch.equal(tokens.size, mask.to(torch.promote_types(dtype, torch.float32)))
    assert tokens.position.tolist() == [[[n, 0, 0] for n in range(5)]] * 2
    assert torch.equal(tokens.mask, mask)
    assert Tokens.from_sequence(x).mask is None
    assert torch.equal(Tokens.from_sequence(x).size, torch.ones(2, 5))


@pytest.mark.parametrize("shape", [(5, 3), (2, 1, 5, 3)])
def test_a_sequence_of_another_shape_is_an_error_that_prints_it(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, N, C\)") as error:
        Tokens.from_sequence(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_a_mask_of_another_length_is_an_error_that_prints_both() -> None:
    with pytest.raises(ValueError, match=r"mask.*\(2, 5\).*\(2, 4\)"):
        Tokens.from_sequence(torch.zeros(2, 5, 3), mask=torch.ones(2, 4, dtype=torch.bool))


def test_windows_that_do_not_divide_the_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"4.*6"):
        Grouping.identity(6, 13).join_windows(4)


def test_prefix_tokens_have_no_position_in_the_frame_and_no_motion():
    grid = FeatureGrid(2, 3, prefix=2)
    motion = grid.lay_out(torch.rand(4, 2, 3))
    assert motion.shape == (4, *grid.shape) == (4, 1, 8)
    tokens = Tokens.from_features(torch.randn(1, 4, 1, 8, 5), grid, motion=motion[None])
    places = tokens.position[0].reshape(4, 8, 3).tolist()
    for step, rows in enumerate(places):
        assert rows[:2] == [[step, -1, -1]] * 2
        assert rows[2:] == [[step, y, x] for y in range(2) for x in range(3)]
    assert tokens.motion.reshape(4, 8)[:, :2].eq(0).all()
    assert tokens.motion.reshape(4, 8)[:, 2:].gt(0).all()


def test_features_without_a_prefix_equal_from_grid():
    x, motion, mask = torch.randn(2, 3, 2, 2, 4), torch.rand(2, 3, 2, 2), torch.tensor([[True, True, False]] * 2)
    given = {"motion": motion, "mask": mask}
    one, other = Tokens.from_features(x, FeatureGrid(2, 2), **given), Tokens.from_grid(x, **given)
    assert all(torch.equal(vars(one)[name], vars(other)[name]) for name in ("x", "size", "position", "motion", "mask"))


def test_features_in_another_layout_are_refused():
    with pytest.raises(ValueError, match=r"with \(H, W\) = \(1, 5\), got shape \(1, 2, 2, 2, 3\)"):
        Tokens.from_features(torch.zeros(1, 2, 2, 2, 3), FeatureGrid(2, 2, prefix=1))
