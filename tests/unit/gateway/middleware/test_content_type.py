import pytest

from tests.unit.gateway.house import PREDICTIONS, House, bearer, error_of, paths_of

PICKLES = [
    "application/vnd.bentoml+pickle",
    "application/pickle",
    "application/x-pickle",
    "application/octet-stream+pickle",
    "Application/VND.BentoML+Pickle; charset=utf-8",
    "application/json; x=pickle",
    "application/x-python-serialize",
    "application/x-python-serialized-object",
]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
PATHS = [*sorted(paths_of(House().services.routes)), "/static_content/swagger-ui.css", "/elsewhere"]
BODY = b"\x80\x04N."


@pytest.mark.parametrize("content_type", PICKLES)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_pickle_is_refused(path: str, content_type: str) -> None:
    headers = {"Content-Type": content_type, "Authorization": bearer("predict")}
    answer = await House().ask("POST", path, BODY, headers)
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_content_type")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", PATHS)
async def test_a_pickle_is_refused_on_every_route_and_without_a_token(
    path: str, method: str
) -> None:
    answer = await House().ask(method, path, BODY, {"Content-Type": PICKLES[0]})
    assert answer.status_code == 415


async def test_a_pickle_behind_another_content_type_is_refused() -> None:
    headers = {"content-type": "application/json", "Content-Type": PICKLES[0]}
    answer = await House().ask("POST", "/predict", BODY, headers)
    # Two content types that contradict each other make a malformed request.
    assert answer.status_code == 400


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_pickle_in_a_part_of_a_form_is_refused_with_the_form(path: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="inputs"\r\n'
    body += f"Content-Type: {PICKLES[0]}\r\n\r\n".encode() + BODY + b"\r\n--x--\r\n"
    headers = {
        "Content-Type": "multipart/form-data; boundary=x",
        "Authorization": bearer("predict"),
    }
    answer = await House().ask("POST", path, body, headers)
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_content_type")


@pytest.mark.parametrize("path", ["/health", "/docs"])
async def test_other_content_types_are_nobodys_business_where_no_body_is_read(path: str) -> None:
    answer = await House().ask("GET", path, b"", {"Content-Type": "text/plain"})
    assert answer.status_code == 200
