"""The small parts: the heap, chance, distributions, the KV cache, costs, plans, traces, pictures."""

import gzip
import json
import random
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowserve.core.codec import decode, encode
from flowserve.core.commands import Role
from flowserve.errors import ConfigError, StoreError
from flowserve.graphs.plan import Kind, Plan
from flowserve.sim import costs, traces
from flowserve.sim.chance import exponential, mix, name_key, normal, uniform
from flowserve.sim.costs import H100_8B, Sample, StepCosts, fit, of_call
from flowserve.sim.dist import Dist, parse
from flowserve.sim.heap import Heap
from flowserve.sim.kv import KVCache
from flowserve.sim.plans import SHAPES, random_plan
from flowserve.sim.plot import curves
from flowserve.sim.programs import Modelled, NodeModel

# --- heap, chance, distributions -------------------------------------------------------------------------------


def test_what_happens_at_one_time_happens_in_the_order_in_which_it_was_scheduled() -> None:
    heap, seen = Heap(), list[str]()
    for at, name in ((2.0, "c"), (1.0, "a"), (2.0, "d"), (1.0, "b")):
        heap.at(at, seen.append, name)
    while heap.next_at() is not None:
        action, subject = heap.take()
        action(subject)
    assert seen == ["a", "b", "c", "d"] and heap.now == 2.0


def test_what_is_late_happens_now() -> None:
    heap, seen = Heap(), list[str]()
    heap.at(5.0, seen.append, "x")
    heap.take()
    heap.at(1.0, seen.append, "y")
    assert heap.next_at() == 5.0


def test_keys_depend_on_every_part_and_its_place() -> None:
    keys = [mix(), mix(0), mix(1), mix(0, 0), mix(0, 1), mix(1, 0), name_key("ab"), name_key("ba")]
    assert len(dict.fromkeys(keys)) == len(keys)


def test_draws_have_the_moments_of_their_distributions() -> None:
    keys = [mix(1, number) for number in range(20_000)]
    assert sum(map(uniform, keys)) / len(keys) == pytest.approx(0.5, abs=0.01)
    assert sum(exponential(key, 3.0) for key in keys) / len(keys) == pytest.approx(3.0, rel=0.03)
    assert sum(normal(key) ** 2 for key in keys) / len(keys) == pytest.approx(1.0, rel=0.03)
    drawn = sorted(Dist(100.0, 0.5).draw(key) for key in keys)
    assert drawn[10_000] == pytest.approx(100, rel=0.03)
    assert drawn[16_827] == pytest.approx(100 * 2.718281828**0.5, rel=0.03), "one deviation above"


def test_a_distribution_keeps_its_bounds_and_its_observations() -> None:
    assert {Dist(values=(1.0, 5.0)).draw(mix(i)) for i in range(50)} == {1.0, 5.0}
    assert all(2 <= Dist(3, 2.0, least=2, most=4).draw(mix(i)) <= 4 for i in range(200))
    assert parse({"median": 2, "sigma": 0.1, "most": 9}, "x") == Dist(2.0, 0.1, most=9.0)
    assert parse([1, 2], "x") == Dist(values=(1.0, 2.0))


@pytest.mark.parametrize("value", ["long", None, True, -1, {}, {"mean": 3}, {"median": "x"}, [1, "x"]])
def test_what_is_no_distribution_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="here"):
        parse(value, "here")


# --- KV cache --------------------------------------------------------------------------------------------------


def test_idle_chunks_go_when_blocks_are_wanted_the_least_recently_used_and_the_ends_first() -> None:
    cache = KVCache(8, 2)
    cache.take(8)
    assert all(cache.share(chunk) for chunk in (1, 2, 3, 4))
    cache.drop([1, 2])
    cache.drop([3, 4])
    assert (cache.free, cache.available) == (0, 8)
    cache.hold([1])
    cache.take(2)
    assert list(cache.idle) == [4, 3] and cache.held == {1: 1}
    cache.take(1)
    assert list(cache.idle) == [3] and cache.longest((1, 2), 9) == 1


def test_a_chunk_that_is_known_already_stays_private() -> None:
    cache = KVCache(8, 2)
    cache.take(4)
    assert cache.share(1) and not cache.share(1)
    assert not KVCache(8, 2, caching=False).share(1)


def test_news_leave_out_what_came_and_went() -> None:
    cache = KVCache(4, 2)
    cache.take(4)
    cache.share(1)
    cache.share(2)
    cache.drop([1, 2])
    cache.take(2)
    assert cache.news() == ((1,), (2,))
    assert cache.news() == ((), ())


# --- costs -----------------------------------------------------------------------------------------------------


def test_least_squares_find_the_costs_that_made_the_samples() -> None:
    true = StepCosts(0.005, 3e-5, 2e-4, 6e-8)
    rnd = random.Random(1)
    samples = []
    for _ in range(60):
        prefill, decodes, kv = rnd.choice([0, 100, 2000]), rnd.randint(0, 30), rnd.randint(0, 100_000)
        samples.append(Sample(true.seconds(prefill, decodes, kv), 1, prefill, decodes, kv))
    found = fit(samples)
    assert [found.step_s, found.prefill_s, found.decode_s, found.kv_s] == pytest.approx(
        [true.step_s, true.prefill_s, true.decode_s, true.kv_s]
    )
    assert costs.error(found, samples) < 1e-9


def test_no_coefficient_is_negative() -> None:
    samples = [Sample(1.0 - 0.001 * kv, 1, 10 * kv, kv % 3, kv) for kv in range(1, 30)]
    found = fit(samples)
    assert min(found.step_s, found.prefill_s, found.decode_s, found.kv_s) >= 0


def test_calls_alone_are_enough_to_tell_a_step_from_a_prompt_token() -> None:
    true = StepCosts(0.01, 1e-4, 0.0, 1e-6)
    samples: list[Sample] = []
    for prompt, output in ((10, 50), (500, 20), (1000, 100), (100, 5)):
        ttft = true.step_s + true.prefill_s * prompt
        rest = sum(true.step_s + true.kv_s * (prompt + i) for i in range(1, output))
        samples += of_call(prompt, output, ttft, ttft + rest)
    found = fit(samples)
    assert found.prefill_s == pytest.approx(1e-4) and found.kv_s == pytest.approx(1e-6)
    assert found.step_s + found.decode_s == pytest.approx(0.01), "with one sequence the two are one"


def test_costs_come_from_a_file_a_name_or_a_table(tmp_path: Path) -> None:
    steps = [{"seconds": 0.01 + 1e-4 * n, "steps": 1, "prefill": n, "decodes": 0, "kv": 0} for n in (1, 10, 100, 1000)]
    (tmp_path / "measured.json").write_text(json.dumps({"steps": steps}))
    assert costs.parse("measured.json", tmp_path).prefill_s == pytest.approx(1e-4)
    assert costs.parse("h100-8b", tmp_path) is H100_8B
    table = {"step_s": 1.0, "prefill_s": 2.0, "decode_s": 3.0, "kv_s": 4.0}
    assert costs.parse(table, tmp_path) == StepCosts(1.0, 2.0, 3.0, 4.0)
    for wrong in ("nothing", {"step_s": 1.0}, 5, "none.json"):
        with pytest.raises(ConfigError):
            costs.parse(wrong, tmp_path)


# --- plans and programs ----------------------------------------------------------------------------------------


def test_shapes_and_random_plans_survive_the_way_through_a_log() -> None:
    plans = [make() for make in SHAPES.values()] + [random_plan(random.Random(seed), ("large",)) for seed in range(30)]
    for plan in plans:
        assert decode(Plan, json.loads(json.dumps(encode(plan)))) == plan
        assert len(plan.tails) == len(plan.nodes) and plan.by_tail[0] in plan.blocks[0].nodes


def test_random_plans_have_every_kind_of_node() -> None:
    kinds = [node.kind for seed in range(200) for node in random_plan(random.Random(seed)).nodes]
    assert sorted(dict.fromkeys(kinds)) == list(Kind)


def test_a_draw_does_not_depend_on_what_was_drawn_before() -> None:
    plan = SHAPES["map-reduce"]()
    one, other = Modelled(plan, seed=1), Modelled(plan, seed=1)
    node = next(node for node in plan.nodes if node.name == "summarise")
    sizes = [one.size(node, key, Role.NODE, 0, 0) for key in (5, 6, 7)]
    assert sizes[::-1] == [other.size(node, key, Role.NODE, 0, 0) for key in (7, 6, 5)]
    assert sizes[0] != sizes[1]


def test_calls_of_one_node_share_their_instructions_and_nothing_else() -> None:
    plan = SHAPES["rag"]()
    program = Modelled(plan, {"answer": NodeModel(shared=256, prompt=Dist(640))})
    node = plan.nodes[1]
    one, other = (program.size(node, key, Role.NODE, 0, 0).chain for key in (1, 2))
    assert one[:4] == other[:4]
    assert not {*one[4:]} & {*other[4:]}


# --- traces ----------------------------------------------------------------------------------------------------


def test_mooncake_blocks_that_are_equal_are_equal_chunks(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 100, "hash_ids": [4, 5, 6]},
        {"timestamp": 3000, "input_length": 1024, "output_length": 1, "hash_ids": [4, 9]},
    ]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    first, second = traces.mooncake(path, "m", 2.0, 0)
    assert (first.at, second.at) == (0.0, 1.5)
    one, other = (arrival.program.size(arrival.plan.nodes[0], 0, Role.NODE, 0, 0) for arrival in (first, second))
    assert (one.prompt, one.output, len(one.chain)) == (1100, 100, 18)
    assert one.chain[:8] == other.chain[:8] and not {*one.chain[8:]} & {*other.chain[8:]}


def test_azure_requests_come_at_their_times(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )
    first, second = traces.azure(path, "a", 1.0, 0)
    assert (first.at, second.at) == (0.0, pytest.approx(4.314579))
    size = second.program.size(second.plan.nodes[0], 0, Role.NODE, 0, 0)
    assert (size.prompt, size.output) == (396, 109)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (traces.mooncake, '{"timestamp": 0}\n'),
        (traces.mooncake, "nothing\n"),
        (traces.azure, "TIMESTAMP,ContextTokens\nx,1\n"),
        (traces.log, "nothing\n"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, read: Callable[..., Any], text: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(StoreError, match="line"):
        list(read(path, "x", 1.0, 0))


# --- pictures --------------------------------------------------------------------------------------------------


def test_a_picture_has_a_curve_per_name_that_has_values() -> None:
    root = ET.fromstring(curves("a < b", {"one": [1.0, 2.0], "two": [0.1, 30.0], "none": []}))
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    ET.fromstring(curves("nothing", {}))
