import pytest

from kaiten.errors import ModelRejected
from runners.tasks import find_inspection, find_task, task_names


def test_tasks_are_the_packages_of_the_package() -> None:
    assert task_names() == ["text-classification"]


def test_task_is_found_by_its_name() -> None:
    package = "runners.tasks.text_classification"
    assert getattr(find_task("text-classification"), "__name__") == f"{package}.serving"  # noqa: B009
    assert getattr(find_inspection("text-classification"), "__name__") == f"{package}.inspection"  # noqa: B009


@pytest.mark.parametrize("name", ["", "base", "poetry", "text_classification", "os", "../os"])
def test_unknown_task_is_refused_with_the_known(name: str) -> None:
    refusal = "it serves text classifiers.*Known: text-classification"
    with pytest.raises(ModelRejected, match=refusal) as caught:
        find_task(name)
    assert [detail.field for detail in caught.value.details] == ["task"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("embeddings", "embedding models"),
        ("feature-extraction", "embedding models"),
        ("rerank", "rerankers"),
        ("Token_Classification", "token classifiers"),
        ("ner", "token classifiers"),
        ("tabular", "tabular models"),
        ("text-embedding", "embedding models"),
        ("image-classification", "image models"),
        ("multi-label-classification", "multi-label classifiers"),
    ],
)
def test_task_that_is_not_served_yet_is_refused_as_such(name: str, kind: str) -> None:
    refusal = f"does not serve {kind} yet; it serves text classifiers.* Known: text-classification"
    for find in (find_task, find_inspection):
        with pytest.raises(ModelRejected, match=refusal):
            find(name)
