from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from fedglioma.case import Case, Genotype, Task
from fedglioma.config.run import RunConfig
from fedglioma.data.split import Split
from fedglioma.errors import ConfigError
from fedglioma_server.spending import epsilon_after
from fedglioma_server.study_alone import without_models
from fedglioma_server.study_cells import divide, expand
from fedglioma_server.study_file import Study

SITES = ("henan", "ningxia", "zhengzhou")
CASES = tuple(
    Case(patient=f"p{i:02}", site=SITES[i % 3], volumes={}, genotype=Genotype(idh=i % 2)) for i in range(30)
)
SITE_OF = {case.patient: case.site for case in CASES}


def study(**changes: Any) -> Study:
    table = {"title": "t", "size": "test", "arms": [{"name": "A"}, {"name": "B", "settings": {"lr": 0.1}}]}
    return Study.model_validate(table | {"divisions": {"folds": 3}} | changes)


def test_every_patient_is_reported_once_per_arm_protocol_and_seed() -> None:
    cells = expand(study(seeds=(1, 2)), CASES, {})
    assert len(cells) == 2 * 2 * 3
    reported = Counter(
        (cell.arm.name, cell.seed, patient)
        for cell in cells
        for patient in cell.division.patients(Split.REPORT)
    )
    assert set(reported.values()) == {1}
    assert len(reported) == 2 * 2 * len(CASES)


def test_all_arms_and_seeds_see_the_same_divisions() -> None:
    cells = expand(study(seeds=(1, 2)), CASES, {})
    digests: dict[int, set[str]] = {}
    for cell in cells:
        digests.setdefault(cell.fold, set()).add(cell.division.digest)
    assert all(len(found) == 1 for found in digests.values())


def test_hospital_alone_trains_and_selects_on_its_own_patients() -> None:
    cells = expand(study(protocols=("federated", "local", "finetuned", "centralised")), CASES, {})
    alone = [cell for cell in cells if cell.site]
    assert {cell.protocol for cell in alone} == {"local", "finetuned"}
    assert {cell.site for cell in alone} == set(SITES)
    for cell in alone:
        own = {p for part in (Split.TRAIN, Split.SELECTION) for p in cell.division.patients(part)}
        assert {SITE_OF[patient] for patient in own} == {cell.site}
    shared = next(cell for cell in cells if cell.protocol == "federated")
    assert alone[0].division.patients(Split.REPORT) == shared.division.patients(Split.REPORT)


def test_finetuning_comes_after_the_federation_that_it_goes_on_from(tmp_path: Path) -> None:
    cells = expand(study(protocols=("finetuned", "federated")), CASES, {"rounds": 20})
    order = [(cell.arm.name, cell.fold, cell.protocol) for cell in cells]
    for cell in cells:
        if cell.protocol == "finetuned":
            start = cell.starts_from(tmp_path)
            source = next(c for c in cells if start == c.folder(tmp_path) / "model")
            assert (source.protocol, source.arm, source.fold) == ("federated", cell.arm, cell.fold)
            assert order.index((cell.arm.name, cell.fold, "federated")) < cells.index(cell)
            assert cell.settings.rounds == 2
        else:
            assert cell.starts_from(tmp_path) is None


def test_no_two_runs_share_a_folder(tmp_path: Path) -> None:
    cells = expand(study(seeds=(1, 2), protocols=("federated", "local", "finetuned")), CASES, {})
    folders = [cell.folder(tmp_path) for cell in cells]
    assert len(set(folders)) == len(folders)
    assert not any(one in other.parents for one in folders for other in folders)


def test_site_that_is_left_out_has_no_model_of_its_own() -> None:
    cells = expand(study(divisions={"kind": "sites"}, protocols=("federated", "centralised")), CASES, {})
    for cell in cells:
        left_out = {SITE_OF[patient] for patient in cell.division.patients(Split.REPORT)}
        assert left_out == {cell.division.name}
    for protocols in (("federated", "local"), ("federated", "finetuned")):
        with pytest.raises(ValueError, match="has no model of its own"):
            study(divisions={"kind": "sites"}, protocols=protocols)


def _split_file(folder: Path, reported: Callable[[Case], bool]) -> Path:
    file = folder / "splits.csv"
    rows = [f"{case.patient.upper()},{'test' if reported(case) else 'train'}" for case in CASES]
    file.write_text("participant_id,split\n" + "\n".join(rows))
    return file


def test_hospital_without_a_reported_patient_trains_no_model_that_nobody_would_ask(tmp_path: Path) -> None:
    file = _split_file(tmp_path, lambda case: case.site != "henan" and case.patient < "p09")
    divisions = {"kind": "file", "file": str(file)}
    cells = expand(study(divisions=divisions, protocols=("local",)), CASES, {})
    assert {cell.site for cell in cells} == {"ningxia", "zhengzhou"}
    file = _split_file(tmp_path, lambda case: case.site == "henan")
    with pytest.raises(ConfigError, match="protocols: local: in no division has a hospital"):
        expand(study(divisions=divisions, protocols=("federated", "local")), CASES, {})


def _outlined(sites: Collection[str], without: Collection[str] = ()) -> tuple[Case, ...]:
    return tuple(
        case.model_copy(update={"mask": Path("mask.nii")})
        if case.site in sites and case.patient not in without
        else case
        for case in CASES
    )


ALONE = ("federated", "local")


def test_hospital_without_a_target_trains_no_model_of_its_own_and_the_others_do() -> None:
    cases = _outlined(("henan", "ningxia"))
    both = study(arms=[{"name": "U", "settings": {"model": "unet"}}], protocols=ALONE)
    cells = expand(both, cases, {})
    assert {cell.site for cell in cells if cell.protocol == "local"} == {"henan", "ningxia"}
    divisions = divide(both, cases, cells[0].settings)
    told = without_models(divisions, cases, {"U": (Task.SEGMENTATION,), "G": (Task.IDH, Task.SEGMENTATION)})
    assert told == {"zhengzhou, U": "none of its training patients has an outline in 3 of 3 folds"}
    with pytest.raises(ConfigError, match="protocols: local: in no division has a hospital"):
        expand(both, CASES, {})


def test_hospital_of_whom_nobody_with_a_target_is_reported_trains_nothing(tmp_path: Path) -> None:
    file = _split_file(tmp_path, lambda case: case.patient < "p09")
    reported = [case.patient for case in CASES if case.site == "henan" and case.patient < "p09"]
    both = study(
        arms=[{"name": "U", "settings": {"model": "unet"}}],
        divisions={"kind": "file", "file": str(file)},
        protocols=ALONE,
    )
    cases = _outlined(SITES, reported)
    cells = expand(both, cases, {})
    assert {cell.site for cell in cells if cell.protocol == "local"} == {"ningxia", "zhengzhou"}
    told = without_models(divide(both, cases, cells[0].settings), cases, {"U": (Task.SEGMENTATION,)})
    assert told == {"henan, U": "none of its reported patients has an outline"}


def test_hospitals_are_spread_over_the_folds_where_they_train_alone() -> None:
    crowded = tuple(
        case.model_copy(update={"site": "henan" if place < 26 else SITES[1 + place % 2]})
        for place, case in enumerate(CASES)
    )
    site_of = {case.patient: case.site for case in crowded}
    for seed in range(10):
        settings = study().settings(study().arms[0], seed, {})
        for division in divide(study(protocols=ALONE, divisions={"folds": 2}), crowded, settings):
            told = Counter(site_of[patient] for patient in division.patients(Split.REPORT))
            assert told == {"henan": 13, "ningxia": 1, "zhengzhou": 1}


def test_strategy_for_many_sites_is_not_asked_of_one() -> None:
    settings = {"strategy": "multikrum", "quorum": 3}
    cells = expand(study(run=settings, protocols=("federated", "local", "centralised")), CASES, {})
    strategies = {cell.protocol: (cell.settings.strategy, cell.settings.quorum) for cell in cells}
    assert strategies == {"federated": ("multikrum", 3), "local": ("fedavg", 1), "centralised": ("fedavg", 1)}


PRIVATE = {"privacy": "site", "target_epsilon": 8.0, "sampling_rate": 1.0, "rounds": 20, "accountant": "rdp"}
TUNED = ("federated", "finetuned")


def _settings(protocols: tuple[str, ...] = TUNED, **changes: Any) -> dict[str, RunConfig]:
    one = {"arms": [{"name": "A"}], "protocols": protocols}
    return {cell.protocol: cell.settings for cell in expand(study(**one | changes), CASES, {})}


def test_fine_tuning_that_is_private_by_itself_gets_the_noise_of_its_own_target() -> None:
    privacy = {**PRIVATE, "target_epsilon": 3, "rounds": 4}
    found = _settings(run={"weighting": "fixed"}, finetune=privacy)
    assert found["federated"].privacy == "none"
    own = found["finetuned"]
    assert epsilon_after(own, 4, landmarks=False) == pytest.approx(3, rel=0.01)
    assert own.privacy_terms is not None


def test_fine_tuning_goes_on_with_no_less_noise_than_the_federation() -> None:
    shared, own = _settings(run=PRIVATE).values()
    assert own.rounds == 2
    assert own.noise_multiplier == shared.noise_multiplier > 0
    longer = _settings(run=PRIVATE, finetune={"rounds": 60})["finetuned"]
    assert longer.noise_multiplier > shared.noise_multiplier
    # It goes on on the federation's intensity scale, and is asked for none.
    assert epsilon_after(longer, 60, landmarks=False) == pytest.approx(8, rel=0.01)


def test_fine_tuning_of_another_target_follows_from_that_target() -> None:
    for target in (3.0, 30.0):
        own = _settings(run=PRIVATE, finetune={"target-epsilon": target})["finetuned"]
        assert epsilon_after(own, own.rounds, landmarks=False) == pytest.approx(target, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune": {"foo": 1}}, r"odd\.yaml: finetune: arm A: foo: unknown setting"),
        (
            {"finetune": {"crop": 24}, "run": {"model": "sgpnet", "crop": 32}},
            r"odd\.yaml: finetune: arm A: crop: 24: sgpnet needs",
        ),
        ({"finetune": {"width": 2}}, r"odd\.yaml: finetune: arm A: .* width 16 there, 2 here; leave it out"),
        ({"finetune": {"model": "unet"}}, "another network .* model mdpnet there, unet here"),
        (
            {"finetune": {"privacy": "site", "target_epsilon": 8}},
            "task_weighting uncertainty there, fixed here",
        ),
        ({"finetune": PRIVATE | {"target_epsilon": 1e-3}}, r"odd\.yaml: finetune: arm A: target epsilon"),
    ],
)
def test_fine_tuning_that_could_not_run_is_refused_before_anything_does(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _settings(file="odd.yaml", **changes)


@pytest.mark.parametrize("strategy", ["fedprox", "fedbn", "fedadam"])
def test_hospital_goes_on_with_the_federations_network_whatever_its_strategy(strategy: str) -> None:
    found = _settings(("federated", "local", "finetuned"), run={"strategy": strategy})
    weightings = {settings.task_weighting for settings in found.values()}
    assert len(weightings) == 1
    assert found["finetuned"].strategy == "fedavg"


def test_dice_of_differently_prepared_images_is_not_compared() -> None:
    arms = [
        {"name": "SGPNet", "settings": {"model": "sgpnet"}},
        {"name": "U-Net", "settings": {"model": "unet"}},
    ]
    apart = r"dice: SGPNet \(federated\) and U-Net \(federated\) .* preprocessing sgpnet and standard"
    for measures in ((), ("segmentation.dice",)):
        with pytest.raises(ConfigError, match=apart):
            expand(study(arms=arms, measures=measures), CASES, {})
    assert expand(study(arms=arms, measures=("idh.auc",)), CASES, {})
    assert expand(study(arms=arms, run={"preprocessing": "sgpnet", "crop": 128}), CASES, {})
    with pytest.raises(ConfigError, match="crop 144 and 128"):
        expand(study(arms=arms, run={"preprocessing": "sgpnet"}), CASES, {})


def test_dice_of_fine_tuning_on_other_images_is_not_compared() -> None:
    outlined = tuple(case.model_copy(update={"mask": Path("mask.nii")}) for case in CASES)
    tuned = study(arms=[{"name": "A"}], protocols=TUNED, run={"model": "unet"}, finetune={"spacing_mm": 2})
    with pytest.raises(ConfigError, match=r"A \(federated\) and A \(finetuned\) .* spacing_mm 1\.0 and 2\.0"):
        expand(tuned, outlined, {})


def test_markers_are_compared_between_preparations() -> None:
    arms = [{"name": str(mm), "settings": {"spacing_mm": mm}} for mm in (1, 2)]
    assert expand(study(arms=arms), CASES, {})


def test_divisions_of_a_file_are_used_as_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "splits.csv"
    rows = [f"p{i:02},{'test' if i % 5 == 0 else 'train'}" for i in range(30)]
    file.write_text("participant_id,split\n" + "\n".join(rows))
    (division,) = divide(
        study(divisions={"kind": "file", "file": str(file)}),
        CASES,
        study().settings(study().arms[0], 1, {}),
    )
    assert division.patients(Split.REPORT) == ("p00", "p05", "p10", "p15", "p20", "p25")


def test_too_many_runs_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 10000"):
        expand(study(seeds=tuple(range(2000))), CASES, {})


@pytest.mark.parametrize(
    ("given", "message"), [({"lr": 0.5}, "the arms differ in lr"), ({"seed": 3}, "--seed")]
)
def test_what_is_typed_cannot_make_the_arms_one(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(study(), CASES, given)


def test_measure_that_no_arm_is_asked_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"segmentation\.dice: no arm is asked that"):
        expand(study(measures=("segmentation.dice",)), CASES, {})


@pytest.mark.parametrize("baseline", ["majority", "age", "volume"])
def test_row_of_markers_in_a_study_of_outlines_is_refused_where_it_is_asked_for(baseline: str) -> None:
    outlines = [{"name": "A", "settings": {"model": "unet"}}]
    with pytest.raises(ConfigError, match=f"baselines: {baseline}: it is a row of a marker, and the study"):
        expand(study(arms=outlines, baselines=[baseline]), CASES, {})
    assert expand(study(arms=outlines), CASES, {}), "the default row is none that somebody asked for"


def test_row_of_dice_without_a_measure_of_it_is_refused() -> None:
    both = [{"name": "A", "settings": {"model": "sgpnet"}}]
    assert expand(study(arms=both, baselines=["threshold"]), CASES, {})
    with pytest.raises(ConfigError, match="baselines: threshold: it is a row of Dice"):
        expand(study(arms=both, baselines=["threshold"], measures=["idh.auc"]), CASES, {})
