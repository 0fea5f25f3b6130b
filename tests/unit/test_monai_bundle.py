"""A released model as a MONAI bundle: MONAI's own tools take it, and it says what the server says."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, verify_metadata, verify_net_in_out
from torch import nn

from fedglioma.case import CHANNELS, GENES, Modality, Task
from fedglioma.config.run import RunConfig
from fedglioma.data.cache import Cache
from fedglioma.data.cohort import read_cohort
from fedglioma.data.patient_grid import PatientGrid
from fedglioma.data.prepare import PrepareSettings, prepare_cases
from fedglioma.data.standardize import on_scale
from fedglioma.data.synthetic_cohort import synthesize
from fedglioma.errors import ConfigError, DataError, ProtocolError
from fedglioma.metrics.predictions import Predictions
from fedglioma.scale import USUAL, Scale
from fedglioma.training.bundle_parts import (
    BundleNetwork,
    Inferer,
    Prepare,
    channel_titles,
    datalist,
    load_network,
)
from fedglioma.training.bundle_results import Evaluator, Save
from fedglioma.training.released import load_model
from fedglioma_server import monai_bundle
from fedglioma_server.bundle_config import inference_config
from fedglioma_server.monai_bundle import write_bundle
from fedglioma_server.readings import predictions_of
from fedglioma_server.records import write_json
from tests.cli_fixture import call, data_of, reason_of
from tests.release_fixture import SMALL, evaluation_of, run_record, small_settings, write_release

SCHEMA = Path(__file__).parents[1] / "reference" / "monai_metadata_schema.json"
PATIENTS = ("sub-SYN0001", "sub-SYN0002")

pytestmark = pytest.mark.filterwarnings("ignore")  # MONAI warns of every configuration that it reads


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up patients, of whom one lacks a sequence."""
    folder = tmp_path_factory.mktemp("cohort") / "data"
    synthesize(folder, patients=2, sites=("henan",), size=20, seed=3)
    next(folder.glob("sub-SYN0001/anat/*FLAIR.nii.gz")).unlink()
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared images, so that they are prepared once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of each kind of network; MDPNet's images are on a common scale."""
    scale = Scale(landmarks=dict(USUAL), cases=dict.fromkeys(CHANNELS, 9), sites=dict.fromkeys(CHANNELS, 2))
    made = {}
    for model in SMALL:
        settings = small_settings(model, spacing_mm=8)
        told = {"scale": scale, "scale_id": scale.id} if model == "mdpnet" else {}
        folder = tmp_path_factory.mktemp(model)
        write_release(folder / "model", settings, run_record(settings, **told))
        made[model] = bundle_of(folder / "model", folder / "bundle")
    return made


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("socket.socket.connect", refuse)


def bundle_of(model: Path, out: Path, **others: Any) -> Path:
    write_bundle(model, out, **{"bundle_version": "1.0.0", "authors": None, "license_file": None, **others})
    return out


def metadata_of(bundle: Path) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((bundle / "configs" / "metadata.json").read_text("utf-8"))
    return described


def workflow_of(bundle: Path, **others: Any) -> ConfigWorkflow:
    configs = bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=str(configs / "inference.json"),
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(bundle),
        **others,
    )
    workflow.initialize()
    return workflow


def servers_reading(bundle: Path, cohort: Path, cache: Path) -> tuple[Predictions, list[str]]:
    learner, settings, scale = load_model(bundle / "models")
    cases = read_cohort(cohort).cases
    prepared = prepare_cases(cases, PrepareSettings.of(settings), Cache(cache)).cases
    ready = on_scale(prepared, scale)
    splits = ["report"] * len(ready)
    said = predictions_of(learner, settings, ready, splits, torch.device("cpu"))
    return said, [item.case.patient for item in ready]


def test_bundle_has_the_files_that_the_specification_asks_for(bundles: dict[str, Path]) -> None:
    names = {str(path.relative_to(bundles["mdpnet"])) for path in bundles["mdpnet"].rglob("*.*")}
    assert names == {
        *("configs/metadata.json", "configs/inference.json", "configs/logging.conf"),
        *("docs/README.md", "docs/data_license.txt", "models/config.json", "models/model.safetensors"),
    }
    assert "grants no licence" in (bundles["mdpnet"] / "LICENSE").read_text("utf-8")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("model", SMALL)
def test_monai_verifies_the_metadata(model: str, bundles: dict[str, Path]) -> None:
    verify_metadata(
        meta_file=str(bundles[model] / "configs" / "metadata.json"),
        filepath=str(SCHEMA),
        hash_val=hashlib.sha256(SCHEMA.read_bytes()).hexdigest(),
        hash_type="sha256",
    )


def test_metadata_that_lacks_something_would_be_noticed(bundles: dict[str, Path], tmp_path: Path) -> None:
    described = metadata_of(bundles["unet"])
    for place in (("monai_version",), ("network_data_format", "outputs", "pred", "num_channels")):
        broken = json.loads(json.dumps(described))
        inner = broken
        for key in place[:-1]:
            inner = inner[key]
        del inner[place[-1]]
        (tmp_path / "metadata.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="Failed validating"):
            verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


@pytest.mark.parametrize("model", SMALL)
def test_monai_verifies_what_goes_in_and_comes_out(model: str, bundles: dict[str, Path]) -> None:
    configs = bundles[model] / "configs"
    verify_net_in_out(
        "network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        device="cpu",
        bundle_root=str(bundles[model]),
    )


@pytest.mark.parametrize("model", SMALL)
def test_monai_finds_every_property_of_an_inference_workflow(model: str, bundles: dict[str, Path]) -> None:
    workflow = workflow_of(bundles[model], dataset_dir="unused", datalist=[])
    assert workflow.check_properties() == []


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("model", SMALL)
def test_bundle_says_what_the_server_says(
    model: str, bundles: dict[str, Path], cohort: Path, cache: Path, tmp_path: Path
) -> None:
    places = {"dataset_dir": cohort, "output_dir": tmp_path / "out", "cache_dir": cache}
    workflow_of(bundles[model], **{name: str(place) for name, place in places.items()}).run()
    told = json.loads((tmp_path / "out" / "predictions.json").read_text("utf-8"))
    rows = {row["case"].removeprefix("sub-"): row for row in told["cases"]}
    expected, patients = servers_reading(bundles[model], cohort, cache)
    assert len(rows) == len(patients) == 2
    for place, patient in enumerate(patients):
        row = rows[patient.removeprefix("sub-")]
        assert row["modalities"] == expected.modalities[place]
        for column, gene in enumerate(GENES):
            if gene in expected.genes:
                assert row[f"p_{gene}"] == pytest.approx(expected.probabilities[place, column], abs=1e-5)
        assert ("tumour_ml" in row) == (expected.tumours is not None)
        if expected.tumours is not None:
            outline = nib.load(tmp_path / "out" / row["outline"])
            images = [nib.load(path) for path in cohort.glob(f"*{patient}*/anat/*.nii.gz")]
            assert any(
                image.shape == outline.shape and np.allclose(image.affine, outline.affine) for image in images
            )
            found = np.asarray(outline.dataobj).sum() * np.prod(outline.header.get_zooms()) / 1000
            assert found == pytest.approx(row["tumour_ml"], rel=1e-4, abs=1e-3)


def test_metadata_names_the_sequences_and_what_each_channel_says(bundles: dict[str, Path]) -> None:
    formats = {model: metadata_of(bundle)["network_data_format"] for model, bundle in bundles.items()}
    for found in formats.values():
        named = found["inputs"]["image"]["channel_def"]
        assert named == {"0": "FLAIR", "1": "T1 with contrast", "2": "T1", "3": "T2"}
    answers = {
        model: list(found["outputs"]["pred"]["channel_def"].values()) for model, found in formats.items()
    }
    assert answers["unet"] == ["background", "whole tumour"]
    assert answers["sgpnet"] == ["background", "whole tumour", "IDH wild-type", "IDH mutant"]
    assert answers["mdpnet"] == answers["resnet50"]
    assert answers["mdpnet"][4:] == ["1p/19q intact", "1p/19q codeleted"]


@pytest.mark.parametrize("model", SMALL)
def test_answer_of_the_network_is_the_softmax_of_its_logits(model: str, bundles: dict[str, Path]) -> None:
    network = load_network(bundles[model] / "models")
    edge = network.settings.crop
    image, present = torch.randn(2, 4, edge, edge, edge), torch.tensor([[1.0, 1, 1, 1], [1, 0, 1, 0]])
    with torch.no_grad():
        answer, outputs = network(image, present), network.model(image, present)
    assert answer.shape[1] == len(channel_titles(network.settings))
    start = 2 if Task.SEGMENTATION in network.settings.tasks else 0
    if start:
        logits = outputs["segmentation"].double().numpy()
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(answer[:, :2].numpy(), expected, atol=1e-6)
    for number, gene in enumerate(network.settings.genes):
        logits = outputs[gene.value].double().numpy()
        expected = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[:, 1]
        values = answer[:, start + 2 * number + 1].reshape(2, -1).numpy()
        np.testing.assert_allclose(values, np.repeat(expected[:, None], values.shape[1], 1), atol=1e-6)


def test_channel_of_zeros_is_a_sequence_that_is_not_there(bundles: dict[str, Path]) -> None:
    network = load_network(bundles["mdpnet"] / "models")
    image = torch.randn(1, 4, 16, 16, 16)
    image[:, 2] = 0
    with torch.no_grad():
        told = network(image, torch.tensor([[1.0, 1, 0, 1]]))
        assert torch.equal(network(image), told)
        assert torch.equal(Inferer()(image, network), told)


def test_inferer_reads_nothing_but_networks_of_bundles(bundles: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="Linear is not a network that load_network made"):
        Inferer()(torch.zeros(1, 4, 16, 16, 16), nn.Linear(1, 1))
    with pytest.raises(DataError, match="the image holds no brain"):
        load_network(bundles["unet"] / "models").joined({})


@pytest.mark.parametrize(("model", "crop"), [("mdpnet", 16), ("mdpnet", 32), ("unet", 16), ("sgpnet", 32)])
def test_affine_says_where_the_voxels_lie(
    model: str, crop: int, cohort: Path, cache: Path, tmp_path: Path
) -> None:
    settings = small_settings(model, spacing_mm=8, crop=crop)
    learner, _, _ = load_model(write_release(tmp_path / "model", settings))
    item = Prepare(BundleNetwork(learner, settings, None), cache)(datalist(cohort)[1])
    (case,) = [c for c in read_cohort(cohort).cases if "SYN0002" in c.patient]
    prepared = prepare_cases([case], PrepareSettings.of(settings), Cache(cache))
    whole, affine = np.load(prepared.cases[0].array), np.array(prepared.records[0].affine)
    image = item["image"].numpy()
    there = np.linalg.inv(affine) @ item["affine"]
    seen = 0
    for voxel in np.ndindex(*image.shape[1:]):
        place = np.rint(there @ [*voxel, 1])[:3].astype(int)
        inside = (place >= 0).all() and (place < whole.shape[1:]).all()
        expected = whole[:, *place] if inside else np.zeros(4)
        assert np.array_equal(image[:, *voxel], expected.astype(np.float32))
        seen += bool(inside and expected.any())
    assert seen > 100


class Answers:
    """Stands for a data set and its postprocessing."""

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


@pytest.fixture
def sgpnet(bundles: dict[str, Path]) -> BundleNetwork:
    return load_network(bundles["sgpnet"] / "models")


def item_of(name: str) -> dict[str, Any]:
    pred = torch.full((4, 2, 2, 2), 0.5)
    pred[1, 0, 0, 0], pred[3] = 0.9, 0.25
    return {
        "id": name,
        "modalities": "flair",
        "pred": pred,
        "affine": np.diag([10.0, 10, 10, 1]),
        "grid": PatientGrid(Modality.FLAIR, (2, 2, 2), np.diag([10.0, 10, 10, 1])),
        "remarks": [],
    }


def test_outline_and_probabilities_become_a_row_and_a_private_file(
    sgpnet: BundleNetwork, tmp_path: Path
) -> None:
    row = Save(sgpnet, tmp_path)(item_of("a"))
    assert row["p_idh"] == 0.25
    assert row["tumour_ml"] == 1.0
    image = nib.load(tmp_path / row["outline"])
    assert np.asarray(image.dataobj).sum() == 1
    np.testing.assert_array_equal(image.affine, np.diag([10.0, 10, 10, 1]))
    assert (tmp_path / row["outline"]).stat().st_mode & 0o077 == 0


def test_ids_cannot_leave_the_folder_or_share_a_file(sgpnet: BundleNetwork, tmp_path: Path) -> None:
    save = Save(sgpnet, tmp_path / "out")
    names = [
        save(item_of(name))["outline"]
        for name in ("../../x", ".._.._x", "a b", "a/b", "A_B", "...", "y" * 300)
    ]
    assert len({name.lower() for name in names}) == 7
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_answer_that_is_no_number_is_refused(sgpnet: BundleNetwork, tmp_path: Path) -> None:
    item = item_of("a")
    item["pred"][0, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="not a finite number"):
        Save(sgpnet, tmp_path)(item)


def test_case_that_cannot_be_used_is_told_and_does_not_stop_the_others(
    bundles: dict[str, Path], cohort: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(cohort, data)
    next(data.glob("sub-SYN0001/anat/*T2w.nii.gz")).write_bytes(b"no image")
    workflow_of(bundles["mdpnet"], dataset_dir=str(data), output_dir=str(tmp_path / "out")).run()
    first, second = json.loads((tmp_path / "out" / "predictions.json").read_text("utf-8"))["cases"]
    assert "not a gzip stream" in first["refused"]
    assert "p_idh" not in first
    assert 0 < second["p_idh"] < 1
    assert "not a gzip stream" in (tmp_path / "out" / "predictions.csv").read_text("utf-8").splitlines()[1]


@pytest.mark.parametrize(
    ("items", "said"),
    [([], "no case to read"), ([{"id": "a", "modalities": "t1", "refused": "why"}], "none of 1 cases")],
)
def test_nothing_to_read_is_an_error(
    items: list[dict[str, Any]], said: str, sgpnet: BundleNetwork, tmp_path: Path
) -> None:
    post = Save(sgpnet, tmp_path)
    with pytest.raises(DataError, match=said):
        Evaluator(Answers(items), sgpnet, Inferer(), post, "cpu", tmp_path).run()


def test_list_of_cases_may_be_written_by_hand(tmp_path: Path) -> None:
    entries = [{"id": "a", "flair": "x.nii.gz", "t2": None, "t1": ""}, {"id": 7, "t1ce": "/abs/y.nii"}]
    for content in (entries, {"testing": entries}):
        (tmp_path / "list.json").write_text(json.dumps(content))
        assert datalist(tmp_path, tmp_path / "list.json") == [
            {"id": "a", "flair": str(tmp_path / "x.nii.gz")},
            {"id": "7", "t1ce": "/abs/y.nii"},
        ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as a JSON list"),
        ("[" * 100_000, "cannot be read as a JSON list"),
        ("[]", "holds no list of cases"),
        ('{"training": [{"id": "a"}]}', "holds no list of cases"),
        ('[{"id": "a"}, {"id": "a"}]', "an id stands there twice"),
        ('[{"flair": "x"}]', "case 1: id and any of flair, t1ce, t1, t2"),
        ('[{"id": "a", "T1c": "x"}]', "case 1: id and any of"),
        ('[{"id": "a", "t1": ["x", "y"]}]', "a sequence is one file"),
    ],
)
def test_list_of_cases_that_says_something_else_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(DataError, match=said):
        datalist(tmp_path, tmp_path / "list.json")


def test_bundles_loader_refuses_what_load_model_refuses(bundles: dict[str, Path], tmp_path: Path) -> None:
    models = Path(shutil.copytree(bundles["mdpnet"] / "models", tmp_path / "models"))
    weights = models / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ProtocolError, match="damaged or cut off"):
        load_network(models)
    shutil.copy(bundles["unet"] / "models" / "model.safetensors", weights)
    with pytest.raises(ProtocolError, match="weights of another network"):
        load_network(models)


def test_model_for_images_prepared_otherwise_is_refused(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedglioma.training.bundle_parts.PIPELINE_VERSION", 10_000)
    with pytest.raises(ProtocolError, match="this fedglioma has 10000; install the fedglioma that"):
        load_network(bundles["mdpnet"] / "models")


def test_configuration_names_only_what_can_be_imported_and_no_pickle() -> None:
    text = json.dumps(inference_config())
    assert all(word not in text for word in ("torch.load", "CheckpointLoader", ".pt", "http"))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run's folder as far as a bundle looks at it."""
    settings = small_settings("sgpnet")
    record = run_record(settings, synthetic=False)
    write_release(tmp_path / "run" / "model", settings, record)
    write_json(tmp_path / "run" / "run.json", record)
    (tmp_path / "run" / "evaluation").mkdir()
    evaluation_of(settings).write(tmp_path / "run" / "evaluation" / "metrics.json")
    return tmp_path / "run"


def test_held_out_figures_and_hospitals_come_from_the_run_around_the_model(
    run_folder: Path, tmp_path: Path
) -> None:
    described = metadata_of(bundle_of(run_folder / "model", tmp_path / "bundle"))
    expected = evaluation_of(small_settings("sgpnet"))
    assert described["eval_metrics"]["idh_auc"] == pytest.approx(
        expected.overall[GENES[0]].auc.value, abs=1e-4
    )
    assert set(described["eval_metrics"]) == {
        *("idh_auc", "idh_accuracy", "whole_tumour_mean_dice", "whole_tumour_mean_hd95_mm")
    }
    assert "Patients of henan and ningxia" in described["data_source"]


def test_figures_of_another_run_are_not_taken(run_folder: Path, tmp_path: Path) -> None:
    settings = RunConfig.model_validate(small_settings("sgpnet").model_dump())
    write_json(run_folder / "run.json", run_record(settings, run_id="other"))
    described = metadata_of(bundle_of(run_folder / "model", tmp_path / "bundle"))
    assert described["eval_metrics"] == {}
    assert "henan" not in described["data_source"]


def test_command_writes_a_bundle_that_evaluate_reads(run_folder: Path, tmp_path: Path, cohort: Path) -> None:
    (tmp_path / "terms").write_text("Ask us first.")
    words = (
        "--authors",
        "the Yellow River group",
        "--license",
        tmp_path / "terms",
        "--bundle-version",
        "2.1.0",
    )
    result = call("bundle", run_folder / "model", "--out", tmp_path / "b", *words, "--format", "json")
    assert result.exit_code == 0, result.output
    assert data_of(result)["version"] == "2.1.0"
    described = metadata_of(tmp_path / "b")
    assert described["version"] == "2.1.0"
    assert described["copyright"] == "Copyright (c) the Yellow River group"
    assert (tmp_path / "b" / "LICENSE").read_text() == "Ask us first."
    evaluated = ("--cohort", cohort, "--out", tmp_path / "out", "--workers", "1", "--bootstrap", "100")
    assert call("evaluate", tmp_path / "b" / "models", *evaluated).exit_code == 0
    assert f"did you mean {tmp_path / 'b' / 'models'}?" in reason_of(
        call("evaluate", tmp_path / "b", *evaluated)
    )


def test_command_refuses_in_words_and_leaves_nothing(run_folder: Path, tmp_path: Path) -> None:
    model, out = run_folder / "model", tmp_path / "b"

    def said(code: int, *words: str | Path) -> str:
        result = call("bundle", *words)
        assert result.exit_code == code
        return reason_of(result)

    assert "no such folder" in said(2, tmp_path / "gone", "--out", out)
    assert "did you mean" in said(1, run_folder, "--out", out)
    assert "never overwritten" in said(2, model, "--out", run_folder)
    licence = said(2, model, "--out", out, "--license", tmp_path / "gone")
    assert licence == f"{tmp_path / 'gone'}: no such file or directory; name a text file by --license"
    (tmp_path / "latin").write_bytes(b"\xff")
    assert "not UTF-8 text; name" in said(2, model, "--out", out, "--license", tmp_path / "latin")
    (model / "README.md").rename(model / "card")
    assert "the model card is missing" in said(2, model, "--out", out)
    (model / "card").rename(model / "README.md")
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    assert "cut off" in said(1, model, "--out", out)
    assert not list(tmp_path.glob("*b*.part"))
    assert not out.exists()


@pytest.mark.parametrize("version", ["x y", "1.0", "1.0.0.0", "v1.0.0", "1.0.0\n", "1..0", "\u0661.0.0", ""])
def test_bundles_version_is_three_numbers(run_folder: Path, tmp_path: Path, version: str) -> None:
    with pytest.raises(ConfigError, match="give three numbers"):
        bundle_of(run_folder / "model", tmp_path / "b", bundle_version=version)
    assert not (tmp_path / "b").exists()


def test_bundle_appears_whole_or_not_at_all(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("disk full")

    monkeypatch.setattr(monai_bundle, "inference_config", fail)
    with pytest.raises(OSError, match="disk full"):
        bundle_of(run_folder / "model", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
