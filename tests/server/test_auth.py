"""Who gets in: keys, tenants, addresses."""

import secrets
from typing import Any

import pytest
from fastapi.routing import APIRoute
from httpx2 import ASGITransport, AsyncClient

from flowserve.errors import ConfigError
from flowserve.runtime.runner import Runtime
from flowserve.server.app import create_app
from flowserve.server.auth import Keyring, check_bind, is_loopback
from flowserve.server.listen import listener
from flowserve.server.routes import GuardedRoute
from flowserve.server.settings import ServerSettings, from_environ

RED, BLUE = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
KEYS = Keyring.parse(f"red:{RED}, blue:{BLUE}")
OPEN = {"/health", "/ready", "/version", "/docs", "/openapi.json"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def walk(app: Any) -> list[tuple[str, str]]:
    """(method, path) of everything in the OpenAPI document and of every route, however it was included."""
    found = {(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item}
    routes = list(app.routes)
    while routes:
        route = routes.pop()
        routes += getattr(getattr(route, "original_router", route), "routes", None) or []
        if isinstance(route, APIRoute):
            found |= {(method, route.path) for method in route.methods or ()}
    return sorted(found)


async def test_every_route_but_the_open_ones_wants_a_key_before_it_reads_the_body() -> None:
    app = create_app(Runtime(), ServerSettings(keys=KEYS))
    paths = walk(app)
    assert len(paths) > 25
    async with AsyncClient(transport=ASGITransport(app), base_url="http://x") as http:
        for method, path in paths:
            filled = path.replace("{model:path}", "m").replace("{", "").replace("}", "")
            for headers in ({}, bearer("wrong"), {"authorization": "Basic eDp5"}, {"authorization": "Bearer"}):
                response = await http.request(method, filled, headers=headers, content=b"\xff not json")
                if path in OPEN:
                    assert response.status_code != 401, path
                else:
                    assert response.status_code == 401, (method, path)
                    assert response.headers["www-authenticate"] == "Bearer"
                    assert "x-request-id" in response.headers


def test_every_route_outside_of_operations_is_guarded_by_its_class() -> None:
    app = create_app(Runtime(), ServerSettings())
    routes, guarded = list(app.routes), 0
    while routes:
        route = routes.pop()
        routes += getattr(getattr(route, "original_router", route), "routes", None) or []
        if isinstance(route, APIRoute) and route.path not in OPEN:
            assert isinstance(route, GuardedRoute), route.path
            guarded += 1
    assert guarded > 20


async def test_a_tenant_sees_its_own_runs_and_workflows_only(serve: Any) -> None:
    async with serve(settings=ServerSettings(port=0, keys=KEYS)) as served:
        made = await served.http.post("/v1/workflows/echo/runs", json={"input": {"text": "x"}}, headers=bearer(RED))
        run = made.json()["id"]
        assert served.engine.calls[0].tenant == "red"
        for path in ("", "/events", "/result"):
            assert (await served.http.get(f"/v1/runs/{run}{path}", headers=bearer(RED))).status_code == 200
            foreign = await served.http.get(f"/v1/runs/{run}{path}", headers=bearer(BLUE))
            missing = await served.http.get(f"/v1/runs/run_none{path}", headers=bearer(BLUE))
            assert foreign.status_code == missing.status_code == 404
            assert foreign.json()["detail"].replace(run, "") == missing.json()["detail"].replace("run_none", "")
        assert (await served.http.post(f"/v1/runs/{run}/cancel", headers=bearer(BLUE))).status_code == 404
        assert (await served.http.delete(f"/v1/runs/{run}", headers=bearer(BLUE))).status_code == 404
        assert (await served.http.get("/v1/runs", headers=bearer(BLUE))).json()["data"] == []
        assert (await served.http.get(f"/v1/runs?after={run}", headers=bearer(BLUE))).status_code == 404
        assert len((await served.http.get("/v1/runs", headers=bearer(RED))).json()["data"]) == 1
        await _brings(served)


async def _brings(served: Any) -> None:
    from flowserve.graphs.codec import to_spec

    spec = to_spec(served.runtime.workflows()["echo"]) | {"name": "reds"}
    del spec["version"]
    put = await served.http.put("/v1/workflows/reds", json=spec, headers=bearer(RED))
    assert put.status_code == 201
    assert (await served.http.get("/v1/workflows/reds", headers=bearer(BLUE))).status_code == 404
    body = {"input": {"text": "x"}}
    assert (await served.http.post("/v1/workflows/reds/runs", json=body, headers=bearer(BLUE))).status_code == 404
    models = (await served.http.get("/v1/models", headers=bearer(BLUE))).json()["data"]
    assert "reds" not in {model["id"] for model in models}
    assert (await served.http.put("/v1/workflows/reds", json=spec, headers=bearer(BLUE))).status_code == 409


@pytest.mark.parametrize("header", [f"Bearer {RED}", f"bearer {RED}", f"Bearer   {RED} "])
def test_a_key_names_its_tenant(header: str) -> None:
    assert KEYS.tenant_of(header) == "red"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", f"Basic {RED}", RED, f"Bearer {RED}x", f"Bearer {RED[:-1]}", "Bearer \xff"]
)
def test_anything_else_names_none(header: str | None) -> None:
    assert KEYS.tenant_of(header) is None


def test_keys_are_not_kept_and_not_shown() -> None:
    assert RED not in repr(KEYS)
    assert RED.encode() not in b"".join(digest for digest, _ in KEYS.digests)
    with pytest.raises(ConfigError) as refused:
        Keyring.parse(f"{RED},short-key")
    assert "short-key" not in str(refused.value)


@pytest.mark.parametrize("text", ["", " , ", "short", f":{RED}", f"{RED},x:short"])
def test_weak_or_missing_keys_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Keyring.parse(text)


def test_a_server_without_keys_lets_everybody_in_as_nobody() -> None:
    assert Keyring().tenant_of(None) == ""
    assert Keyring().tenant_of("Bearer any") == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "127.0.0.1.example.org"])
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="API key"):
        check_bind(host, Keyring())
    check_bind(host, KEYS)
    check_bind(host, Keyring(), insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    check_bind(host, Keyring())


def test_the_listener_itself_refuses_an_open_address() -> None:
    settings = ServerSettings(host="0.0.0.0")
    with pytest.raises(ConfigError):
        listener(create_app(Runtime(), settings), settings)


def test_settings_come_from_the_environment_and_what_is_given_wins() -> None:
    environ = {"FLOWSERVE_HOST": "::1", "FLOWSERVE_PORT": "81", "FLOWSERVE_API_KEYS": RED}
    settings = from_environ(environ, port=82, host=None)
    assert (settings.host, settings.port, settings.keys.tenant_of(f"Bearer {RED}")) == ("::1", 82, "default")
    with pytest.raises(ConfigError, match="FLOWSERVE_PORT"):
        from_environ({"FLOWSERVE_PORT": "eighty"})


@pytest.mark.parametrize("wrong", [{"port": 70_000}, {"max_body_bytes": 0}, {"keep_alive_s": -1.0}])
def test_a_wrong_setting_names_itself(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ServerSettings(**wrong)
