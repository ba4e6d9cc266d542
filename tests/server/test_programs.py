"""Programs that clients run themselves: declared, told apart by the scheduler, ended."""

from typing import Any

from flowserve.server.auth import ANYBODY
from flowserve.server.declared import MOST_PROGRAMS, Declared

GRAPH = {
    "nodes": ["plan", "search", "write"],
    "edges": [
        {"source": "plan", "target": "search", "conditional": True},
        {"source": "plan", "target": "write"},
        {"source": "search", "target": "write"},
    ],
}


async def call(served: Any, node: str | None, program: str = "research", **headers: str) -> Any:
    caller = {"program": program} if node is None else {"program": program, "node": node}
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "flowserve": {"caller": caller}}
    answer = await served.http.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return served.runtime.run(answer.headers["x-flowserve-run"])


async def test_a_declared_program_tells_what_may_come_next_and_how_often_each_node_called(served: Any) -> None:
    told = (await served.http.put("/v1/programs/research", json=GRAPH)).json()
    assert told == {
        "name": "research",
        "nodes": [
            {"name": "plan", "next": ["search", "write"], "calls": 0},
            {"name": "search", "next": ["write"], "calls": 0},
            {"name": "write", "next": [], "calls": 0},
        ],
    }
    for node in ("plan", "search", "search"):
        await call(served, node)
    assert (await served.http.put("/v1/programs/research", json=GRAPH)).status_code == 200, "as each client does"
    counted = (await served.http.get("/v1/programs/research")).json()["nodes"]
    assert [(row["name"], row["calls"]) for row in counted] == [("plan", 1), ("search", 2), ("write", 0)]


async def test_calls_of_declared_nodes_are_learned_from_by_node_and_others_by_model(served: Any) -> None:
    await served.http.put("/v1/programs/research", json=GRAPH)
    runs = [await call(served, node) for node in ("plan", "search", None, "invented")]
    runs.append(await call(served, "plan", program="undeclared"))
    digests = [run.program.plan.digest for run in runs]
    own = [f"model:fake@{ANYBODY}/research/{node}" for node in ("plan", "search")]
    assert digests == [*own, *["model:fake"] * 3]
    assert {run.snapshot().workflow for run in runs} == {"model:fake"}, "to its owner it is the same kind of run"
    plans = served.runtime._driver.state.estimates.plans
    assert {*digests} <= {*plans}


async def test_an_edge_to_nowhere_and_an_unknown_program_are_refused(served: Any) -> None:
    wrong = {"nodes": ["a"], "edges": [{"source": "a", "target": "b"}]}
    response = await served.http.put("/v1/programs/p", json=wrong)
    assert (response.status_code, "'b'" in response.json()["detail"]) == (422, True)
    assert (await served.http.get("/v1/programs/p")).status_code == 404


async def test_a_session_that_has_ended_is_forgotten_by_the_scheduler(served: Any) -> None:
    await call(served, None, **{"X-Session-ID": "s"})
    homes = served.runtime._driver.state.homes
    assert [session for _, session in homes] == ["s"]
    assert (await served.http.post("/v1/sessions:end", json={"session_id": "s"})).json() == {"session_id": "s"}
    await call(served, None)  # events are handled in order
    assert homes == {}


def test_tenants_do_not_see_each_other_s_programs_and_no_more_than_so_many_are_kept() -> None:
    declared = Declared()
    declared.put("a", "p", {"n": []})
    assert declared.get("b", "p") is None
    assert (declared.names("a"), declared.names("b")) == (["p"], [])
    for i in range(MOST_PROGRAMS):
        declared.put("b", f"p{i}", {})
    assert declared.get("a", "p") is None, "declared longest ago"
    assert len(declared.names("b")) == MOST_PROGRAMS
