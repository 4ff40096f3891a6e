"""An update of one host without downtime: forward and back under load."""

import shutil
from pathlib import Path

import pytest

from kaiten_client import Client
from tests.e2e.bentos import Bento
from tests.e2e.blue_green import Host, Traffic, hosting
from tests.e2e.nginx import NGINX
from tests.servers import copied_store

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light"),
]
# Requests before, between and after the switches; many more are sent while an instance starts.
STEADY = 300


def test_switch_forward_and_back_under_load_fails_no_request(bento: Bento, tmp_path: Path) -> None:
    with hosting(tmp_path, bento.env, dict.fromkeys(("blue", "green"), bento.tag)) as host:
        host.run("switch", "blue")
        traffic = Traffic(host.url, host.token("predict"))
        with traffic.flowing(), Client(host.url, token=host.token("predict", "feedback")) as client:
            answer = client.predict(["Where is my parcel?"])
            for instance in ("green", "blue"):
                traffic.wait_for(STEADY)
                message = host.run("switch", instance)
                assert f"kaiten@{instance} serves {bento.tag}." in message
            traffic.wait_for(STEADY)
            # Both instances have one state: the other one knows the answer.
            assert client.feedback([(answer.request_id, 0, "order_status")]).joined == 1
        assert host.exit_code("green") == 0
        assert host.exit_code("blue") is None
        assert served_line(host).startswith("blue ")

    assert traffic.failures == []
    answers = host.answers()
    assert {status for _, status in answers} == {200}, answers
    assert answers["blue", 200] > 2 * STEADY
    assert answers["green", 200] >= STEADY
    assert answers["none", 200] == 0


def test_bento_that_was_changed_is_not_started_and_the_other_instance_serves_as_before(
    bento: Bento, tmp_path: Path
) -> None:
    store = copied_store(Path(bento.env["BENTOML_HOME"]), tmp_path / "bentoml")
    name, _, version = bento.tag.partition(":")
    changed = f"{version}-changed"
    folder = shutil.copytree(store / "bentos" / name / version, store / "bentos" / name / changed)
    file = folder / "src" / "service.py"
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    bentos = {"blue": bento.tag, "green": f"{name}:{changed}"}
    with hosting(tmp_path, {**bento.env, "BENTOML_HOME": str(store)}, bentos) as host:
        host.run("switch", "blue")
        with pytest.raises(AssertionError, match=f"{changed} would not start; see above") as caught:
            host.run("switch", "green")
        assert f"{bento.tag} was changed after it was built" in str(caught.value)
        assert not (tmp_path / "run" / "green.pid").exists()
        assert host.exit_code("blue") is None
        assert served_line(host).startswith("blue ")
        with Client(host.url, token=host.token("predict")) as client:
            assert client.predict(["Where is my parcel?"]).predictions


def served_line(host: Host) -> str:
    """Return the line of the instance that nginx reaches."""
    (line,) = [line for line in host.run("status").splitlines() if line.endswith("<- nginx")]
    return line
