"""The fusion model's radiomics settings: one file that every hospital's feature tables are made with."""

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

FILE_NAME: Final = "radiomics_glioma.yaml"


@cache
def radiomics_settings() -> bytes:
    """Return the settings file of PyRadiomics as it is shipped: 1131 features of each sequence.

    Its SHA-256 (``radiomics_sha256``) tells tables of other settings apart.
    """
    return (files(__package__) / FILE_NAME).read_bytes()


def radiomics_sha256() -> str:
    """Return the settings' checksum, 64 hex digits."""
    return hashlib.sha256(radiomics_settings()).hexdigest()
