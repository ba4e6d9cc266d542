"""The table of keys and values."""

import pytest

torch = pytest.importorskip("torch", reason="KV are torch tensors")

from transformers.cache_utils import DynamicCache

from flowserve.engines.slots import CannotShare, SlotTable

pytestmark = pytest.mark.torch
PER_TOKEN = 2 * 2 * 2 * 4 * 4  # layers, keys and values, heads, dim, bytes


def table(budget_tokens: int = 4096) -> SlotTable:
    probe = DynamicCache()
    for layer in range(2):
        probe.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), layer)
    return SlotTable(probe, budget_tokens * PER_TOKEN)


def write(slots: SlotTable, slot: int, start: int, end: int, mark: float) -> None:
    slots.aim_prefill(slot, start, end)
    for layer in range(2):
        states = torch.full((1, 2, end - start, 4), mark + layer)
        keys, values = slots.cache.update(states, -states, layer)
        assert keys.shape == values.shape == (1, 2, end, 4)


def test_a_decode_step_writes_each_slot_at_its_own_place() -> None:
    slots = table()
    slots.hold(3, 10)
    for slot, length in enumerate((4, 7, 2)):
        write(slots, slot, 0, length, 10.0 * (slot + 1))
    slots.aim_decode([4, 7, 2], torch.tensor([4, 7, 2]))
    keys, _ = slots.cache.update(torch.full((3, 2, 1, 4), 99.0), torch.zeros(3, 2, 1, 4), 0)
    assert keys.shape == (3, 2, 8, 4)
    for slot, length in enumerate((4, 7, 2)):
        assert (keys[slot, :, length] == 99).all()
        assert (keys[slot, :, :length] == 10.0 * (slot + 1)).all()


def test_growing_keeps_what_is_there() -> None:
    slots = table()
    slots.hold(1, 5)
    write(slots, 0, 0, 5, 3.0)
    before = slots.save(0, 0, 5)
    slots.hold(20, 1000)
    assert (slots.num_slots, slots.capacity) >= (20, 1000)
    assert all(torch.equal(a, b) for a, b in zip(before, slots.save(0, 0, 5), strict=True))


def test_a_long_table_becomes_short_when_many_slots_are_needed() -> None:
    slots = table(budget_tokens=600)
    slots.hold(1, 500)
    assert not slots.can_hold(4, 500)
    assert slots.can_hold(4, 100)
    write(slots, 0, 0, 100, 3.0)
    slots.hold(4, 100)
    assert slots.num_slots * slots.capacity <= 600
    assert (slots.save(0, 0, 100)[0][0] == 3.0).all()


def test_saved_stretches_load_where_they_were() -> None:
    slots = table()
    slots.hold(2, 10)
    write(slots, 0, 0, 6, 3.0)
    slots.load(1, 0, slots.save(0, 0, 4))
    slots.load(1, 4, slots.save(0, 4, 6))
    assert all(torch.equal(a, b) for a, b in zip(slots.save(0, 0, 6), slots.save(1, 0, 6), strict=True))


def test_state_that_is_not_keys_and_values_is_refused() -> None:
    with pytest.raises(CannotShare):
        SlotTable(DynamicCache(), 1 << 20)
