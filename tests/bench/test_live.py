"""Strategies compared live, on simulated models: who is asked, what is counted, and what is judged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from consort.bench.live import Question, Replies, questions, replies
from consort.bench.live_standings import LiveStanding, live_pair, live_standings, rankings
from consort.bench.outcomes import pair, read_outcomes, write_outcomes
from consort.cli import main
from consort.config_serve import ServeConfig, ServedModel
from consort.errors import ConfigError
from consort.gateway.app import close
from consort.gateway.keys import Door
from consort.gateway.ledger import Ledger
from consort.gateway.service import Service
from consort.models.simulated import Fault, Simulated
from consort.training.data import Sample
from consort.types import Answer, Request
from tests.inference.consorts import says, user

CLOUD_ONLY, EASY = "the cloud knows this", "everybody knows this"


def knows(request: Request) -> str:
    return "no idea" if request.messages[-1].content.startswith("hard") else EASY


def knows_all(request: Request) -> str:
    return CLOUD_ONLY if request.messages[-1].content.startswith("hard") else EASY


async def hard_looks_hard(request: Request, answer: Answer | None) -> float:
    return 0.1 if request.messages[-1].content.startswith("hard") else 0.9


def asked(count: int, device: str = "") -> list[Question]:
    """A third of the questions is the cloud's."""
    texts = [f"{'hard' if number % 3 == 0 else 'easy'} question {number}" for number in range(count)]
    return [Question(user(text), knows_all(user(text)), device) for text in texts]


def compared(
    folder: Path,
    wanted: Sequence[Question],
    names: Sequence[str],
    *,
    edges: Sequence[Simulated] = (),
    cloud: Simulated | None = None,
) -> Replies:
    async def work() -> Replies:
        service = Service(
            ServeConfig(),
            edges=tuple(edges) or (Simulated("small", answer=knows),),
            cloud=cloud or Simulated("large", answer=knows_all),
            door=Door(folder / "keys.json"),
            ledger=Ledger(folder),
            prices={"large": ServedModel(price_in=1.0, price_out=10.0)},
            before=hard_looks_hard,
            after=hard_looks_hard,
        )
        try:
            return await replies(service, wanted, names)
        finally:
            await close(service)

    return asyncio.run(work())


def by_name(standings: Sequence[LiveStanding]) -> dict[str, LiveStanding]:
    return {each.name: each for each in standings}


def test_a_scorer_that_knows_recovers_the_cloud_at_a_third_of_its_share(tmp_path: Path) -> None:
    wanted = asked(30)
    found = compared(tmp_path, wanted, ("edge", "cloud", "route", "cascade"))
    standings = by_name(live_standings(wanted, found, metric="em"))
    assert [standings[name].quality.mean for name in found] == pytest.approx([2 / 3, 1, 1, 1])
    assert [standings[name].edge_share for name in found] == pytest.approx([1, 0, 2 / 3, 2 / 3])
    assert standings["edge"].against_cloud.mean == pytest.approx(-1 / 3)
    assert standings["edge"].cloud_bytes == standings["edge"].price == 0
    sent = sum(len(question.request.messages[0].content) for question in wanted)
    assert standings["cloud"].cloud_bytes == pytest.approx(sent / 30)
    assert standings["cloud"].price == pytest.approx(standings["cloud"].price_all_cloud)
    assert 0 < standings["route"].price < standings["cloud"].price
    for name in ("route", "cascade"):
        judged = standings[name].judged
        assert judged is not None
        assert judged.apgr.value == pytest.approx(5 / 6)  # no ranking of these questions is better
        assert judged.cpt80.value == pytest.approx(0.8 / 3)
    assert standings["edge"].judged is None


def test_without_a_gap_there_is_no_ranking_to_judge(tmp_path: Path) -> None:
    wanted = [question for question in asked(12) if question.reference == EASY]
    found = compared(tmp_path, wanted, ("edge", "cloud", "cascade"))
    assert by_name(live_standings(wanted, found, metric="rouge_l"))["cascade"].judged is None
    assert [way.name for way in rankings(found)] == ["cascade"]


def test_each_devices_questions_are_its_own_models_first(tmp_path: Path) -> None:
    edges = [says("bank", "I am the bank"), says("shop", "I am the shop")]
    wanted = [*asked(2, "shop"), *asked(2, "bank"), *asked(1)]
    found = compared(tmp_path, wanted, ("edge",), edges=edges)
    authors = [reply.receipt.spans[0][0] for reply in found["edge"]]
    assert authors == ["shop", "shop", "bank", "bank", "bank"]
    with pytest.raises(ConfigError, match="no served edge") as refused:
        compared(tmp_path / "other", asked(1, "shpo"), ("edge",), edges=edges)
    assert 'did you mean "shop"' in refused.value.hint


def test_a_strategy_that_fails_loses_the_question_and_is_counted(tmp_path: Path) -> None:
    wanted = asked(6)
    broken = Simulated("large", answer=knows_all, fault=Fault("break"))
    found = compared(tmp_path, wanted, ("edge", "cloud", "cascade"), cloud=broken)
    standings = by_name(live_standings(wanted, found, metric="em"))
    assert (standings["cloud"].failures, standings["cloud"].quality.mean) == (6, 0)
    assert (standings["cascade"].failures, standings["cascade"].quality.mean) == (0, pytest.approx(2 / 3))


def test_what_was_asked_live_is_outcomes_to_calibrate_on(tmp_path: Path) -> None:
    wanted = asked(9)
    data = live_pair(wanted, compared(tmp_path, wanted, ("edge", "cloud")), metric="em")
    write_outcomes(tmp_path / "outcomes.jsonl", data.outcomes)
    again = pair(read_outcomes(tmp_path / "outcomes.jsonl"))
    assert (again.small, again.large) == ("edge", "cloud")
    assert again.gains.tolist() == data.gains.tolist() == [1, 0, 0] * 3
    assert again.outcomes == data.outcomes
    assert again.has_answers


def test_rows_become_questions_as_they_stand() -> None:
    turns, text = Sample(user("when?").messages, "at nine"), Sample("It opens at", " nine")
    asked_turns, asked_text = questions([turns, text], max_tokens=8, device="bank")
    assert asked_turns == Question(user("when?", max_tokens=8), "at nine", "bank")
    assert (asked_text.request.prompt, asked_text.request.messages) == ("It opens at", ())


def test_bench_asks_a_files_rows_of_the_models_of_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"instruction": "Name the intent.", "input": f"{word} my card.", "output": word}
        for word in ("Block", "Keep")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "consort.toml").write_text(
        '[[serve.edges]]\nmodel = "zoo:edge-llama"\n[serve.cloud]\nmodel = "zoo:edge-gpt2"\nprice_out = 4.0\n'
        "[eval]\nmax_new_tokens = 4\n"
    )
    picture, kept = tmp_path / "pareto.svg", tmp_path / "outcomes.jsonl"
    words = ["bench", str(tmp_path / "rows.jsonl"), "--config", str(tmp_path / "consort.toml")]
    words += ["--strategy", "cascade", "--picture", str(picture), "--keep", str(kept)]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["questions"] == 2
    assert [row["strategy"] for row in told["rows"]] == ["edge", "cloud", "cascade"]
    assert all(row["p50_s"] > 0 and row["failures"] == 0 for row in told["rows"])
    assert picture.read_text().startswith("<?xml")
    assert len(read_outcomes(kept)) == 2


def test_what_cannot_be_meant_is_refused_before_anything_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["--strategy", "cascda"], 'did you mean "cascade"'),
        (["--picture", "pareto.gif"], 'no picture can be written as ".gif"'),
        (["nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    ):
        assert main(["bench", *words]) == 1
        shown = capsys.readouterr()
        assert told in shown.err
        assert shown.out == ""


def test_bench_needs_two_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    (tmp_path / "consort.toml").write_text('[[serve.edges]]\nmodel = "zoo:edge-llama"\n')
    assert main(["bench", str(tmp_path / "rows.jsonl"), "--config", str(tmp_path / "consort.toml")]) == 1
    assert "no cloud model to compare with" in capsys.readouterr().err
