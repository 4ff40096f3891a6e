"""A zoo of tiny models: each is served as transformers computes it, or rejected.

Each specimen is a folder as people have them: an architecture with a tokenizer of a real class, or
a variant of one model. It is registered into a store of its own, loaded as a server loads it, and
compared with transformers, which computes every text alone. Two processes share the specimens.
"""

import asyncio
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import httpx

from runners.probe_texts import PROBE_TEXTS
from tests.acceptance.places import serve
from tests.acceptance.report import Report, console
from tests.acceptance.zoo import transformers_4
from tests.acceptance.zoo.comparison import (
    SIZES,
    TOLERANCE,
    Finding,
    Reference,
    Scores,
    add,
    examine,
    store_in,
)
from tests.acceptance.zoo.corpus import PLAIN_TEXTS
from tests.acceptance.zoo.specimens import LABELS, MAX_LENGTH, Specimen
from tests.acceptance.zoo.tokenizers import Vocabularies

_PROCESSES = 2
# Before a process is replaced by one that holds none of what transformers keeps.
_MOST_SPECIMENS = 40
_LEAST_ARCHITECTURES = 60
_LEAST_VARIANTS = 60
# An encoder with token types, one with a tokenizer that 5 rebuilds, and a decoder.
_SERVED = (
    "bert: types 0, 0, 1, the class last",
    "deberta-v3 of 4.57",
    "gpt2, padded on the left",
)
_PACKAGES = ("torch", "transformers", "tokenizers", "sentencepiece", "onnxruntime", "numpy")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "0"}


class Places(NamedTuple):
    """The folders of vocabularies and models that are built once, and of 4.57's tokenizers."""

    vocabularies: Path
    saved: Path

    def open(self) -> Vocabularies:
        return Vocabularies(self.vocabularies, self.saved)


def specimens(vocabularies: Vocabularies) -> list[Specimen]:
    """Return all that the zoo holds; importing it imports torch."""
    from tests.acceptance.zoo import architectures, variants  # noqa: PLC0415

    return [*architectures.specimens(vocabularies), *variants.specimens(vocabularies)]


async def run(report: Report, store: Path, folder: Path) -> None:
    """Examine every specimen, and some of them through a server."""
    places = Places(folder / "vocabularies", folder / "saved")
    report.tell("versions", **{name: version(name) for name in _PACKAGES})
    await asyncio.to_thread(transformers_4.save, places.open(), places.saved)
    findings = await asyncio.to_thread(_examine_all, places, folder, report.scale)
    _report_findings(report, findings)
    differing = await asyncio.to_thread(_compare_vocabularies, places, folder / "alone")
    report.tell("vocabulary files alone: ids other than those of transformers 4.57", **differing)
    await _through_server(report, places, folder)
    _check_findings(report, findings)


def examine_specimen(name: str, places: Places, folder: Path) -> Finding:
    """Examine one specimen; runs in a process of its own."""
    specimen = next(specimen for specimen in specimens(places.open()) if specimen.name == name)
    try:
        return examine(specimen, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _silence() -> None:
    """Keep a process from writing; what matters of it is in the findings."""
    import torch  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # torch's exporter and ONNX Runtime write to the descriptors themselves, whole graphs.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _examine_all(places: Places, folder: Path, scale: float) -> list[Finding]:
    names = [specimen.name for specimen in specimens(places.open())]
    step = max(1, round(1 / scale))
    os.environ.update(_ONE_THREAD)
    numbered = [*enumerate(names[::step])]
    findings: list[Finding] = []
    # New processes now and then, which bounds their memory: with max_tasks_per_child, Python 3.11
    # may wait for a process that has ended (gh-115634).
    for start in range(0, len(numbered), _PROCESSES * _MOST_SPECIMENS):
        with ProcessPoolExecutor(
            _PROCESSES, multiprocessing.get_context("spawn"), initializer=_silence
        ) as pool:
            jobs = {
                pool.submit(examine_specimen, name, places, folder / f"specimen-{number}"): name
                for number, name in numbered[start : start + _PROCESSES * _MOST_SPECIMENS]
            }
            findings += [_result(job, jobs[job]) for job in as_completed(jobs)]
    order = {name: number for number, name in enumerate(names)}
    return sorted(findings, key=lambda finding: order[finding.name])


def _result(job: "Future[Finding]", name: str) -> Finding:
    try:
        finding = job.result()
    except Exception as error:  # noqa: BLE001  such as a process that died
        finding = Finding(name, "", "failed", problems=[f"{type(error).__name__}: {error}"])
    state = "FAIL" if finding.problems else "ok  "
    console.print(f"  {state} {name}: {finding.outcome}, {finding.seconds:.1f} s", markup=False)
    for problem in finding.problems:
        console.print(f"         {problem}", markup=False)
    return finding


def _report_findings(report: Report, findings: Sequence[Finding]) -> None:
    for finding in findings:
        report.tell(finding.group or "failed", **{finding.name: _row(finding)})


def _row(finding: Finding) -> str:
    if finding.outcome == "served":
        batched = "" if finding.batched else ", one text at a time"
        row = (
            f"served by {finding.engine}, {finding.tokenizer}{batched}; {finding.texts} texts, "
            f"scores within {finding.largest:.1g}"
        )
    else:
        row = f"{finding.outcome}: {finding.refusal}" if finding.refusal else finding.outcome
    if finding.problems:
        row += f" **{'; '.join(finding.problems)}**"
    # A cell of a table: of one line, and without its bars.
    return " ".join(row.split()).replace("|", "\\|")


def _compare_vocabularies(places: Places, folder: Path) -> dict[str, str]:
    """Return for how many texts 5 gives other ids than 4.57, if there is no tokenizer.json.

    Such folders are served as transformers 5 reads them, which is not how all were trained.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415

    differences = {}
    for name, kind in transformers_4.kinds().items():
        if not kind.vocabulary or name == transformers_4.OWN_NORMALISER:
            continue
        alone = shutil.copytree(places.saved / name, folder / name)
        (alone / "tokenizer.json").unlink()
        (alone / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
        expected = places.open().saved_ids(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(alone)
        except Exception as error:  # noqa: BLE001  the class needs tokenizer.json
            differences[name] = f"cannot be loaded: {type(error).__name__}"
            continue
        ids = [tokenizer(text, truncation=True)["input_ids"] for text in PROBE_TEXTS]
        differing = sum(
            actual_ids != expected_ids
            for actual_ids, expected_ids in zip(ids, expected, strict=True)
        )
        differences[name] = f"{differing} of {len(ids)} probe texts"
    return differences


def _check_findings(report: Report, findings: Sequence[Finding]) -> None:
    groups = Counter(finding.group for finding in findings)
    architectures = groups["architecture"] + groups["tokenizer of 4.57"]
    enough = report.scale < 1
    report.check(
        "architectures and tokenizers examined",
        architectures,
        passed=enough or architectures >= _LEAST_ARCHITECTURES,
    )
    report.check(
        "variants examined",
        groups["variant"],
        passed=enough or groups["variant"] >= _LEAST_VARIANTS,
    )
    answers = [finding for finding in findings if finding.outcome == "served"]
    report.check("served", len(answers), passed=bool(answers))
    report.check("refused", sum(finding.outcome == "refused" for finding in findings), passed=True)
    for name in ("alone", *(f"in {size}" for size in SIZES), "again"):
        largest = max((finding.differences.get(name, 0.0) for finding in answers), default=0.0)
        report.check(f"largest difference of a score {name}", largest, passed=largest <= TOLERANCE)
    other_ids = sum(finding.other_ids for finding in answers)
    report.check("texts with other token ids than the truth", other_ids, passed=other_ids == 0)
    other_labels = sum(finding.other_labels for finding in answers)
    report.check("texts with another label", other_labels, passed=other_labels == 0)
    failed = [finding.name for finding in findings if finding.problems]
    report.check("specimens that are not as expected", failed or 0, passed=not failed)


async def _through_server(report: Report, places: Places, folder: Path) -> None:
    """Ask a server some of the models by HTTP, alone and in one request of mixed lengths."""
    home = folder / "server"
    truths = await asyncio.to_thread(_register_models, places, home)
    tags = ",".join(tag for tag, _ in truths.values())
    settings = {"KAITEN_SERVING__MODELS": tags, **_ONE_THREAD}
    with (
        serve(home / "bentoml", home / "home", settings) as server,
        server.server.client(server.target.token) as client,
    ):
        for name, (tag, truth) in truths.items():
            largest, other_labels = await asyncio.to_thread(_compare_answers, client, tag, truth)
            report.check(f"{name}, by HTTP: difference", largest, passed=largest <= TOLERANCE)
            report.check(f"{name}, by HTTP: other labels", other_labels, passed=other_labels == 0)


def _compare_answers(
    client: httpx.Client, tag: str, truth: Mapping[str, Scores]
) -> tuple[float, int]:
    """Return the largest difference of a score, and how many answers have another label."""
    largest, other_labels = 0.0, 0
    for texts in (*([text] for text in truth), list(truth)):
        body = {"inputs": texts, "model": tag, "top_k": len(LABELS)}
        reply = client.post("/api/v2/predict", json=body).raise_for_status().json()
        for text, prediction in zip(texts, reply["predictions"], strict=True):
            expected = truth[text]
            for label in prediction["top_k"]:
                largest = max(largest, abs(label["score"] - expected[label["index"]]))
            other_labels += int(prediction["index"] != expected.argmax())
    return float(largest), other_labels


def _register_models(places: Places, home: Path) -> dict[str, tuple[str, dict[str, Scores]]]:
    """Register the models that a server is to serve; return their tags, and the true scores."""
    truths = {}
    with store_in(home / "bentoml") as store:
        for number, specimen in enumerate(_specimens_to_serve(places)):
            source = home / f"source-{number}"
            source.mkdir()
            specimen.build(source)
            stored = add(specimen, source, store, f"zoo-{number}")
            reference = Reference(source, MAX_LENGTH, "tokenizer.json")
            scores = {text: reference.scores(reference.inputs(text)) for text in PLAIN_TEXTS}
            truths[specimen.name] = (stored.card.tag, scores)
    return truths


def _specimens_to_serve(places: Places) -> Iterator[Specimen]:
    return (specimen for specimen in specimens(places.open()) if specimen.name in _SERVED)
