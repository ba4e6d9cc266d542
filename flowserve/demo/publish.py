"""Exports a checkpoint as a model folder, measures it, and writes its card.

python -m flowserve.demo.publish --stage reader --checkpoint build/reader/checkpoint.pt --machine "2-core CPU"
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from flowserve.demo.batches import Encoder
from flowserve.demo.card import write_card
from flowserve.demo.evaluate import evaluate, table
from flowserve.demo.export import export, load
from flowserve.demo.model import Model
from flowserve.demo.stages import STAGES


def training_record(state: dict[str, Any], machine: str, note: str) -> dict[str, Any]:
    """What the card says about the training of a checkpoint."""
    progress = state["progress"]
    minutes = progress["seconds"] / 60
    return {
        "command": f"python -m flowserve.demo.train --stage {state['stage']} --minutes {round(minutes)} --out build",
        "seed": state["seed"],
        "steps": progress["step"],
        "tokens": progress["tokens"],
        "minutes": round(minutes, 1),
        "machine": machine,
        **({"note": note} if note else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Export, measure and describe a trained demo model.")
    parser.add_argument("--stage", choices=sorted(STAGES), required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--machine", required=True, help="class of the machine that trained it")
    parser.add_argument("--note", default="", help="what else to say about the training")
    parser.add_argument("--folder", type=Path, help="where to write; default: the model in this package")
    parser.add_argument("--n", type=int, default=1000, help="questions per type")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stage = STAGES[options.stage]
    folder = options.folder or Path(__file__).parent / stage.name
    core = stage.tokenizer()
    state = torch.load(options.checkpoint, map_location="cpu", weights_only=False)
    model = Model(stage.shape(len(core)))
    model.load_state_dict(state["model"])
    export(model, core, folder)
    scores = evaluate(load(folder), Encoder(core), stage.name, options.n)
    print(table(scores))
    record = training_record(state, options.machine, options.note)
    write_card(folder, stage.name, record, [s.record() for s in scores], table(scores), options.n)


if __name__ == "__main__":
    main()
