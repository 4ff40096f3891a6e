"""A few models of the zoo answer as transformers does for each text alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils import logging

from tests.acceptance.zoo import specimens, transformers_4
from tests.acceptance.zoo.comparison import examine
from tests.acceptance.zoo.specimens import Specimen
from tests.acceptance.zoo.tokenizers import Vocabularies

_NAMES = (
    "bert, own WordPiece with token types",
    "convbert",
    "deberta-v3 of 4.57",
    "gpt2, padded on the left",
    "xlnet",
    "bert: cut on the left",
    "bert: a LoRA adapter beside",
    "bert: weights that are no numbers",
    "bert: labels of inference",
    "bert: model_max_length 0",
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Specimen]]:
    """Give the specimens by name."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    saved = tmp_path_factory.mktemp("saved")
    transformers_4.unpack(saved)
    vocabularies = Vocabularies(tmp_path_factory.mktemp("vocabularies"), saved)
    yield {specimen.name: specimen for specimen in specimens(vocabularies)}
    logging.set_verbosity(verbosity)


@pytest.mark.parametrize("name", _NAMES)
def test_served_answers_are_exact_and_others_refused(
    name: str, zoo: dict[str, Specimen], tmp_path: Path
) -> None:
    finding = examine(zoo[name], tmp_path)
    assert finding.problems == []


def test_zoo_is_large(zoo: dict[str, Specimen]) -> None:
    groups = [specimen.group for specimen in zoo.values()]
    assert groups.count("architecture") >= 60
    assert groups.count("variant") >= 60
