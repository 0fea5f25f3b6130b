import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.model_selection import StratifiedKFold

from fedglioma.case import Gene, Genotype
from fedglioma.data.foldfile import read_division
from fedglioma.data.folds import (
    Division,
    check_division,
    leave_one_site_out,
    stratified_folds,
    stratum_of,
)
from fedglioma.data.split import Split
from fedglioma.errors import ConfigError

TRAIN, SELECTION, REPORT = Split.TRAIN, Split.SELECTION, Split.REPORT
# Stored studies are resumed and compared by these.
REPORTED = [("p6", "p7"), ("p0", "p9"), ("p3", "p4"), ("p1", "p8"), ("p2", "p5")]
SELECTED = [("p2", "p9"), ("p2", "p8"), ("p0", "p6"), ("p4", "p7"), ("p1", "p6")]

seeds = st.integers(0, 2**32)
names = st.integers(0, 10**6).map(lambda n: f"p{n}")
strata = st.sampled_from(["idh=0", "idh=1", "idh=unknown"])
shares = st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.9])


def cohort_of(zeros: int, ones: int) -> dict[str, str]:
    return {f"p{n}": f"idh={int(n < ones)}" for n in range(zeros + ones)}


def table(folder: Path, text: str, name: str = "split.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# --- k folds


@given(st.dictionaries(names, strata, min_size=2, max_size=60), st.data(), seeds, shares)
def test_every_patient_is_reported_once_and_folds_are_even(
    cohort: dict[str, str], data: st.DataObject, seed: int, share: float
) -> None:
    k = data.draw(st.integers(2, min(len(cohort), 10)))
    folds = stratified_folds(cohort, k, seed=seed, selection=share)
    reported = [patient for fold in folds for patient in fold.patients(REPORT)]
    assert sorted(reported) == sorted(cohort)
    for stratum in (None, *set(cohort.values())):
        sizes = [sum(stratum in (None, cohort[p]) for p in fold.patients(REPORT)) for fold in folds]
        assert max(sizes) - min(sizes) <= 1
    for fold in folds:
        assert set(fold.split) == set(cohort)
        assert fold.patients(TRAIN)


@given(st.dictionaries(names, strata, min_size=4, max_size=60), seeds, shares)
def test_selection_takes_its_share_of_every_stratum(cohort: dict[str, str], seed: int, share: float) -> None:
    for fold in stratified_folds(cohort, 2, seed=seed, selection=share):
        rest = [p for p in cohort if fold.of(p) is not REPORT]
        chosen = fold.patients(SELECTION)
        expected = min(max(round(share * len(rest)), 1), len(rest) - 1) if share else 0
        assert len(chosen) == expected
        for stratum, size in Counter(cohort[p] for p in rest).items():
            taken = sum(cohort[p] == stratum for p in chosen)
            assert abs(taken - size * expected / len(rest)) < 1


hospitals = st.sampled_from(["henan", "ningxia", "zhengzhou", "x"])


@given(
    st.dictionaries(names, st.tuples(strata, hospitals), min_size=2, max_size=60), st.data(), seeds, shares
)
def test_every_hospital_with_two_patients_keeps_somebody_in_every_fold(
    cohort: dict[str, tuple[str, str]], data: st.DataObject, seed: int, share: float
) -> None:
    k = data.draw(st.integers(2, min(len(cohort), 10)))
    labels, sites = ({p: both[place] for p, both in cohort.items()} for place in (0, 1))
    folds = stratified_folds(labels, k, seed=seed, selection=share, sites=sites)
    reported = [patient for fold in folds for patient in fold.patients(REPORT)]
    assert sorted(reported) == sorted(cohort)
    assert all(fold.patients(REPORT) and fold.patients(TRAIN) for fold in folds)
    for cell in set(cohort.values()):
        sizes = [sum(cohort[p] == cell for p in fold.patients(REPORT)) for fold in folds]
        assert max(sizes) - min(sizes) <= 1
    for site, size in Counter(sites.values()).items():
        for fold in folds:
            assert size == 1 or sum(sites[p] == site for p in fold.patients(REPORT)) < size


def test_folds_are_even_by_hospital_and_by_stratum_where_numbers_allow() -> None:
    cohort = {f"p{n}": ("henan", "ningxia", "zhengzhou")[n % 3] for n in range(60)}
    labels = {patient: f"idh={int(n % 5 == 0)}" for n, patient in enumerate(cohort)}
    for seed in range(20):
        for fold in stratified_folds(labels, 4, seed=seed, selection=0.2, sites=cohort):
            told = fold.patients(REPORT)
            assert Counter(cohort[p] for p in told) == {"henan": 5, "ningxia": 5, "zhengzhou": 5}
            assert Counter(labels[p] for p in told) == {"idh=0": 12, "idh=1": 3}
            chosen = Counter(cohort[p] for p in fold.patients(SELECTION))
            assert max(chosen.values()) - min(chosen.values()) <= 2


@given(st.dictionaries(names, strata, min_size=5, max_size=40), seeds, st.randoms())
def test_folds_do_not_depend_on_the_order_of_the_table(cohort, seed, random) -> None:
    shuffled = list(cohort.items())
    random.shuffle(shuffled)
    assert stratified_folds(cohort, 5, seed=seed, selection=0.2) == stratified_folds(
        dict(shuffled), 5, seed=seed, selection=0.2
    )


def test_folds_never_change_between_versions() -> None:
    folds = stratified_folds(cohort_of(6, 4), 5, seed=7, selection=0.2)
    assert [fold.name for fold in folds] == ["fold-1", "fold-2", "fold-3", "fold-4", "fold-5"]
    assert [fold.patients(REPORT) for fold in folds] == REPORTED
    assert [fold.patients(SELECTION) for fold in folds] == SELECTED


def test_the_cohort_of_the_paper_is_divided_as_scikit_learn_would() -> None:
    # SGPNet: 56 mutant, 65 wild-type, five folds.
    cohort = cohort_of(65, 56)
    ours = stratified_folds(cohort, 5, seed=0, selection=0.2)
    labels = [int(stratum == "idh=1") for stratum in cohort.values()]
    theirs = StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels)

    def mixtures(folds):
        return sorted((len(labels), sum(labels)) for labels in folds)

    reported = [[int(cohort[p] == "idh=1") for p in fold.patients(REPORT)] for fold in ours]
    assert mixtures(reported) == mixtures([[labels[i] for i in test] for _, test in theirs])


def test_other_seed_is_an_independent_division() -> None:
    cohort = cohort_of(1000, 1000)
    one, two = (stratified_folds(cohort, 5, seed=seed, selection=0.0)[0] for seed in (1, 2))
    both = len(set(one.patients(REPORT)) & set(two.patients(REPORT)))
    # 400 of 2000 each: hypergeometric, mean 80, standard deviation 7.2.
    assert both == pytest.approx(80, abs=29)


def test_a_stratum_of_one_patient_is_not_always_taken_from_training() -> None:
    uses = Counter()
    for seed in range(200):
        cohort = {**cohort_of(20, 0), "rare": "idh=9"}
        for fold in stratified_folds(cohort, 3, seed=seed, selection=0.25):
            uses[fold.of("rare")] += 1
    assert uses[REPORT] == 200
    assert uses[SELECTION] / 400 == pytest.approx(0.25, abs=0.1)


def test_selection_of_a_patient_does_not_follow_from_the_fold_that_reports_it() -> None:
    cohort = cohort_of(40, 40)
    folds = stratified_folds(cohort, 4, seed=3, selection=0.3)
    times = Counter(p for fold in folds for p in fold.patients(SELECTION))
    assert len({times[p] for p in cohort}) > 2


@pytest.mark.parametrize("k", [-1, 0, 1, 5])
def test_impossible_numbers_of_folds_are_refused(k: int) -> None:
    with pytest.raises(ConfigError, match="from 2 to the number of patients"):
        stratified_folds(cohort_of(2, 2), k, seed=0, selection=0.0)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="a share from 0 to below 1"):
        stratified_folds(cohort_of(3, 3), 2, seed=0, selection=share)
    with pytest.raises(ConfigError, match="a share from 0 to below 1"):
        leave_one_site_out({"a": ("x", ""), "b": ("y", "")}, seed=0, selection=share)


def test_two_spellings_of_a_patient_are_not_divided_between_folds() -> None:
    with pytest.raises(ConfigError, match="two spellings"):
        stratified_folds({"sub-A": "x", "a": "x", "b": "x"}, 2, seed=0, selection=0.0)


# --- one site left out


@given(st.dictionaries(names, st.tuples(st.sampled_from("xyz"), strata), min_size=4), seeds, shares)
def test_each_fold_reports_its_site_and_nobody_else(cohort, seed, share) -> None:
    sites = sorted({site for site, _ in cohort.values()})
    if len(sites) < 2:
        with pytest.raises(ConfigError, match="at least two"):
            leave_one_site_out(cohort, seed=seed, selection=share)
        return
    folds = leave_one_site_out(cohort, seed=seed, selection=share)
    assert [fold.name for fold in folds] == sites
    for fold in folds:
        assert set(fold.patients(REPORT)) == {p for p, (site, _) in cohort.items() if site == fold.name}
        assert fold.patients(TRAIN)
        assert set(fold.split) == set(cohort)


def test_selection_comes_from_every_remaining_site_and_stratum() -> None:
    cohort = {f"{site}{n}": (site, f"idh={n % 2}") for site in "xyz" for n in range(20)}
    for fold in leave_one_site_out(cohort, seed=1, selection=0.2):
        taken = Counter(cohort[p] for p in fold.patients(SELECTION))
        assert len(taken) == 4
        assert set(taken.values()) == {2}


# --- a division


def test_digest_is_the_same_for_the_same_uses_in_any_order_and_spelling() -> None:
    one = Division(name="a", split={"sub-P1": TRAIN, "p2": REPORT})
    two = Division(name="b", split={"P2": REPORT, "p1": TRAIN})
    assert one.digest == two.digest == hashlib.sha256(b"p1\ttrain\np2\treport\n").hexdigest()
    assert one.digest != Division(name="a", split={"p1": REPORT, "p2": TRAIN}).digest


def test_a_division_finds_a_patient_under_the_cohorts_other_spelling() -> None:
    division = Division(name="a", split={"sub-P1": TRAIN, "p2": REPORT})
    assert division.of("p1") is TRAIN
    assert division.names("P2")
    assert not division.names("p3")


def test_a_division_shows_no_patient_in_its_text_nor_in_errors() -> None:
    division = Division(name="a", split={"mrn4711": TRAIN, "mrn4712": REPORT})
    with pytest.raises(ConfigError) as unknown:
        division.of("mrn4713")
    with pytest.raises(ValidationError) as twice:
        Division(name="a", split={"mrn4711": TRAIN, "MRN4711": REPORT})
    with pytest.raises(ConfigError) as unnamed:
        check_division(division, ["mrn4711", "mrn4712", "mrn4713"])
    for text in (repr(division), str(unknown.value), str(twice.value), str(unnamed.value)):
        assert "471" not in text
    assert "two spellings" in str(twice.value)


def test_patients_without_a_split_are_an_error_or_listed() -> None:
    division = Division(name="a", split={"p1": TRAIN, "p2": REPORT, "elsewhere": TRAIN})
    assert check_division(division, ["p1", "p2"]) == ()
    with pytest.raises(ConfigError, match="2 of the cohort's 4 patients are not in it"):
        check_division(division, ["p4", "p1", "p3", "p2"])
    assert check_division(division, ["p4", "p1", "p3", "p2"], partial=True) == ("p3", "p4")


@pytest.mark.parametrize(
    ("cohort", "words"),
    [
        (["p1"], "nobody of this cohort is reported"),
        (["p2"], "nobody of this cohort trains"),
        (["p7", "p8"], "none of the cohort's 2 patients"),
        ([], "none of the cohort's 0 patients"),
    ],
)
def test_a_division_that_leaves_this_cohort_nothing_to_do_is_refused(cohort: list[str], words: str) -> None:
    division = Division(name="a", split={"p1": TRAIN, "p2": REPORT})
    with pytest.raises(ConfigError, match=words):
        check_division(division, cohort, partial=True)


def test_strata_are_text() -> None:
    genotype = Genotype(idh=1, codel_1p19q=0)
    assert stratum_of(genotype) == "idh=1"
    assert stratum_of(genotype, tuple(Gene)) == "idh=1 atrx=unknown codel_1p19q=0"
    assert stratum_of(genotype, [Gene.ATRX], has_mask=False) == "atrx=unknown mask=0"


# --- a file


@pytest.mark.parametrize("id_column", ["participant_id", "Subject_ID", "PatientID", "UID", "patient id"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_one_division_is_read_from_a_table(tmp_path: Path, id_column: str, delimiter: str) -> None:
    rows = [
        [id_column, "age", "Split"],
        ["sub-p1", "40", "Training"],
        ["p2", "", " train "],
        ["p3", "50", "VAL"],
        ["p4", "50", "test"],
    ]
    text = "\r\n".join(delimiter.join(row) for row in rows)
    (division,) = read_division(table(tmp_path, f"\N{BYTE ORDER MARK}{text}\r\n\r\n", "official.csv"))
    assert division.name == "official"
    assert division.split == {"p1": TRAIN, "p2": TRAIN, "p3": SELECTION, "p4": REPORT}


@pytest.mark.parametrize(
    ("word", "part"),
    [
        *((word, TRAIN) for word in ("train", "Training")),
        *((word, SELECTION) for word in ("selection", "val", "validation", "valid")),
        *((word, REPORT) for word in ("report", "TEST", "testing")),
    ],
)
def test_each_word_for_a_split_is_understood(tmp_path: Path, word: str, part: Split) -> None:
    (division,) = read_division(table(tmp_path, f"uid,split\na,train\nb,{word}\n"))
    assert division.of("b") is part


def test_a_fold_column_gives_a_division_per_fold(tmp_path: Path) -> None:
    path = table(
        tmp_path, "UID,Split,Fold\na,train,1\nb,test,1\na,test,2\nb,train,02\na,train,extra\nb,val,extra\n"
    )
    folds = read_division(path)
    assert {fold.name: fold.split for fold in folds} == {
        "fold-1": {"a": TRAIN, "b": REPORT},
        "fold-2": {"a": REPORT, "b": TRAIN},
        "extra": {"a": TRAIN, "b": SELECTION},
    }


def test_the_patients_id_counts_where_the_scan_has_one_too(tmp_path: Path) -> None:
    (division,) = read_division(table(tmp_path, "UID,PatientID,split\n1.2,a,train\n1.3,b,test\n"))
    assert set(division.split) == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "split.csv: empty"),
        ("\n \n", "split.csv: empty"),
        ("uid,split\n", "no row below the header line"),
        ("uid,fold\na,1\n", "no column split"),
        ("name,split\na,train\n", "no column participant_id"),
        ("uid,split,Split\na,train,train\n", "two columns are named split"),
        ("uid,split\na,train\nb,hold-out\n", "line 3: split <hold-out> is not one of train, training,"),
        ("uid,split\na,train\n\n,test\n", "line 4: no patient"),
        ("uid,split\na,train\nb\n", "line 3: 1 cells, the header line has 2"),
        ("uid,split\na,train\nb,train\nsub-A,test\n", "line 4: the patient is in line 2 too: one row per"),
        ("uid,split,fold\na,train,1\na,test,1\n", "line 3: the patient is in line 2 too: .* and fold"),
        ("uid,split,fold\na,train,1\nb,test,\n", "line 3: no fold"),
        ("uid,split\na,test\nb,val\n", "split.csv: nobody trains"),
        ("uid,split,fold\na,train,1\na,test,2\n", "split.csv: fold-2: nobody trains"),
        ('uid,split\na,"train\n', "line 2: .*: save the table as CSV"),
        ("uid,split\na,tr\0ain\n", "not a text table"),
    ],
)
def test_a_file_that_is_no_division_is_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_division(table(tmp_path, text))


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "split.xlsx").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_division(tmp_path / "split.xlsx")
    with pytest.raises(ConfigError, match="no such file"):
        read_division(tmp_path / "absent.csv")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_division(tmp_path)


@settings(max_examples=50)
@given(st.text(max_size=200))
def test_any_text_is_a_division_or_an_error_in_words(tmp_path_factory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(f"uid,split,fold\na,train,1\n{text}".encode("utf-8", "replace"))
    try:
        divisions = read_division(path)
    except ConfigError as error:
        words = str(error)
    else:
        words = f"any.csv: {len(divisions)}"
        assert all(TRAIN in division.split.values() for division in divisions)
    assert words.startswith("any.csv: ")


def test_rare_marker_is_spread_over_the_folds_beside_idh() -> None:
    # As many as MDPNet's paper has: 89 of 241 mutant, 27 of them codeleted.
    genotypes = [(1, 1)] * 27 + [(1, 0)] * 62 + [(0, 0)] * 152
    cohort = {f"p{n}": Genotype(idh=idh, codel_1p19q=codel) for n, (idh, codel) in enumerate(genotypes)}
    by_both = {p: stratum_of(genotype, (Gene.IDH, Gene.CODEL)) for p, genotype in cohort.items()}
    for seed in range(10):
        for fold in stratified_folds(by_both, 5, seed=seed, selection=0.15):
            told = [cohort[p] for p in fold.patients(REPORT)]
            assert sum(genotype.codel_1p19q for genotype in told) in (5, 6)
            assert sum(genotype.idh for genotype in told) in (17, 18)
