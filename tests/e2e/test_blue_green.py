"""An update of one host without downtime: forward and back under load."""

from pathlib import Path

import pytest

from kaiten_client import Client
from tests.e2e.bentos import Bento
from tests.e2e.blue_green import Traffic, hosting
from tests.e2e.nginx import NGINX

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
        assert "blue   " in host.run("status")

    assert traffic.failures == []
    answers = host.answers()
    assert {status for _, status in answers} == {200}, answers
    assert answers["blue", 200] > 2 * STEADY
    assert answers["green", 200] >= STEADY
    assert answers["none", 200] == 0


def test_bento_that_would_not_start_leaves_everything_as_it_was(
    bento: Bento, tmp_path: Path
) -> None:
    bentos = {"blue": bento.tag, "green": "kaiten_service:none"}
    with hosting(tmp_path, bento.env, bentos) as host:
        with pytest.raises(
            AssertionError, match="names the bento kaiten_service:none, and there is no"
        ):
            host.run("switch", "green")
        assert host.exit_code("green") is None
        assert not (tmp_path / "run" / "green.pid").exists()
