"""Writes a demo model's accuracy card: what was measured, how it was trained, and what it cannot do."""

from pathlib import Path
from typing import Any

from flowserve.demo.export import write_json

LIMITS = {
    "reader": (
        "It reads the English of its own sample corpus and nothing else: invented two-syllable names, four kinds of "
        "entities, 17 relations, two wordings per question. Other words fall back to letters and are not understood. "
        "It always answers, also when the passages do not state the answer. It follows no other instructions."
    ),
    "arithmetic": (
        "It adds and subtracts two to four numbers between 0 and 99 whose intermediate results also lie there, "
        "written as 'Compute 17 + 25 - 8.' It does nothing else."
    ),
}
METHOD = "Greedy exact match of the whole answer up to <|end|>, weights as shipped (bfloat16), computed in float32."
UNSEEN = {
    "reader": "Names of the evaluation never occur in training (split by crc32).",
    "arithmetic": (
        "Expressions of the evaluation are never problems in training (split by crc32); their single steps may occur "
        "there inside longer problems or checks."
    ),
}


def write_card(
    folder: Path, stage: str, training: dict[str, Any], scores: list[dict[str, Any]], table: str, n: int
) -> None:
    command = f"python -m flowserve.demo.evaluate --stage {stage} --n {n}"
    record = {
        "stage": stage,
        "licence": "Apache-2.0",
        "training": training,
        "evaluation": {"command": command, "method": f"{METHOD} {UNSEEN[stage]}", "scores": scores},
        "limits": LIMITS[stage],
    }
    write_json(folder / "card.json", record)
    lines = [
        f"# FlowServe demo model: {stage}",
        "",
        f"A small causal language model trained for FlowServe's demo. {LIMITS[stage]}",
        "",
        "## Accuracy",
        "",
        table,
        "",
        f"{METHOD} {UNSEEN[stage]} Command: `{command}`.",
        "",
        "## Training",
        "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in training.items()),
        "",
        "Licence: Apache-2.0.",
        "",
    ]
    (folder / "CARD.md").write_text("\n".join(lines))
