"""READ's points from a similarity map: by rule, and as READ's own code takes them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from medisee.model.points import POINTS, similarity_points

SQUARE = torch.ones(1, 2)


def points_of(grid, content=SQUARE):
    points, labels = similarity_points(torch.as_tensor(grid).reshape(1, -1), content)
    assert points.shape == (1, POINTS, 2)
    assert labels.shape == (1, POINTS)
    return points[0], labels[0].tolist()


def test_positives_come_from_the_top_and_negatives_from_the_bottom():
    points, labels = points_of([[0.0, 5.0, 10.0], [9.0, 1.0, 4.0], [5.0, 5.0, 2.0]])
    assert labels[:5] == [1, 1, 0, 0, 0]
    assert set(labels[5:]) == {-1}
    thirds = [(5 / 6, 1 / 6), (1 / 6, 0.5), (1 / 6, 1 / 6), (0.5, 0.5), (5 / 6, 5 / 6)]
    torch.testing.assert_close(points[:5], torch.tensor(thirds))


def test_a_flat_map_gives_no_points():
    _, labels = points_of(torch.full((4, 4), 3.0))
    assert set(labels) == {-1}


def test_cells_in_the_padding_are_never_taken_nor_do_they_set_the_scale():
    grid = torch.tensor([[1.0, 2.0, 90.0, 90.0]] * 2 + [[-90.0] * 4] * 2)
    content = torch.tensor([[0.5, 0.5]])
    points, labels = points_of(grid, content)
    used = points[torch.tensor(labels) >= 0]
    assert sorted(set(labels)) == [-1, 0, 1]
    assert (used < content).all()
    assert len(used) == 4


def test_no_more_than_thirty_points():
    _, labels = points_of(torch.arange(144.0).reshape(12, 12))
    assert labels == [1] * 29 + [0]


def test_rows_do_not_depend_on_each_other():
    maps, content = torch.randn(3, 16), torch.tensor([[1.0, 1.0], [1.0, 0.5], [0.75, 1.0]])
    points, labels = similarity_points(maps, content)
    for row in range(3):
        one, own = similarity_points(maps[row : row + 1], content[row : row + 1])
        assert torch.equal(points[row], one[0])
        assert torch.equal(labels[row], own[0])


@pytest.mark.parametrize("case", ["blob", "two", "flatbright", "noise"])
def test_golden_points_of_square_images(shared, case):
    """Of square images only: READ's map covers the central square, ours the padded one."""
    golden = load_file(shared / "golden/systems/read_points/io.safetensors")
    points, labels = points_of(golden[f"{case}.similarity"].reshape(24, 24))
    wanted = golden[f"{case}.7b.square.labels"]
    assert labels == wanted.tolist()
    # READ moves its points by a weighted mean of the map around them, at most 0.034 px.
    torch.testing.assert_close(points * 336, golden[f"{case}.7b.square.points"], rtol=0, atol=0.035)
