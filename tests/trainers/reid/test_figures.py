"""Tables of evaluations: of several protocols and versions, re-ranked figures in brackets."""

from typing import Any

import pytest

from trainers.tasks.reid.figures import main_figures, print_evaluations, print_verification, summary_of

OLDER = {"step": 0, "mAP": 0.25, "rank1": 0.5, "rank5": 0.75, "rank10": 1.0, "threshold": 0.3, "verification": 0.8}
PLAIN = {**OLDER, "step": 10, "mINP": 0.125, "TAR@1e-1": 0.5}
RERANKED = {**PLAIN, "mAP_reranked": 0.4375, "mINP_reranked": 0.25}
PAIRS: dict[str, Any] = {"step": 20, "pairs": 40, "pairs_accuracy": 0.9, "pairs_accuracy_std": 0.05, "pairs_AUC": 0.95}


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip() and not set(line) <= {"─", " "}]


def test_figures_that_an_evaluation_lacks_are_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluations("some", "step", [OLDER, PLAIN, PAIRS])
    title, names, *table = rows(capsys.readouterr().out)
    assert title == ["some"]
    assert names == ["step", "mAP", "mINP", "rank1", "rank5", "rank10", "pairs_accuracy"]
    assert table[0] == ["0", "25.0%", "–", "50.0%", "75.0%", "100.0%", "–"]
    assert table[1] == ["10", "25.0%", "12.5%", "50.0%", "75.0%", "100.0%", "–"]
    assert table[2] == ["20", "–", "–", "–", "–", "–", "90.0%"]


def test_reranked_figures_stand_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluations("some", "step", [PLAIN, RERANKED])
    _, names, *table = rows(capsys.readouterr().out)
    assert " ".join(names) == "step mAP (re-ranked) mINP (re-ranked) rank1 rank5 rank10"
    assert table[0][1:3] == ["25.0%", "12.5%"]
    assert table[1][1:5] == ["25.0%", "(43.8%)", "12.5%", "(25.0%)"]


def test_verification_is_a_table_of_its_own_where_there_is_any(capsys: pytest.CaptureFixture[str]) -> None:
    print_verification("some", "step", [PLAIN, PAIRS])
    title, names, *table = rows(capsys.readouterr().out)
    assert title == ["some:", "verification"]
    assert names == ["step", "verification", "TAR@1e-1", "pairs_accuracy", "pairs_accuracy_std", "pairs_AUC"]
    assert table == [["10", "80.0%", "50.0%", "–", "–", "–"], ["20", "–", "–", "90.0%", "5.0%", "95.0%"]]
    print_verification("none", "step", [{"step": 1, "mAP": 0.5}])
    print_evaluations("none", "step", [])
    assert capsys.readouterr().out == ""


def test_the_report_shows_what_all_evaluations_have() -> None:
    assert main_figures([OLDER, RERANKED]) == ["mAP", "rank1", "rank5", "rank10"]
    assert main_figures([RERANKED]) == ["mAP", "mAP_reranked", "mINP", "mINP_reranked", "rank1", "rank5", "rank10"]


def test_the_line_on_the_console() -> None:
    assert summary_of(OLDER) == "mAP 25.0%, Rank-1 50.0%"
    assert summary_of(RERANKED) == "mAP 25.0%, Rank-1 50.0%, re-ranked mAP 43.8%"
    assert summary_of(PAIRS) == "accuracy of pairs 90.0%"
    assert summary_of({}) == ""
