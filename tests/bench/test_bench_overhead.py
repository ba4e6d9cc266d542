"""What a node costs: the record, and that all four systems do the same."""

import pytest

from flowserve.bench import overhead


def test_every_system_gives_the_same_values_and_has_a_figure_for_every_shape() -> None:
    pytest.importorskip("langgraph", reason="needs the extra bench")
    results = overhead.run(quick=True)
    assert tuple(results["us_per_node"]) == overhead.SYSTEMS
    assert [case["shape"] for case in results["cases"]] == ["chain of 3", "fan-out of 3"]
    for case in results["cases"]:
        assert all(
            case["us_per_node"][name] > 0 and len(case["quartiles_us_per_node"][name]) == 3 for name in overhead.SYSTEMS
        )
    ratio = results["us_per_node"]["langgraph"] / results["us_per_node"]["flowserve"]
    assert results["times_langgraph"]["langgraph"] == pytest.approx(ratio)


def test_a_system_that_gives_another_value_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("langgraph", reason="needs the extra bench")

    async def wrong(number: int) -> int:
        return number + 2

    monkeypatch.setattr(overhead, "_plus_one", wrong)
    with pytest.raises(AssertionError, match="langgraph, chain of 3"):
        overhead.run(quick=True)
