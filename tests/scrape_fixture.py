"""Metrics as Prometheus would see them: the text of a registry, read by Prometheus' own parser."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from fedglioma.scrape import serve
from tests.ports import free_port


@contextmanager
def served(registry: CollectorRegistry) -> Iterator[int]:
    """Serve a registry on a free port of this computer, and give the port."""
    port = free_port()
    close = serve(registry, port=port)
    try:
        yield port
    finally:
        close()


def fetch(port: int) -> str:
    """Return the text that a scrape gets."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text: str = answer.read().decode("utf-8")
        return text


def samples_of(text: str) -> list[Sample]:
    """Return the samples in a scrape's text."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def scrape(registry: CollectorRegistry) -> list[Sample]:
    """Return the samples of a registry, without a port."""
    return samples_of(generate_latest(registry).decode("utf-8"))


def value(samples: list[Sample], metric: str, /, **labels: str) -> float:
    """Return the one sample of this name with exactly these labels."""
    found = [s.value for s in samples if s.name == f"fedglioma_{metric}" and s.labels == labels]
    assert len(found) == 1, (metric, labels, [s for s in samples if s.name.endswith(metric)])
    return found[0]
