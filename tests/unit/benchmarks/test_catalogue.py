"""How each server is asked, and how its labels are read."""

import json
import string

import pytest

from benchmarks.catalogue import PEERS, Server, kaiten
from benchmarks.places import PEERS as FOLDER

ANSWERS = {
    "triton": {"outputs": [{"name": "label", "data": ["a", "b"]}]},
    "mlserver": {"outputs": [{"data": ['{"label": "a", "score": 1}', '{"label": "b"}']}]},
    "infinity": {
        "data": [
            [{"label": "z", "score": 0.1}, {"label": "a", "score": 0.9}],
            [{"label": "b", "score": 0.6}, {"label": "z", "score": 0.4}],
        ]
    },
    "litserve": {"labels": ["a", "b"]},
    "rayserve": {"labels": ["a", "b"]},
    "bentoml": ["a", "b"],
    "fastapi": {"labels": ["a", "b"]},
}


def name(server: Server) -> str:
    return server.name


@pytest.mark.parametrize("peer", PEERS, ids=name)
def test_labels_are_read_in_order(peer: Server) -> None:
    assert peer.batch_call.labels(ANSWERS[peer.name]) == ["a", "b"]


@pytest.mark.parametrize("peer", PEERS, ids=name)
def test_a_body_holds_every_text(peer: Server) -> None:
    body = json.dumps(peer.call(2).body(["first text", "second text"]))
    assert "first text" in body
    assert "second text" in body


@pytest.mark.parametrize("peer", PEERS, ids=name)
def test_a_peer_has_requirements_and_every_blank_of_its_command_is_filled(peer: Server) -> None:
    assert (FOLDER / peer.name / "requirements.txt").is_file()
    start_values = {"venv", "port", "model", "onnx", "home"}
    for configuration in peer.configurations:
        for part in [*peer.command, *peer.env.values()]:
            blanks = {blank for _, blank, _, _ in string.Formatter().parse(part) if blank}
            assert blanks <= start_values | set(configuration.env)


def test_configurations_of_a_peer_have_names_of_their_own() -> None:
    for peer in PEERS:
        names = [configuration.name for configuration in peer.configurations]
        assert len(set(names)) == len(names)


def test_kaiten_is_asked_by_both_of_its_routes() -> None:
    server = kaiten("a:1.0.0")
    assert server.call(1).body(["x"]) == {"text": "x"}
    assert server.call(1).labels({"label": "a", "result": 0}) == ["a"]
    assert server.call(32).body(["x", "y"]) == {"inputs": ["x", "y"]}
    assert server.call(32).labels({"predictions": [{"label": "a"}, {"label": "b"}]}) == ["a", "b"]


def test_workers_are_set_as_bentoml_reads_them() -> None:
    assert "BENTOML_CONFIG_OPTIONS" not in kaiten("a:1.0.0").env
    two = kaiten("a:1.0.0", 2)
    assert two.env["BENTOML_CONFIG_OPTIONS"] == "services.kaiten_service.workers=2"
    assert two.name == "kaiten-2-workers"
