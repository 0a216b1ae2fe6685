"""`medisee train`: what is checked before a run begins."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from pydantic import BaseModel


class Plan(BaseModel):
    init: str = "tiny"
    out: str = "runs/tiny"


@pytest.fixture
def runs(monkeypatch):
    """The recipes that were run; training itself is left out."""
    done: list[Plan] = []
    training = ModuleType("medisee.training")
    training.read_recipe = lambda path: Plan()
    training.train = lambda plan: done.append(plan) or Path(plan.out) / "model"
    monkeypatch.setitem(sys.modules, "medisee.training", training)
    return done


def test_runs_the_recipe_and_says_where_the_model_is(run, runs):
    done = run("train", "tiny.yaml", "--init", "nano")
    assert done.code == 0
    assert "--model runs/tiny/model" in done.out.replace("\\", "/").replace("\n", " ")
    assert runs == [Plan(init="nano")]


@pytest.mark.parametrize(
    ("begun", "option", "code", "word"),
    [(True, [], 2, "--resume"), (True, ["--resume"], 0, ""), (False, ["--resume"], 2, "no run")],
)
def test_an_earlier_run_is_only_touched_with_resume(run, runs, tmp_path, begun, option, code, word):
    if begun:
        (tmp_path / "runs" / "tiny" / "first").mkdir(parents=True)
    done = run("train", "tiny.yaml", *option)
    assert done.code == code
    assert word in done.err
    assert len(runs) == (code == 0)


def test_a_dry_run_tells_the_stages_and_trains_nothing(run, runs, monkeypatch):
    planning = ModuleType("medisee.training.planning")
    stage = SimpleNamespace(
        name="heads", task="localise", steps=1200, trained=34567, frozen=89, memory=2_000_000
    )
    planning.plan_stages = lambda plan: [stage]
    planning.measure_stages = lambda plan: {"heads": SimpleNamespace(seconds=3.0, memory=None)}
    monkeypatch.setitem(sys.modules, "medisee.training.planning", planning)
    done = run("train", "tiny.yaml", "--dry-run")
    assert done.code == 0
    assert all(part in done.out for part in ("heads", "1,200", "34,567", "89", "2.0 MB", "60 min"))
    assert not runs


def test_without_the_packages_the_extra_is_named(run, monkeypatch):
    class NoTorch(ModuleType):
        def __getattr__(self, name):
            raise ModuleNotFoundError(name="torch")

    monkeypatch.setitem(sys.modules, "medisee.training", NoTorch("medisee.training"))
    done = run("train", "tiny.yaml")
    assert done.code == 2
    assert "medisee[train]" in done.err
