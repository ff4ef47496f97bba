"""Names of the 1000 ImageNet classes, from the lists that the package timm ships; nothing else of it is used."""

from pathlib import Path

from . import fetch

FOLDER = "timm/data/_info"


def class_names(cache: Path) -> list[str]:
    """The short name of each class by index. Classes are numbered in the order of their WordNet ids."""
    with fetch.package(fetch.TIMM, cache) as wheel:
        ids = wheel.read(f"{FOLDER}/imagenet_synsets.txt").decode().split()
        lines = wheel.read(f"{FOLDER}/imagenet_synset_to_lemma.txt").decode().splitlines()
    names = dict(line.split("\t", 1) for line in lines)
    if len(ids) != 1000:
        raise RuntimeError(f"timm lists {len(ids)} ImageNet classes, expected 1000")
    return [names[wordnet].split(",")[0] for wordnet in ids]
