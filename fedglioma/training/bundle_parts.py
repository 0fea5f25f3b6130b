"""What the configuration of a MONAI bundle names: network, list of cases, preparation and inferer.

MONAI finds these by their dotted names and calls them as it calls its own; nothing here imports MONAI. A
patient's images take the very way that they take at a site: prepared, laid on the model's scale, cropped
and read as the model's settings say.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from fedglioma.case import CHANNELS, CLASS_TITLES, GENE_TITLES, Case, Task, subset_name
from fedglioma.config.run import RunConfig
from fedglioma.data.cache import Cache
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.layout import find_patients
from fedglioma.data.patient_grid import PatientGrid
from fedglioma.data.prepare import PIPELINE_VERSION, NonePrepared, PrepareSettings, prepare_cases
from fedglioma.data.smallfile import read_small
from fedglioma.data.standardize import on_scale
from fedglioma.data.volume import Affine
from fedglioma.data.window import centre_starts
from fedglioma.errors import ConfigError, DataError, ProtocolError
from fedglioma.scale import Scale
from fedglioma.training.inference import Outputs, Reader
from fedglioma.training.learner import Learner
from fedglioma.training.released import load_model, read_config

ID: Final = "id"
REFUSED: Final = "refused"
_SITE: Final = "bundle"
_MOST_LIST_BYTES: Final = 16 << 20


class BundleNetwork(nn.Module):
    """A released network whose answer is one tensor, as MONAI's tools expect it.

    Its channels are probabilities, named by ``channel_titles``: first background and tumour where the network
    outlines, then both classes of each marker that it reads. With an outline the answer is a map, (B, C, D,
    H, W), in which a marker has the same value at every voxel; without, it is (B, C).
    """

    def __init__(self, learner: Learner, settings: RunConfig, scale: Scale | None) -> None:
        super().__init__()
        self.model = learner.model
        self.settings = settings
        self.scale = scale

    @property
    def reader(self) -> Reader:
        """How the model's settings ask for images to be read."""
        return Reader.of(self.settings)

    def forward(self, image: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the answer to images given in one piece.

        Parameters
        ----------
        image : Tensor, shape (B, 4, D, H, W)
            Prepared, channels in the order of ``case.CHANNELS``.
        present : Tensor, shape (B, 4), optional
            1 where a case has the sequence; by default a channel of zeros is one that it lacks.
        """
        outputs: Outputs = self.model(image, seen_in(image) if present is None else present)
        return self.joined(outputs)

    def joined(self, outputs: Outputs) -> Tensor:
        """Return the logits of each task as one tensor of probabilities.

        Raises
        ------
        DataError
            A task has no answer: nothing but zeros was to be read.
        """
        missing = [task for task in self.settings.tasks if task not in outputs]
        if missing:
            raise DataError(f"{', '.join(missing)}: no answer; the image holds no brain")
        markers = [outputs[gene.value].float().softmax(1) for gene in self.settings.genes]
        if Task.SEGMENTATION not in self.settings.tasks:
            return torch.cat(markers, 1)
        outline = outputs[Task.SEGMENTATION].float().softmax(1)
        spread = [m[:, :, None, None, None].expand(-1, -1, *outline.shape[2:]) for m in markers]
        return torch.cat([outline, *spread], 1)


def channel_titles(settings: RunConfig) -> list[str]:
    """Return what each channel of a ``BundleNetwork``'s answer is."""
    titles = ["background", "whole tumour"] if Task.SEGMENTATION in settings.tasks else []
    for gene in settings.genes:
        titles += [f"{GENE_TITLES[gene]} {word}" for word in CLASS_TITLES[gene]]
    return titles


def seen_in(image: Tensor) -> Tensor:
    """Return which sequences images have, (B, 4): those whose channel is not zero everywhere."""
    return (image != 0).flatten(2).any(2).to(image.dtype)


def load_network(folder: str | Path) -> BundleNetwork:
    """Return the network of a bundle's ``models`` folder, checked as every released model is.

    Raises
    ------
    ProtocolError
        The folder holds no model of fedglioma, a damaged one, or one for images prepared otherwise.
    """
    place = Path(folder)
    learner, settings, scale = load_model(place)
    made_for = read_config(place).get("pipeline")
    if made_for != PIPELINE_VERSION:
        raise ProtocolError(
            f"{place}: made for images prepared by version {made_for} of the preparation, this fedglioma has "
            f"{PIPELINE_VERSION}; install the fedglioma that configs/metadata.json names"
        )
    return BundleNetwork(learner, settings, scale).eval()


class Inferer:
    """Reads images as the model's settings say: in one piece or by windows, once or mirrored as well."""

    def __call__(
        self, inputs: Tensor, network: BundleNetwork, present: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Return the answer of a network as ``BundleNetwork`` gives it.

        Raises
        ------
        ConfigError
            The network is not of a bundle.
        """
        if not isinstance(network, BundleNetwork):
            raise ConfigError(f"inferer: {type(network).__name__} is not a network that load_network made")
        there = seen_in(inputs) if present is None else present
        return network.joined(network.reader.read(network.model, inputs, there))


def datalist(dataset_dir: str | Path, data_list_file: str | Path | None = None) -> list[dict[str, str]]:
    """Return the cases to read: ``id``, and the NIfTI file of each sequence that there is.

    Parameters
    ----------
    dataset_dir : path
        A folder per patient, named as BIDS, BraTS until 2021 or BraTS from 2023; or where the paths of the
        list begin.
    data_list_file : path, optional
        JSON: a list of objects with ``id`` and any of ``flair``, ``t1ce``, ``t1``, ``t2``, or an object that
        has such a list as ``testing``. A sequence that is absent, null or empty is missing.

    Raises
    ------
    DataError
        There is no image, or the list does not say what it should.
    """
    folder = Path(dataset_dir)
    if data_list_file:
        return _listed(folder, Path(data_list_file))
    return [
        {ID: files.folder, **{modality.value: str(path) for modality, path in files.volumes.items()}}
        for files in find_patients(folder).patients
    ]


def _listed(folder: Path, path: Path) -> list[dict[str, str]]:
    try:
        found = json.loads(read_small(path, _MOST_LIST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as a JSON list of cases ({type(error).__name__})") from None
    entries = found.get("testing") if isinstance(found, dict) else found
    if not isinstance(entries, list) or not entries:
        raise DataError(f'{path}: holds no list of cases; write [{{"id": "a", "flair": "a/flair.nii.gz"}}]')
    cases = [_entry(entry, number, folder, path) for number, entry in enumerate(entries, start=1)]
    if len({case[ID] for case in cases}) < len(cases):
        raise DataError(f"{path}: an id stands there twice; give every case its own")
    return cases


def _entry(entry: object, number: int, folder: Path, path: Path) -> dict[str, str]:
    names = {ID, *(modality.value for modality in CHANNELS)}
    if not isinstance(entry, dict) or not set(entry) <= names or not entry.get(ID):
        raise DataError(f"{path}: case {number}: id and any of {', '.join(m.value for m in CHANNELS)}")
    files = {name: value for name, value in entry.items() if name != ID and value}
    if not all(isinstance(value, str) for value in files.values()):
        raise DataError(f"{path}: case {number}: a sequence is one file; write its path as text")
    return {ID: str(entry[ID]), **{name: str(folder / value) for name, value in files.items()}}


class Prepare:
    """MONAI transform: an item of ``datalist`` -> the arrays that the network is given.

    A case that cannot be used does not stop the others: its item then has ``refused``, the reason in words.
    Whatever is prepared stays in ``cache_dir``: images of patients.
    """

    def __init__(self, network: BundleNetwork, cache_dir: str | Path) -> None:
        self.settings, self.scale = network.settings, network.scale
        self.cache = Cache(Path(cache_dir))

    def __call__(self, item: Mapping[str, str]) -> dict[str, Any]:
        """Return ``id``, ``modalities``, ``image`` (4, D, H, W), ``present`` (4,), ``affine`` and ``grid``.

        ``affine`` maps the image's voxel index to RAS mm of the sequence that the others were laid over, and
        ``grid`` is that sequence's own, on which an outline is written.

        Raises
        ------
        OSError
            The cache cannot be written.
        """
        volumes = {m: Path(item[m.value]) for m in CHANNELS if item.get(m.value)}
        case = Case(patient=str(item[ID]), site=_SITE, volumes=volumes)
        told = {ID: case.patient, "modalities": subset_name(case.present)}
        try:
            prepared = prepare_cases([case], PrepareSettings.of(self.settings), self.cache)
            (ready,) = on_scale(prepared.cases, self.scale)
            sample = CaseDataset([ready], self.settings.crop, whole=self.settings.sliding)[0]
        except NonePrepared as error:
            return {**told, REFUSED: error.exclusions[0].message}
        except DataError as error:
            return {**told, REFUSED: str(error)}
        record = prepared.records[0]
        whole = np.load(ready.array, mmap_mode="r", allow_pickle=False).shape[1:]
        return {
            **told,
            "image": sample.image,
            "present": sample.present,
            "affine": _of_crop(np.array(record.affine), whole, sample.image.shape[1:]),
            "grid": PatientGrid.of(case, record),
            "remarks": [remark.message for remark in record.remarks],
        }


def _of_crop(affine: Affine, whole: Sequence[int], box: Sequence[int]) -> Affine:
    """Return the affine of a centred box, which begins where ``CaseDataset`` begins to cut."""
    moved: Affine = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.array(centre_starts(whole, box))
    return moved
