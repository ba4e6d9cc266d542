"""Native door, workflows: looking, drawing, bringing specs."""

from typing import Any


async def test_what_is_served_is_listed_by_name(served: Any) -> None:
    page = (await served.http.get("/v1/workflows")).json()
    names = [item["name"] for item in page["data"]]
    assert names == sorted(names)
    assert {"echo", "verdict"} <= set(names)


async def test_a_workflow_shows_the_shapes_of_what_goes_in_and_out(served: Any) -> None:
    workflow = (await served.http.get("/v1/workflows/verdict")).json()
    assert set(workflow["input"]["properties"]) == {"text", "strict"}
    assert set(workflow["output"]["properties"]) == {"text", "score"}
    schema = (await served.http.get("/v1/workflows/verdict/schema")).json()
    assert schema == {"input": workflow["input"], "output": workflow["output"]}
    described = (await served.http.get("/v1/workflows/echo")).json()
    assert described["description"] == "Says what it is told."
    assert len(described["version"]) == 64


async def test_the_graph_is_data_mermaid_or_a_picture(served: Any) -> None:
    graph = (await served.http.get("/v1/workflows/each/graph")).json()
    assert [node["kind"] for node in graph["nodes"]] == ["tool", "map", "llm"]
    assert graph["nodes"][1]["deps"] == [0]
    mermaid = await served.http.get("/v1/workflows/each/graph?format=mermaid")
    assert mermaid.headers["content-type"].startswith("text/plain")
    assert "say" in mermaid.text
    svg = await served.http.get("/v1/workflows/each/graph?format=svg")
    assert svg.headers["content-type"] == "image/svg+xml"
    assert "script" not in svg.headers["content-security-policy"]
    assert svg.text.startswith("<svg")


async def test_an_unknown_workflow_and_an_unknown_format_are_told_apart(served: Any) -> None:
    assert (await served.http.get("/v1/workflows/nothing/graph")).status_code == 404
    assert (await served.http.get("/v1/workflows/echo/graph?format=png")).status_code == 422


def spec_of(served: Any, workflow: str, name: str) -> dict[str, Any]:
    from flowserve.graphs.codec import to_spec

    spec = to_spec(served.runtime.workflows()[workflow])
    return {key: value for key, value in spec.items() if key != "version"} | {"name": name}


async def test_a_spec_that_a_client_brings_is_served(served: Any) -> None:
    response = await served.http.put("/v1/workflows/mine", json=spec_of(served, "echo", "mine"))
    assert response.status_code == 201, response.text
    assert response.headers["location"] == "/v1/workflows/mine"
    assert (await served.run("mine")).json()["result"] == "one two three"
    again = await served.http.put("/v1/workflows/mine", json=spec_of(served, "echo", "mine"))
    assert again.status_code == 200
    assert again.json()["version"] == response.json()["version"]


async def test_a_spec_does_not_take_the_place_of_what_the_operator_serves(served: Any) -> None:
    response = await served.http.put("/v1/workflows/echo", json=spec_of(served, "echo", "echo"))
    assert (response.status_code, response.json()["code"]) == (409, "not_yours")


async def test_a_spec_is_served_under_its_own_name_only(served: Any) -> None:
    response = await served.http.put("/v1/workflows/other", json=spec_of(served, "echo", "mine"))
    assert (response.status_code, response.json()["code"]) == (422, "name_mismatch")


async def test_a_spec_may_only_name_tools_that_the_server_offers(served: Any) -> None:
    spec = spec_of(served, "words", "mine")
    response = await served.http.put("/v1/workflows/mine", json=spec)
    assert (response.status_code, response.json()["code"]) == (422, "graph_invalid")
    assert "split" in response.text
    assert "mine" not in served.runtime.workflows()


async def test_checking_a_spec_tells_all_that_is_wrong_and_serves_nothing(served: Any) -> None:
    good = (await served.http.post("/v1/workflows:check", json=spec_of(served, "echo", "mine"))).json()
    assert (good["ok"], good["problems"]) == (True, [])
    bad = (await served.http.post("/v1/workflows:check", json={"name": "mine", "nodes": 7})).json()
    assert bad["ok"] is False
    assert bad["problems"]
    assert {"where", "expected", "came", "remedy"} == set(bad["problems"][0])
    assert "mine" not in served.runtime.workflows()


async def test_patterns_come_from_the_operator_only(served: Any) -> None:
    spec = spec_of(served, "echo", "mine")
    spec["llms"]["say"]["regex"] = "(a+)+b"
    response = await served.http.put("/v1/workflows/mine", json=spec)
    assert (response.status_code, response.json()["code"]) == (422, "graph_invalid")
    assert "no pattern in a spec" in response.text
    checked = (await served.http.post("/v1/workflows:check", json=spec)).json()
    assert checked["ok"] is False
