"""A request of another terminal is answered, withdrawn when nobody answers, and ignored when it is none."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bench.store.requests import ANSWER_SUFFIX, REQUESTS_FOLDER, Answer, CancelRequest, Requests


def test_an_answer_reaches_who_asked_and_nothing_is_left(tmp_path: Path) -> None:
    driver, ended = Requests(tmp_path), threading.Event()
    obeyed: list[str | None] = []

    def obey(request: CancelRequest) -> Answer:
        obeyed.append(request.trial_id)
        return Answer(cancelled=2)

    def serve() -> None:
        while not ended.wait(0.005):
            driver.serve(obey)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert Requests(tmp_path).ask(CancelRequest(trial_id="lora"), timeout_seconds=30) == Answer(cancelled=2)
    finally:
        ended.set()
        thread.join()
    assert obeyed == ["lora"]
    assert list((tmp_path / REQUESTS_FOLDER).iterdir()) == []


def test_a_request_that_nobody_answers_is_withdrawn(tmp_path: Path) -> None:
    assert Requests(tmp_path).ask(CancelRequest(trial_id=None), timeout_seconds=0) is None
    assert list((tmp_path / REQUESTS_FOLDER).iterdir()) == []


def test_what_is_no_request_hinders_none(tmp_path: Path) -> None:
    Requests(tmp_path).serve(lambda request: pytest.fail("there is no request"))
    folder = tmp_path / REQUESTS_FOLDER
    folder.mkdir()
    (folder / "a.json").write_text("{torn")
    (folder / "b.json").mkdir()
    (folder / "c.json").write_text(CancelRequest(trial_id="full").model_dump_json())
    obeyed: list[str | None] = []
    for _ in range(2):
        Requests(tmp_path).serve(lambda request: obeyed.append(request.trial_id) or Answer(cancelled=1))
    assert obeyed == ["full"], "once"
    assert Answer.model_validate_json((folder / f"c{ANSWER_SUFFIX}").read_text()).cancelled == 1
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.json", f"c{ANSWER_SUFFIX}"]
