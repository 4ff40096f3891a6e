import pytest

from kaiten.errors import ModelRejected
from runners.tasks import find_task, task_names, text_classification


def test_tasks_are_the_modules_of_the_package() -> None:
    assert task_names() == ["text-classification"]


def test_task_is_found_by_its_name() -> None:
    assert find_task("text-classification") is text_classification


@pytest.mark.parametrize("name", ["", "base", "poetry", "text_classification", "os", "../os"])
def test_unknown_task_is_refused_with_the_known(name: str) -> None:
    with pytest.raises(ModelRejected, match="Known: text-classification") as caught:
        find_task(name)
    assert [detail.field for detail in caught.value.details] == ["task"]
