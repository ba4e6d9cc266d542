"""Native door, indexes, over the real retrieval with the hashing embedder."""

from typing import Any

import pytest

from flowserve.server.auth import Keyring
from flowserve.server.settings import ServerSettings

NOTES = [
    {"id": "moon.md", "text": "The tide follows the moon.", "metadata": {"from": "almanac"}},
    {"id": "bread.md", "text": "Bread needs yeast and patience."},
]


async def test_documents_that_are_put_in_are_found(served: Any) -> None:
    info = (await served.http.post("/v1/indexes/notes/documents", json={"documents": NOTES})).json()
    assert (info["name"], info["documents"]) == ("notes", 2)
    hits = (await served.http.post("/v1/indexes/notes/search", json={"query": "what follows the moon", "k": 1})).json()
    [hit] = hits["hits"]
    assert (hit["document"], hit["metadata"]) == ("moon.md", {"from": "almanac"})
    assert hit["text"] == "The tide follows the moon."
    assert -1 <= hit["score"] <= 1
    assert [item["name"] for item in (await served.http.get("/v1/indexes")).json()["data"]] == ["notes"]


async def test_a_workflow_searches_what_was_put_in(served: Any) -> None:
    await served.http.post("/v1/indexes/notes/documents", json={"documents": NOTES})
    body = {"input": {"question": "yeast"}}
    run = (await served.http.post("/v1/workflows/lookup/runs", json=body)).json()
    assert run["result"][0]["document"] == "bread.md"


async def test_documents_are_looked_up_and_deleted_by_id(served: Any) -> None:
    await served.http.post("/v1/indexes/notes/documents", json={"documents": NOTES})
    body = {"ids": ["bread.md", "none", "moon.md", "bread.md"]}
    found = (await served.http.post("/v1/indexes/notes/documents:get", json=body)).json()["documents"]
    assert found == [{**NOTES[1], "metadata": {}}, NOTES[0]]
    assert (await served.http.post("/v1/indexes/notes/documents:delete", json=body)).json() == {"deleted": 2}
    assert (await served.http.post("/v1/indexes/notes/documents:get", json=body)).json() == {"documents": []}
    assert (await served.http.post("/v1/indexes/notes/search", json={"query": "moon"})).json() == {"hits": []}
    for act in ("get", "delete"):
        assert (await served.http.post(f"/v1/indexes/none/documents:{act}", json=body)).status_code == 404


async def test_an_unknown_index_is_404(served: Any) -> None:
    assert (await served.http.post("/v1/indexes/none/search", json={"query": "x"})).status_code == 404


@pytest.mark.parametrize("name", ["..", ".hidden", "a b", "a%2Fb", "x" * 101])
async def test_a_name_that_is_no_plain_name_never_reaches_the_disk(served: Any, name: str) -> None:
    response = await served.http.post(f"/v1/indexes/{name}/documents", json={"documents": NOTES})
    assert response.status_code in (404, 422)
    assert (await served.http.get("/v1/indexes")).json()["data"] == []


@pytest.mark.parametrize("body", [{"query": ""}, {"query": "x", "k": 0}, {"query": "x", "k": "3"}, {"q": "x"}, {}, []])
async def test_a_search_of_the_wrong_shape_is_refused(served: Any, body: Any) -> None:
    assert (await served.http.post("/v1/indexes/notes/search", json=body)).status_code == 422


async def test_a_server_without_retrieval_says_so(serve: Any) -> None:
    async with serve(retrieval=False) as served:
        assert (await served.http.get("/v1/indexes")).json()["data"] == []
        response = await served.http.post("/v1/indexes/notes/search", json={"query": "x"})
        assert (response.status_code, response.json()["code"]) == (422, "unsupported")


async def test_an_index_that_cannot_be_trusted_does_not_hide_the_others(
    served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole list was a 500."""
    for name in ("good", "torn"):
        await served.http.post(f"/v1/indexes/{name}/documents", json={"documents": NOTES})
    (served.runtime.retrieval._library._folder / "torn" / "MANIFEST.json").write_text("{")
    answer = await served.http.get("/v1/indexes")
    assert [item["name"] for item in answer.json()["data"]] == ["good"]
    assert "index torn is left out" in caplog.text


async def test_an_index_is_made_of_a_kind_and_searched_under_a_filter(served: Any) -> None:
    answer = await served.http.post("/v1/indexes/notes/documents", json={"documents": NOTES, "kind": "bm25:b=0.5"})
    assert answer.json()["kind"] == "bm25:k1=1.2,b=0.5"
    for where, found in (({}, ["bread.md", "moon.md"]), ({"from": "almanac"}, ["moon.md"]), ({"from": "nowhere"}, [])):
        body = {"query": "moon yeast", "where": where}
        hits = (await served.http.post("/v1/indexes/notes/search", json=body)).json()["hits"]
        assert sorted(hit["document"] for hit in hits) == found


async def test_a_kind_that_does_not_exist_is_422(served: Any) -> None:
    answer = await served.http.post("/v1/indexes/notes/documents", json={"documents": NOTES, "kind": "tree"})
    assert (answer.status_code, answer.json()["code"]) == (422, "input_invalid")
    assert "expected one of exact, ivf" in answer.json()["detail"]
    assert (await served.http.get("/v1/indexes")).json()["data"] == []


async def test_tenants_with_indexes_of_their_own_do_not_see_those_of_others(serve: Any) -> None:
    async with serve(
        settings=ServerSettings(port=0, keys=Keyring.parse("a:the-key-of-tenant-a,b:the-key-of-tenant-b"))
    ) as served:
        served.runtime.retrieval._private = True
        of_a, of_b = ({"Authorization": f"Bearer the-key-of-tenant-{tenant}"} for tenant in "ab")
        body = {"documents": NOTES}
        assert (await served.http.post("/v1/indexes/notes/documents", json=body, headers=of_a)).status_code == 200
        listed = [(await served.http.get("/v1/indexes", headers=who)).json()["data"] for who in (of_a, of_b)]
        assert [[item["name"] for item in items] for items in listed] == [["notes"], []]
        search = {"query": "yeast"}
        answers = [await served.http.post("/v1/indexes/notes/search", json=search, headers=who) for who in (of_a, of_b)]
        assert [answer.status_code for answer in answers] == [200, 404]
        run = {"input": {"question": "yeast"}}
        runs = [await served.http.post("/v1/workflows/lookup/runs", json=run, headers=who) for who in (of_a, of_b)]
        assert runs[0].json()["result"][0]["document"] == "bread.md"
        assert (runs[1].status_code, "no index 'notes'" in runs[1].text) == (422, True)
