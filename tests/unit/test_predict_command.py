"""``fedglioma-client predict``: what a model says of single patients, and what is refused."""

import errno
import json
import logging
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedglioma.case import GENES, Gene, Modality
from fedglioma.config.run import RunConfig
from fedglioma.data.cache import Cache
from fedglioma.data.cohort import read_cohort
from fedglioma.data.prepare import PrepareSettings, prepare_cases
from fedglioma.training.released import config_digest, load_model
from fedglioma_client import cli, predict, predict_folder, predict_model
from fedglioma_client.predict_folder import result_folder
from fedglioma_client.predict_page import percent
from fedglioma_client.predict_result import Prediction, marker, who_of
from fedglioma_server.readings import predictions_of
from tests.bad_cohorts import COLUMNS, ROWS, SHAPE, volume, write_cohort, write_table, write_volume
from tests.predict_fixture import MODELS, write_untrained

REAL = os.environ.get("FEDGLIOMA_REAL_DATA")
NAMED = "P2"
Command = Callable[..., Result]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a released, untrained model of each kind."""
    root = tmp_path_factory.mktemp("models")
    for name, table in MODELS.items():
        write_untrained(root / name, RunConfig(**table), synthetic=name == "sgpnet")
    return root


@pytest.fixture
def hospital(tmp_path: Path, models: Path) -> Path:
    """Three whole patients, one with a mask, and the settings of site north; one cache for all tests."""
    write_cohort(tmp_path / "data")
    labels = np.zeros(SHAPE, np.uint8)
    labels[9:13, 12:17, 8:12] = 2
    write_volume(tmp_path / "data" / "P1" / "P1_seg.nii.gz", labels)
    (tmp_path / "site_config").mkdir()
    settings(tmp_path, cache=models / "cache")
    return tmp_path


def settings(root: Path, *, cache: Path | str = "../cache", data: Path | str = "../data") -> None:
    text = f"site: north\ndata: {data}\ncache: {cache}\nthreads: 1\n"
    (root / "site_config" / "north.yaml").write_text(text, encoding="utf-8")


@pytest.fixture
def client(hospital: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Call ``predict`` as site north; ``out`` and the model are given unless the words name them."""
    monkeypatch.setattr("fedglioma.log.configure", lambda *_args, **_options: None)
    monkeypatch.setenv("FEDGLIOMA_CONFIG_DIR", str(hospital / "site_config"))
    monkeypatch.setenv("FEDGLIOMA_SITE", "north")
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str | Path, model: str | Path = "sgpnet", out: Path | None = None) -> Result:
        monkeypatch.setenv("FEDGLIOMA_MODEL_FOLDER", str(models / model))
        given_ = ["predict", *map(str, words), "--out", str(out or hospital / "out")]
        return CliRunner().invoke(cli.app, given_, catch_exceptions=False)

    return call


def result_of(hospital: Path, patient: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((hospital / "out" / patient / "prediction.json").read_bytes())
    return found


def listing(root: Path) -> dict[str, tuple[float, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("model", "genes", "outlines"),
    [("mdpnet", ["idh", "atrx", "codel_1p19q"], False), ("sgpnet", ["idh"], True), ("unet", [], True)],
)
def test_every_kind_of_model_writes_what_it_is_asked(
    client: Command, hospital: Path, model: str, genes: list[str], outlines: bool
) -> None:
    result = client("P1", "P2", model=model)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (0, "predict: 2/2 cases")
    for patient in ("P1", "P2"):
        files = {path.name for path in (hospital / "out" / patient).iterdir()}
        assert files == {"prediction.json", "report.html", "overview.png"} | (
            {"segmentation.nii.gz"} if outlines else set()
        )
        told = Prediction.model_validate(result_of(hospital, patient))
        assert [gene.value for gene in told.markers] == genes
        assert (told.who is None) == (not genes)
        assert (told.tumour is None) == (not outlines)
        assert told.present == tuple(Modality)
        assert told.brain_ml == pytest.approx(1451, rel=0.05)  # 4/3 pi 6.6 x 8.2 x 6.4 cm
        assert not told.synthetic_patient
        assert told.synthetic_model == (model == "sgpnet")
        assert "Research use only" in told.statement
        if told.tumour is not None:
            image = nib.Nifti1Image.from_filename(hospital / "out" / patient / "segmentation.nii.gz")
            given_ = nib.Nifti1Image.from_filename(volume(hospital / "data", patient=patient))
            np.testing.assert_array_equal(image.affine, given_.affine)
            assert (image.shape, image.get_data_dtype()) == (given_.shape, np.uint8)
            ml = np.count_nonzero(np.asarray(image.dataobj)) * 8**3 / 1000
            assert told.tumour.volume_ml == pytest.approx(ml, rel=1e-6)
            assert (told.tumour.expert is not None) == (patient == "P1")
            if told.tumour.expert is not None:
                assert told.tumour.expert.volume_ml == pytest.approx(4 * 5 * 4 * 8**3 / 1000)


@pytest.mark.parametrize(
    ("model", "words", "changed"),
    [
        ("mdpnet", [], {}),
        ("mdpnet", ["--flips"], {"average_flips": True}),
        ("mdpnet", ["--window", "sliding"], {"inference": "sliding"}),
        ("sgpnet", [], {}),
    ],
)
def test_probabilities_are_those_of_the_evaluation(
    client: Command, hospital: Path, models: Path, model: str, words: list[str], changed: dict[str, Any]
) -> None:
    client("P1", "P3", *words, model=model)
    learner, settings, _ = load_model(models / model)
    settings = RunConfig(**(settings.model_dump(mode="json") | changed))
    cases = [case for case in read_cohort(hospital / "data").cases if case.patient != NAMED]
    done = prepare_cases(cases, PrepareSettings.of(settings), Cache(models / "cache"))
    expected = predictions_of(learner, settings, done.cases, ["a", "b"], torch.device("cpu"))
    for place, patient in enumerate(("P1", "P3")):
        markers = result_of(hospital, patient)["markers"]
        for gene in settings.genes:
            assert markers[gene.value]["probability"] == pytest.approx(
                expected.probabilities[place, GENES.index(gene)], abs=1e-6
            )
            assert markers[gene.value]["call"] == expected.calls()[place, GENES.index(gene)]


def test_reading_is_the_models_own_unless_told_otherwise(client: Command, hospital: Path) -> None:
    client("P1", model="unet")
    assert result_of(hospital, "P1")["question"]["reading"] == {"crop": 16, "window": 16, "flips": False}
    client("P1", "--flips", "--window", "centre", "--overwrite", model="unet")
    assert result_of(hospital, "P1")["question"]["reading"] == {"crop": 16, "window": None, "flips": True}


def test_nothing_changes_but_the_results_and_the_cache(client: Command, hospital: Path) -> None:
    settings(hospital)
    before = listing(hospital)
    assert client("P1", "P2").exit_code == 0
    after = listing(hospital)
    assert {name: after[name] for name in before} == before
    assert {Path(name).parts[0] for name in set(after) - set(before)} == {"out", "cache"}


def test_results_are_for_their_owner_alone(client: Command, hospital: Path) -> None:
    client("P1")
    folder = hospital / "out" / "P1"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_no_log_line_names_a_patient(
    client: Command, hospital: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    volume(hospital / "data").write_bytes(b"")
    client("P1", NAMED)
    assert not [record for record in caplog.records if re.search(r"P[123]\b", record.getMessage())]


def test_all_reads_everybody_and_names_those_left_out(client: Command, hospital: Path) -> None:
    volume(hospital / "data").write_bytes(b"")
    result = client("--all")
    assert result.exit_code == 0
    assert sorted(path.name for path in (hospital / "out").iterdir()) == ["P1", "P3"]
    assert re.search(r"^left out: 1\n  P2: t1ce .* 0 bytes; .* -> copy the file again", result.stdout, re.M)


def test_named_patient_who_cannot_be_read_ends_with_4_and_the_others_are_done(
    client: Command, hospital: Path
) -> None:
    path = volume(hospital / "data")
    path.write_bytes(path.read_bytes()[:-4])
    result = client("P1", NAMED, "--format", "json")
    envelope = json.loads(result.stdout)
    assert result.exit_code == envelope["exit_code"] == 4
    assert envelope["data"]["made"] == ["P1"]
    (left,) = envelope["data"]["left_out"]
    assert (left["patient"], left["code"], left["stage"]) == (NAMED, "truncated", "prepare")
    assert left["remedy"].startswith("copy the file again")
    assert (hospital / "out" / "P1" / "report.html").is_file()
    assert not (hospital / "out" / NAMED).exists()


def test_json_has_every_prediction(client: Command, hospital: Path) -> None:
    envelope = json.loads(client("P1", "--format", "json").stdout)
    assert (envelope["status"], envelope["exit_code"]) == ("ok", 0)
    assert envelope["data"]["predictions"] == [result_of(hospital, "P1")]
    assert envelope["data"]["model"]["run_id"] == "tests"


def test_patient_without_a_row_or_a_consent_is_named_with_the_reason(client: Command, hospital: Path) -> None:
    write_table(hospital / "data", [COLUMNS, ROWS[0], (*ROWS[2][:-1], "clinical")])
    result = client(NAMED, "P3")
    assert result.exit_code == 4
    assert "P2: a folder with images but no row in participants.tsv" in result.stdout
    assert "P3: purpose is 'clinical', the model is for research" in result.stdout
    assert result.stderr.splitlines()[-1] == "error: 2 patients of 2 left out; reasons are in the list"


def test_labels_are_not_needed(client: Command, hospital: Path) -> None:
    write_table(hospital / "data", [["participant_id"], ["P1"], ["sub-P2"], ["P3"]])
    assert client("sub-P1", "p2").exit_code == 0
    assert sorted(path.name for path in (hospital / "out").iterdir()) == ["P1", "P2"]


def test_missing_sequence_is_said(client: Command, hospital: Path) -> None:
    volume(hospital / "data", "t2").unlink()
    client(NAMED, model="mdpnet")
    assert result_of(hospital, NAMED)["missing"] == ["t2"]
    page = (hospital / "out" / NAMED / "report.html").read_text(encoding="utf-8")
    assert "Missing: T2" in page
    assert page.count("data:image/png") == 3


def test_result_that_is_there_is_kept_and_another_one_is_not_replaced(
    client: Command, hospital: Path
) -> None:
    client("P1")
    before = listing(hospital / "out")
    again = client("P2", "P1", "P2", "--format", "json")
    assert again.exit_code == 0
    data = json.loads(again.stdout)["data"]
    assert (data["kept"], data["made"]) == (["P1"], ["P2"])
    assert [one["patient"] for one in data["predictions"]] == ["P2", "P1"]
    after = listing(hospital / "out")
    assert {name: after[name] for name in before} == before
    for words, model in (
        (["--flips"], "sgpnet"),
        ([], "unet"),
    ):
        refused = client("P1", *words, model=model)
        assert refused.exit_code == 2
        assert "give --overwrite to replace it, or another --out" in refused.stderr
        assert listing(hospital / "out") == after
    assert client("P1", "--overwrite", model="unet").exit_code == 0
    assert result_of(hospital, "P1")["markers"] == {}
    assert not list((hospital / "out").glob(".*"))


def test_changed_images_or_mask_are_another_question(client: Command, hospital: Path) -> None:
    client("P1")
    mask = hospital / "data" / "P1" / "P1_seg.nii.gz"
    labels = np.asarray(nib.Nifti1Image.from_filename(mask).dataobj)
    write_volume(mask, np.roll(labels, 1, axis=0))
    assert client("P1").exit_code == 2
    mask.unlink()
    assert client("P1").exit_code == 2


def test_something_else_of_a_patients_name_is_not_taken_for_a_result(client: Command, hospital: Path) -> None:
    (hospital / "out").mkdir()
    (hospital / "out" / "P1").write_text("notes", encoding="utf-8")
    refused = client("P1")
    assert refused.exit_code == 2
    assert "P1: holds something else" in refused.stderr
    assert client("P1", "--overwrite").exit_code == 0
    assert (hospital / "out" / "P1" / "report.html").is_file()


def test_stopped_in_the_middle_it_keeps_what_is_whole_and_goes_on(
    client: Command, hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = predict.write_pages, []

    def stopping(folder: Path, *rest: Any) -> None:
        seen.append(folder)
        if len(seen) == 2:
            raise KeyboardInterrupt
        real(folder, *rest)

    monkeypatch.setattr(predict, "write_pages", stopping)
    assert client("--all").exit_code == 130
    assert [path.name for path in (hospital / "out").iterdir()] == ["P1"]
    data = json.loads(client("--all", "--format", "json").stdout)["data"]
    assert (data["kept"], data["made"]) == (["P1"], ["P2", "P3"])


def test_full_disk_leaves_nothing_half_written(
    client: Command, hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client("P1")
    before = listing(hospital / "out")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fedglioma_client.predict_write.write_private", full)
    result = client("P1", "P2", "--overwrite")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: No space left on device")
    assert listing(hospital / "out") == before
    assert not list((hospital / "out").glob(".*"))


def test_folder_keeps_the_old_result_when_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "P1").mkdir()
    (tmp_path / "P1" / "old").touch()
    real = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise PermissionError(errno.EACCES, "no")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError), result_folder(tmp_path / "P1") as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["P1", "old"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["P9"], 2, "participants.tsv; did you mean P"),
        (["Jane"], 2, "'Jane': no such patient in"),
        ([], 2, "name the patients, or give --all"),
        (["P1", "--all"], 2, "name the patients, or give --all"),
        (["P1", "--device", "gpu"], 2, "device: 'gpu' is no device; set device to cpu"),
        (["P1", "--device", "cuda:99"], 2, "device: cuda:99 asked for"),
        (["P1", "--window", "sliding"], 2, "with preprocessing sgpnet a case is one window already"),
    ],
)
def test_what_was_asked_wrongly_is_said_in_one_line(
    client: Command, hospital: Path, words: list[str], code: int, said: str
) -> None:
    settings(hospital)
    if "P1" in words:
        preprocessed = {"preprocessing": "sgpnet"}
        write_untrained(hospital / "model", RunConfig(**(MODELS["sgpnet"] | preprocessed)))
    result = client(*words, model=hospital / "model" if "P1" in words else "sgpnet")
    assert result.exit_code == code
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr
    assert not (hospital / "out").exists()
    assert not (hospital / "cache").exists()


def test_output_that_cannot_be_is_said_before_anything_is_done(client: Command, hospital: Path) -> None:
    settings(hospital)
    (hospital / "file").touch()
    for out, said in (
        (hospital / "file", "is a file; name a folder"),
        (hospital / "file" / "below", "cannot be written"),
        (Path("/proc/fedglioma"), "cannot be written"),
    ):
        result = client("P1", out=out)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert f"--out {out}: " in result.stderr
        assert said in result.stderr
    assert not (hospital / "cache").exists()


def _gone(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _edited(**changed: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(table | changed), encoding="utf-8")

    return edit


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    "harm",
    [
        _gone,
        _cut,
        _edited(format="another"),
        _edited(schema_version=2),
        _edited(digest="0" * 64),
        _edited(channels=["t1"]),
        _edited(settings={"preprocessing": "unheard-of"}),
        lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"),
        lambda folder: (folder / "config.json").write_text("[]", encoding="utf-8"),
    ],
)
def test_model_that_cannot_be_used_is_refused_in_one_line(
    client: Command, hospital: Path, harm: Callable[[Path], object]
) -> None:
    folder = write_untrained(hospital / "model", RunConfig(**MODELS["sgpnet"]))
    harm(folder)
    result = client("P1", model=folder)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "defect" not in result.stderr
    assert str(folder) in result.stderr.replace("\n", "")
    assert not (hospital / "out").exists()


def test_model_whose_images_were_prepared_otherwise_is_refused(client: Command, hospital: Path) -> None:
    folder = write_untrained(hospital / "model", RunConfig(**MODELS["sgpnet"]))
    table = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"pipeline": 1}
    table["config_digest"] = config_digest(table)
    (folder / "config.json").write_text(json.dumps(table), encoding="utf-8")
    result = client("P1", model=folder)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "made for images prepared by version 1 of the preparation, this fedglioma has" in result.stderr


def test_model_of_another_version_is_read_with_a_warning(client: Command, hospital: Path) -> None:
    folder = write_untrained(hospital / "model", RunConfig(**MODELS["sgpnet"]), made_by="0.0.1")
    result = client("P1", model=folder)
    assert result.exit_code == 0
    assert "warning: the model was released with fedglioma 0.0.1" in result.stdout
    page = (hospital / "out" / "P1" / "report.html").read_text(encoding="utf-8")
    assert "released with fedglioma 0.0.1" in page


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [("unet", [], "the network unet needs"), ("mdpnet", ["--window", "sliding"], "sliding windows need")],
)
def test_without_monai_what_needs_it_says_what_to_install(
    client: Command, monkeypatch: pytest.MonkeyPatch, model: str, words: list[str], said: str
) -> None:
    monkeypatch.setattr(predict_model, "find_spec", lambda _name: None)
    result = client("P1", *words, model=model)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "pip install 'fedglioma[baselines]'" in result.stderr


def test_network_that_answers_no_number_costs_that_patient_alone(
    client: Command, hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = predict_model.Reader.read, []

    def broken(self: Any, *given_: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        outputs = real(self, *given_)
        return {name: value * torch.nan for name, value in outputs.items()} if len(calls) == 1 else outputs

    monkeypatch.setattr(predict_model.Reader, "read", broken)
    result = client("P1", "P2")
    assert result.exit_code == 4
    assert "P1: the network's answer is not a finite number" in result.stdout
    assert [path.name for path in (hospital / "out").iterdir()] == ["P2"]


IMPOSSIBLE = {(0, 0, 1), (0, 1, 1), (1, 1, 1)}


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_contradictions_are_said_and_no_marker_is_changed(probabilities: tuple[float, ...]) -> None:
    markers = {gene: marker(gene, p) for gene, p in zip(GENES, probabilities, strict=True)}
    calls = tuple(int(p >= 0.5) for p in probabilities)
    told = who_of(markers)
    assert told is not None
    assert tuple(found.call for found in markers.values()) == calls
    assert told.contradiction == (calls in IMPOSSIBLE)
    assert ("at least one of the predictions is wrong" in told.note) == told.contradiction


def test_page_shows_a_contradiction_and_hides_no_probability(
    client: Command, hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {Gene.IDH: 0.2, Gene.ATRX: 0.7, Gene.CODEL: 0.9}

    def says(*_: object) -> dict[str, torch.Tensor]:
        return {g.value: torch.tensor([[0.0, np.log(p / (1 - p))]]) for g, p in wanted.items()}

    monkeypatch.setattr(predict_model.Reader, "read", says)
    result = client("P1", model="mdpnet")
    page = (hospital / "out" / "P1" / "report.html").read_text(encoding="utf-8")
    assert "CONTRADICTORY" in result.stdout
    assert "Contradictory markers (1p/19q codeletion with wild-type IDH or mutant ATRX)" in page
    for words in ("mutant: 20 %", "mutant: 70 %", "codeleted: 90 %", "IDH: wild-type", "1p/19q: codeleted"):
        assert words in page
    assert result_of(hospital, "P1")["who"]["code"] == "contradictory"


def test_page_needs_nothing_else_and_escapes_what_it_shows(client: Command, hospital: Path) -> None:
    (hospital / "data" / "P1").rename(hospital / "data" / "<b>x")
    for path in (hospital / "data" / "<b>x").iterdir():
        path.rename(path.with_name(path.name.replace("P1", "<b>x")))
    write_table(hospital / "data", [COLUMNS, ("<b>x", *ROWS[0][1:])])
    assert client("<b>x").exit_code == 0
    page = (hospital / "out" / "<b>x" / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;x" in page
    assert "<b>x" not in page
    assert not re.search(r"<script|https?://|src=\"(?!data:)|href=", page)
    assert "default-src 'none'" in page


def test_page_says_what_it_is_and_what_the_model_was_trained_on(client: Command, hospital: Path) -> None:
    client("P1")
    page = (hospital / "out" / "P1" / "report.html").read_text(encoding="utf-8")
    assert page.count("Not for diagnosis or treatment of any patient") == 2
    assert "SYNTHETIC DATA: The model was trained on made-up patients" in page
    client("P1", "--overwrite", model="mdpnet")
    page = (hospital / "out" / "P1" / "report.html").read_text(encoding="utf-8")
    assert "SYNTHETIC" not in page


@pytest.mark.parametrize(
    ("probability", "words"), [(0.0, "under 1 %"), (0.01, "1 %"), (0.499, "50 %"), (0.996, "over 99 %")]
)
def test_no_probability_is_told_as_certain(probability: float, words: str) -> None:
    assert percent(probability) == words


def test_overview_is_a_picture_of_all_sequences(client: Command, hospital: Path) -> None:
    client("P1")
    content = (hospital / "out" / "P1" / predict_folder.OVERVIEW_NAME).read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert width > 3 * height / 1.3


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="FEDGLIOMA_REAL_DATA names no folder of real cases")
@pytest.mark.parametrize("model", ["sgpnet", "unet"])
def test_real_patient_with_a_mask_is_read(client: Command, hospital: Path, model: str) -> None:
    assert REAL
    data = Path(REAL) / "glioma"
    settings(hospital, data=data)
    folder = write_untrained(hospital / "model", RunConfig(**(MODELS[model] | {"spacing_mm": 4.0})))
    assert client("BraTS2021_00000", model=folder).exit_code == 0
    told = result_of(hospital, "BraTS2021_00000")
    given_ = nib.Nifti1Image.from_filename(next((data / "BraTS2021_00000").glob("*_t1ce.nii.gz")))
    image = nib.Nifti1Image.from_filename(hospital / "out" / "BraTS2021_00000" / "segmentation.nii.gz")
    assert image.shape == given_.shape
    np.testing.assert_array_equal(image.affine, given_.affine)
    outlined = np.asarray(
        nib.Nifti1Image.from_filename(next((data / "BraTS2021_00000").glob("*_seg.nii.gz"))).dataobj
    )
    assert told["tumour"]["expert"]["volume_ml"] == pytest.approx(np.count_nonzero(outlined) / 1000, abs=1e-3)
    overlap = np.count_nonzero((np.asarray(image.dataobj) > 0) & (outlined > 0))
    total = np.count_nonzero(image.dataobj) + np.count_nonzero(outlined)
    assert told["tumour"]["expert"]["dice"] == pytest.approx(2 * overlap / total)
