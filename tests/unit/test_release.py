"""The released model: a folder that stands alone, and is not taken for another."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fedglioma.errors import ProtocolError
from fedglioma.tensorfile import read_safetensors
from fedglioma.training.learner import initial_learner
from fedglioma.training.released import config_digest, load_model, model_digest, take_over
from fedglioma.weights import GROUPS, Layout, digest_of, pack
from tests.release_fixture import COUNTS, SMALL, small_settings, write_release

SETTINGS = small_settings()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder as a run writes it."""
    return write_release(tmp_path_factory.mktemp("release") / "model", SETTINGS)


@pytest.fixture
def released(original: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def change(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    how(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def reseal(folder: Path, tensors: dict[str, Any]) -> None:
    """Write other weights with a description that vouches for them."""
    save_file(tensors, folder / "model.safetensors")
    learner = initial_learner(SETTINGS, COUNTS)
    flat = Layout.of(learner.model, learner.loss, whole=True).flat(tensors, "test")
    change(folder, lambda c: c.update(digest=digest_of(flat)))
    change(folder, lambda c: c.update(config_digest=config_digest(c)))


def refusal(folder: Path) -> str:
    with pytest.raises(ProtocolError) as raised:
        load_model(folder)
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 1000
    return text


@pytest.mark.parametrize("model", SMALL)
def test_released_model_is_loaded_to_the_bit_and_ready_to_predict(model: str, tmp_path: Path) -> None:
    asked = small_settings(model)
    expected = initial_learner(asked, COUNTS)
    learner, found, _ = load_model(write_release(tmp_path / "model", asked))
    assert found == asked
    assert not learner.model.training
    one, other = (pack(kept.model, kept.loss, whole=True) for kept in (expected, learner))
    assert all(one[group].tobytes() == other[group].tobytes() for group in GROUPS)
    with torch.no_grad():
        outputs = learner.model(torch.randn(2, 4, *(asked.crop,) * 3))
    assert set(outputs) == {task.value for task in asked.tasks}


def test_folder_can_be_moved_and_reached_by_a_link(released: Path, tmp_path: Path) -> None:
    released.rename(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert load_model(tmp_path / "elsewhere").settings == SETTINGS
    assert load_model(tmp_path / "link").settings == SETTINGS


def test_config_says_how_to_build_the_network_and_names_no_path(released: Path) -> None:
    text = (released / "config.json").read_text(encoding="utf-8")
    config = json.loads(text)
    assert config["format"] == "fedglioma-model"
    assert (config["run_id"], config["round"], config["synthetic"]) == ("demo", 2, True)
    assert config["channels"] == ["flair", "t1ce", "t1", "t2"]
    assert config["genes"] == ["idh", "atrx", "codel_1p19q"]
    assert str(released.parent) not in text


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda c: c.clear(), "not a released model"),
        (lambda c: c.pop("layout"), "not a released model"),
        (lambda c: c.update(settings=None), "not a released model"),
        (lambda c: c.update(settings=["width"]), "not a released model"),
        (lambda c: c.update(format="pytorch"), "not one of fedglioma"),
        (lambda c: c.update(schema_version=2), "has version 2, this fedglioma reads 1; install"),
        (lambda c: c.update(extra=1), "unknown entry extra"),
        (lambda c: c["settings"].update(rounds=0), "rounds: 0 is not allowed"),
        (lambda c: c["settings"].update(depth=3), "depth: unknown setting"),
        (lambda c: c["settings"].update(lr=float("nan")), "NaN is no JSON number"),
        (lambda c: c.update(class_counts={"idh": 3}), "not a released model"),
        (lambda c: c.update(class_counts={"egfr": [1, 2]}), "not a released model"),
        (lambda c: c["class_counts"].update(idh=["many", 2]), "not a released model"),
        (lambda c: c["class_counts"].update(idh=[-1, 2]), "-1 is no count"),
        (lambda c: c["class_counts"].pop("idh"), "class counts lack idh"),
        (lambda c: c["channels"].reverse(), "made for channels"),
        (lambda c: c.update(genes=["idh"]), "made for channels"),
        (lambda c: c.update(scale_id="0"), "intensity scale in config.json is not the one"),
        (lambda c: c["settings"].update(crop=32), "of another network"),
        (lambda c: c["settings"].update(width=96, crop=256), "of another network"),
        (lambda c: c["settings"].update(lr=0.5), "was changed after it was written"),
        (lambda c: c["settings"].update(spacing_mm=1.0), "was changed after it was written"),
        (lambda c: c.pop("config_digest"), "was changed after it was written"),
        (lambda c: c.update(layout="0" * 64), "of another network"),
        (lambda c: c.update(digest="0" * 64), "was changed after it was written"),
    ],
)
def test_config_that_does_not_belong_is_refused(
    released: Path, how: Callable[[dict[str, Any]], object], said: str
) -> None:
    change(released, how)
    assert said in refusal(released)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "JSONDecodeError"),
        (b"\xff\xfe\x00", "UnicodeDecodeError"),
        (b"[1, 2]", "not one of fedglioma"),
        (b'{"model_type": "bert"}', "not one of fedglioma"),
        (b" " * (1 << 20) + b"{}", "larger than 1 MiB"),
        (b"[" * 100_000, "RecursionError"),
        (b'{"format": "fedglioma-model", "schema_version": ' + b"9" * 5000 + b"}", "not a released model"),
        (b"9" * 5000, "not a released model"),
        (b'{"x": 1e999, "format": "fedglioma-model", "schema_version": 1}', "not a released model"),
    ],
)
def test_config_that_is_no_description_is_refused(released: Path, content: bytes, said: str) -> None:
    (released / "config.json").write_bytes(content)
    assert said in refusal(released)


@pytest.mark.parametrize("depth", [50, 300, 600, 900, 5000])
@pytest.mark.parametrize("where", ["extra", "settings"])
def test_nested_config_is_refused_at_any_depth(released: Path, depth: int, where: str) -> None:
    nest = b"[" * depth + b"]" * depth
    text = (released / "config.json").read_bytes()
    entry = b'"%s": %s' % (where.encode() if where == "extra" else b"width", nest)
    old = b"{" if where == "extra" else b'"width": 1'
    new = b"{" + entry + b"," if where == "extra" else entry
    assert old in text
    (released / "config.json").write_bytes(text.replace(old, new, 1))
    assert "not a released model" in refusal(released)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda f: os.truncate(f, 5000), "cut off; copy it again"),
    "cut off in its header": (lambda f: os.truncate(f, 100), "cut off; copy it again"),
    "short of a byte": (lambda f: os.truncate(f, f.stat().st_size - 1), "cut off; copy it again"),
    "longer by a byte": (lambda f: f.write_bytes(f.read_bytes() + b"\0"), "not a readable safetensors"),
    "empty": (lambda f: f.write_bytes(b""), "it is empty"),
    "gone": (lambda f: f.unlink(), "not a readable safetensors file (FileNotFoundError)"),
    "a folder": (lambda f: (f.unlink(), f.mkdir()), "a folder, a pipe or a device"),
    "a pipe": (lambda f: (f.unlink(), os.mkfifo(f)), "a folder, a pipe or a device"),
    "a circle of links": (lambda f: (f.unlink(), f.symlink_to(f)), "not a readable safetensors file"),
    "git lfs": (lambda f: f.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "torch.save": (lambda f: torch.save({"a": torch.zeros(1)}, f), "a pickle by its content, which is never"),
    "a huge header": (
        lambda f: f.write_bytes((1 << 62).to_bytes(8, "little") + f.read_bytes()[8:]),
        "not a readable safetensors file",
    ),
    "another network": (
        lambda f: save_file({"bert.weight": np.zeros((3, 2), np.float32)}, f),
        "holds the weights of another network: model.",
    ),
    "a tensor more": (
        lambda f: save_file({**load_file(f), "model.back_door": np.zeros(1, np.float32)}, f),
        "model.back_door should be absent, found F32 (1,)",
    ),
    "a tensor less": (
        lambda f: save_file(dict(list(load_file(f).items())[1:]), f),
        "found absent; take both files from one released model",
    ),
    "double precision": (
        lambda f: save_file({k: v.astype(np.float64) for k, v in load_file(f).items()}, f),
        "should be F32",
    ),
    "other numbers": (
        lambda f: save_file({k: v + 1 for k, v in load_file(f).items()}, f),
        "model.safetensors is damaged",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_weights_that_do_not_belong_are_refused(released: Path, name: str) -> None:
    spoil, said = SPOILED[name]
    spoil(released / "model.safetensors")
    assert said in refusal(released)


class Bomb:
    """An object whose pickle runs a program."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_under_a_false_name_is_never_opened(released: Path, tmp_path: Path, protocol: int) -> None:
    for name in ("model.safetensors", "config.json"):
        copy = Path(shutil.copytree(released, tmp_path / f"with {name}"))
        (copy / name).write_bytes(pickle.dumps(Bomb(tmp_path / "mark"), protocol))
        refusal(copy)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused_even_with_the_right_digest(
    released: Path, value: float
) -> None:
    tensors = {name: tensor.copy() for name, tensor in load_file(released / "model.safetensors").items()}
    name = sorted(tensors)[-1]
    tensors[name].flat[0] = value
    reseal(released, tensors)
    assert f"{name} holds numbers that are not finite" in refusal(released)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_link_out_of_the_folder_is_refused(released: Path, tmp_path: Path, name: str) -> None:
    (released / name).rename(tmp_path / name)
    (released / name).symlink_to(tmp_path / name)
    assert "is a link that leads out of the folder; put the file itself there" in refusal(released)


def test_link_inside_the_folder_is_followed(released: Path) -> None:
    (released / "model.safetensors").rename(released / "weights")
    (released / "model.safetensors").symlink_to("weights")
    assert load_model(released).settings == SETTINGS


def test_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    for folder in (tmp_path, tmp_path / "gone", tmp_path / "file"):
        assert "not a released model" in refusal(folder)


@pytest.mark.parametrize("inner", ["model", "models"])
def test_folder_around_a_model_names_the_one_inside(released: Path, tmp_path: Path, inner: str) -> None:
    released.rename(tmp_path / inner)
    assert f"did you mean {tmp_path / inner}?" in refusal(tmp_path)


def test_digest_is_told_without_the_weights_and_refused_without_a_model(released: Path) -> None:
    (released / "model.safetensors").unlink()
    config = json.loads((released / "config.json").read_text(encoding="utf-8"))
    assert model_digest(released) == config["digest"]
    change(released, lambda c: c.pop("digest"))
    with pytest.raises(ProtocolError, match="names no digest"):
        model_digest(released)


def test_model_of_another_size_is_not_taken_over(released: Path) -> None:
    wider = small_settings(width=2)
    learner = initial_learner(wider, COUNTS)
    with pytest.raises(ProtocolError, match="holds another network than the run trains"):
        take_over(released, learner)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_refused_or_changes_nothing(
    original: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["model.safetensors", "config.json"]))
    content = bytearray((original / name).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little") if name == "model.safetensors" else len(content)
    place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(content) - 1)))
    content[place] ^= data.draw(st.integers(1, 255))
    copy = Path(shutil.copytree(original, tmp_path_factory.mktemp("flipped") / "model"))
    (copy / name).write_bytes(content)
    expected, _ = read_safetensors(original / "model.safetensors")
    try:
        learner, found, _ = load_model(copy)
    except ProtocolError:
        pass
    else:
        assert found == SETTINGS
        flat = Layout.of(learner.model, learner.loss, whole=True).named(
            pack(learner.model, learner.loss, whole=True)
        )
        assert all(np.array_equal(flat[key], expected[key]) for key in expected)
    finally:
        shutil.rmtree(copy)
