"""Where a modality's voxels come from: one NIfTI file, or the files of a DICOM series."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedglioma.case import Case, Modality
from fedglioma.data.dicom_volume import files_digest, read_files
from fedglioma.data.harmonize import to_ras
from fedglioma.data.volume import (
    Volume,
    VolumeError,
    content_digest,
    decode_volume,
    is_compressed,
    read_bytes,
)
from fedglioma.words import quoted


def voxel_digest(volume: Volume) -> str:
    """Return the SHA-256 of a volume's shape and values in hex.

    In RAS order it does not depend on the file: not on compression, header, order of axes or number type.
    """
    values = np.ascontiguousarray(volume.array, dtype="<f4")
    state = hashlib.sha256(repr(tuple(values.shape)).encode())
    state.update((values + np.float32(0)).data)  # -0.0 becomes 0.0: they are one value
    return state.hexdigest()


@dataclass(frozen=True)
class Source:
    """A modality's files, in order."""

    files: tuple[Path, ...]
    dicom: bool = False

    @classmethod
    def of(cls, case: Case, modality: Modality) -> "Source":
        """Return where a case's modality comes from."""
        if modality in case.volumes:
            return cls((case.volumes[modality],))
        return cls(case.series[modality], dicom=True)

    @property
    def name(self) -> str:
        """The file's name, or the first one's and how many there are."""
        first = quoted(self.files[0].name)
        return f"{first} and {len(self.files) - 1} more" if self.dicom else first

    def digest(self) -> str:
        """Return the SHA-256 of the content; raises ``VolumeError`` when it cannot be read."""
        return files_digest(self.files) if self.dicom else content_digest(self.files[0])

    def read(self, digest: str) -> Volume:
        """Return the volume in RAS order, from the very bytes that have this digest.

        Raises
        ------
        VolumeError
            The files changed, or cannot be used.
        """
        if self.dicom:
            return to_ras(read_files(self.files, digest))
        content = read_bytes(self.files[0])
        if hashlib.sha256(content).hexdigest() != digest:
            raise VolumeError("changed", "the file changed while it was prepared; run again")
        return to_ras(decode_volume(content, compressed=is_compressed(self.files[0])))
