"""A built set in each form, read back by those who know the form."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import yaml
from engine.scenes import ABDOMEN, CT, EYE, add_image, write_index
from PIL import Image

from medisee.data.exporters import FORMATS, WITH_IMAGES, export_set
from medisee.data.importers import ImportOptions, Selection, import_source
from medisee.data.mlmr_sd import read_records
from medisee.data.sa_med2d import Index
from medisee.engine.build import Settings, build
from medisee.errors import DataError

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    disc = {"optic disc": (20, 30, 40, 50)}
    entries = [
        add_image(root, "one", ABDOMEN, split="train", licence="CC BY 4.0", **CT),
        add_image(root, "two", disc, split="train", licence="research use", **EYE),
        add_image(root, "three", disc, split="val", licence="CC BY 4.0", **EYE),
    ]
    second = add_image(root, "three-b", {"optic disc": (60, 60, 70, 70)})["masks"][0]
    entries[2]["masks"].append(second)  # two instances of one category
    return write_index(root, entries)


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    return build(data, tmp_path_factory.mktemp("set"), Settings(2)).folder


@pytest.fixture(scope="module")
def exported(data, built, tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    for form in FORMATS:
        export_set(built, root / form, form, data=data)
    return root


def records_of(folder, *splits):
    return [r for split in splits for r in read_records(folder / f"{split}.jsonl")]


def test_parquet_holds_the_same_records(built, exported):
    for split in ("train", "val"):
        file = exported / f"parquet/{split}-00000-of-00001.parquet"
        assert list(read_records(file)) == records_of(built, split)
    assert not list((exported / "parquet").glob("test*"))


def test_parquet_is_cut_into_shards(tmp_path):
    from medisee.data.parquet import read_rows, record_schema, write_shards

    rows = [{"id": str(number)} for number in range(25)]
    paths = write_shards(tmp_path / "x", rows, 25, record_schema(), shard=10, batch=4)
    assert [path.name for path in paths] == [f"x-0000{n}-of-00003.parquet" for n in range(3)]
    assert [row["id"] for path in paths for row in read_rows(path)] == [r["id"] for r in rows]
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="broken"):
        list(read_records(tmp_path / "broken.parquet"))


def test_coco_comes_back_through_the_importer_pixel_by_pixel(data, exported, tmp_path):
    rule = Selection(min_area=0, min_completeness=0, min_contrast=0)
    import_source(exported / "coco", tmp_path / "back", ImportOptions(selection=rule, name="c"))
    back = {r.image.rsplit("--", 1)[1]: r for r in Index.open(tmp_path / "back")}
    assert len(back) == 3
    for record in Index.open(data):
        found = next(r for name, r in back.items() if record.image.split("/")[1][:-4] in name)
        assert (found.split, found.licence) == (record.split, record.licence)
        assert set(found.labels) == set(record.labels)
        for label in record.labels:
            mask = Index.open(tmp_path / "back").load_mask(found, label)
            assert (mask == Index.open(data).load_mask(record, label)).all()


def test_coco_is_read_by_its_own_tools_and_holds_the_questions(built, exported):
    from pycocotools.coco import COCO

    coco = COCO(exported / "coco/instances_train.json")
    document = coco.dataset
    assert len(document["images"]) == 2 and len(document["annotations"]) == 4
    assert [q["id"] for q in document["questions"]] == [r.id for r in records_of(built, "train")]
    for question, record in zip(document["questions"], records_of(built, "train"), strict=True):
        found = coco.loadAnns(question["annotation_ids"])
        assert [coco.cats[a["category_id"]]["name"] for a in found] == [
            target.label for target in record.targets
        ]
        assert coco.imgs[question["image_id"]]["file_name"] == record.image
    for annotation in document["annotations"]:
        assert coco.annToMask(annotation).sum() == annotation["area"]


def test_authors_lines_have_one_image_and_one_mask(data, built, exported):
    folder = exported / "authors"
    lines = [json.loads(line) for line in (folder / "val.jsonl").read_text().splitlines()]
    implicit = [r for r in records_of(built, "val") if r.kind == "implicit"]
    assert [line["question"] for line in lines] == [r.question for r in implicit]
    for line, record in zip(lines, implicit, strict=True):
        mask = np.asarray(Image.open(folder / line["mask"]))
        assert (mask == Index.open(data).load_union(record.targets[0].masks)).all()
        assert line["box"] == pytest.approx([edge / 100 for edge in record.box])
        assert (folder / line["image"]).is_file()
    index = {record.image: record for record in Index.open(folder)}  # SA-Med2D's own files
    assert index["images/one.png"].labels == tuple(sorted(ABDOMEN))
    assert len(index) == 3


def test_datasets_folder_names_its_own_files(exported):
    folder = exported / "datasets"
    head = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    named = [f["path"] for config in head["configs"] for f in config["data_files"]]
    assert sorted(path for name in named for path in folder.glob(name)) == sorted(
        folder.rglob("*.parquet")
    )
    assert [config["config_name"] for config in head["configs"] if config.get("default")] == [
        "questions"
    ]


@pytest.mark.slow
def test_datasets_opens_it(data, built, exported, tmp_path):
    datasets = pytest.importorskip("datasets")
    where = str(exported / "datasets")
    questions = datasets.load_dataset(where, cache_dir=str(tmp_path), split="train")
    assert questions["question"] == [r.question for r in records_of(built, "train")]
    images = datasets.load_dataset(where, "images", cache_dir=str(tmp_path), split="val")
    (row,) = images
    assert np.array_equal(np.asarray(row["picture"]), np.asarray(Image.open(data / row["image"])))
    mask = np.asarray(row["masks"][0]["mask"]) > 0
    (record,) = Index.open(data).records("val")
    assert (mask == Index.open(data).load_mask(record, "optic disc")).all()


@pytest.mark.parametrize("form", FORMATS)
def test_metadata_tell_every_file_by_its_checksum(exported, form):
    folder = exported / form
    document = json.loads((folder / "croissant.json").read_text(encoding="utf-8"))
    files = {entry["contentUrl"]: entry["sha256"] for entry in document["distribution"]}
    assert files
    for name, digest in files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert {field["name"] for table in document["recordSet"] for field in table["field"]} >= (
        {"question", "answer"} if document["recordSet"] else set()
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_mlcroissant_reads_the_metadata(exported, form):
    croissant = pytest.importorskip("mlcroissant")
    dataset = croissant.Dataset(jsonld=str(exported / form / "croissant.json"))
    assert not dataset.metadata.issues.errors
    for table in dataset.metadata.record_sets:
        assert next(iter(dataset.records(table.uuid)))[f"{table.uuid}/question"]


def test_an_export_can_leave_out_what_may_not_be_passed_on(data, built, tmp_path):
    stats = export_set(built, tmp_path / "open", "coco", data=data, redistributable=True)
    assert stats.images == {"train": 1, "val": 1, "test": 0}
    assert set(stats.licences) == {"CC BY 4.0"}
    assert {path.name for path in (tmp_path / "open/images").iterdir()} == {"one.png", "three.png"}
    card = (tmp_path / "open/README.md").read_text(encoding="utf-8")
    assert "does not let the image be passed on" in card and "research use" not in card


def test_what_cannot_be_exported_leaves_nothing_behind(data, built, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/keep.txt").write_text("me")
    for to, form, data_folder, reason in (
        ("mine", "parquet", None, "choose a new folder"),
        ("new", "coco", None, "--data"),
        ("new", "zip", data, "no form"),
        ("new", "parquet", tmp_path / "nowhere", "no such data folder"),
        ("new", "coco", built, "neither"),
    ):
        with pytest.raises(DataError, match=reason):
            export_set(built, tmp_path / to, form, data=data_folder)
    with pytest.raises(DataError, match="no finished build"):
        export_set(tmp_path, tmp_path / "new", "parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_a_missing_image_ends_it_and_leaves_nothing_behind(data, built, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/index.jsonl").write_text("")
    for form in WITH_IMAGES:
        with pytest.raises((DataError, OSError)):
            export_set(built, tmp_path / "new", form, data=tmp_path / "data")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
