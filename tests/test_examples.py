"""The examples are there, can be read, and are what their lines say."""

from __future__ import annotations

import pytest

from medisee.errors import InputError
from medisee.examples import example_path, list_examples, open_example
from medisee.io import read_image


@pytest.mark.parametrize("example", list_examples(), ids=lambda example: example.name)
def test_examples_are_real_images(example):
    image = open_example(example.name)
    assert image.modality == example.modality
    assert image.source == example.name
    assert min(image.height, image.width) >= 128
    assert image.display.std() > 10
    assert example.question.endswith("?")
    assert example.description


def test_names_are_different():
    names = [example.name for example in list_examples()]
    assert len(set(names)) == len(names)
    assert names[0] == "abdomen-mr"


def test_the_abdomen_knows_its_sides():
    image = read_image("example:abdomen-mr")
    assert image.orientation.patient_left == "right"
    assert image.orientation.plane == "axial"
    assert image.spacing == pytest.approx((0.723, 0.723), abs=0.001)


def test_choices_go_through():
    first = read_image("example:heart-ultrasound", frame=0)
    assert "frame 0 of 30, counted from 0" in first.notes


@pytest.mark.parametrize(
    ("name", "hint"),
    [("abdomenmr", "did you mean abdomen-mr"), ("zzz", "there are"), ("", "there are")],
)
def test_unknown_names(name, hint):
    with pytest.raises(InputError, match=hint):
        read_image(f"example:{name}")


def test_without_pydicoms_test_files(monkeypatch):
    monkeypatch.setattr("pydicom.data.get_testdata_file", lambda *_, **__: None)
    with pytest.raises(InputError, match="carries no test files"):
        example_path("abdomen-mr")
