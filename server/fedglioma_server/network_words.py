"""What each network is called, and what it answers, as a reader is told."""

from fedglioma.case import GENE_TITLES, Task
from fedglioma.config.run import RunConfig
from fedglioma_server.report_text import listing

TITLES: dict[str, str] = {
    "mdpnet": "MDPNet",
    "sgpnet": "SGPNet",
    "resnet50": "3D ResNet50",
    "densenet121": "3D DenseNet121",
    "senet": "3D SE-ResNet50",
    "unet": "residual 3D U-Net",
    "segresnet": "SegResNet",
    "swinunetr": "Swin-UNETR",
}


def what_it_reads(settings: RunConfig) -> str:
    """Return the tasks in words: ``reads IDH, ATRX and 1p/19q status``."""
    parts = []
    if settings.genes:
        parts.append(f"reads {listing([GENE_TITLES[gene] for gene in settings.genes])} status")
    if Task.SEGMENTATION in settings.tasks:
        parts.append("outlines the whole tumour")
    return " and ".join(parts)
