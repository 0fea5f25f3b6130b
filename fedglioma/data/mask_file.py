"""A tumour's outline as a NIfTI file, on the voxels that the network saw."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from fedglioma.data.volume import Affine, Mask
from fedglioma.newfile import PRIVATE, replacing

SCANNER = "scanner"


def write_mask(path: Path, mask: Mask, affine: Affine) -> None:
    """Write a mask as compressed NIfTI, uint8, 1 in the tumour, for its owner alone.

    Parameters
    ----------
    mask : array of bool, shape (D, H, W)
    affine : array, shape (4, 4)
        From the voxel index to RAS mm.
    """
    image = nib.Nifti1Image(mask.astype(np.uint8), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=SCANNER)
    image.set_qform(affine, code=SCANNER)
    with replacing(path, mode=PRIVATE) as file:
        # No time in the stream: the same mask gives the same bytes.
        file.write(gzip.compress(image.to_bytes(), mtime=0))
