"""The one-node workflow behind a plain model call, so that it is scheduled like everything else."""

from functools import lru_cache

from flowserve.graphs.encode import canonical, exit_data
from flowserve.graphs.plan import Block, ExitSpec, Kind, LLMSpec, Node, Output, Plan, Template
from flowserve.graphs.program import Program
from flowserve.ids import BlockId, NodeId


@lru_cache(maxsize=256)
def raw_program(model: str, exit: ExitSpec | None = None, part: str = "") -> Program:
    """A workflow `model:<name>` with a single LLM node; its prompt comes from `prompts.RawCall`.

    part: of a client's program that makes the call. How long calls take and answer is learned for each part by itself, because
    the digest says which it is.
    """
    name = f"model:{model}"
    known = name if exit is None else f"{name}:{canonical(exit_data(exit))}"
    llm = LLMSpec("generate", Template(()), {"type": "object"}, None, model=model, exit=exit)
    node = Node(NodeId(0), "generate", Kind.LLM, BlockId(0), (), (), target=0, cost_s=2.0)
    plan = Plan(
        name=name,
        digest=f"{known}@{part}" if part else known,
        nodes=(node,),
        blocks=(Block(BlockId(0), name, (), (NodeId(0),), Output(NodeId(0)), None, dependents=((),)),),
        input={"type": "object"},
        output={},
        llms=(llm,),
        tails=(2.0,),
        by_tail=(NodeId(0),),
    )
    return Program(plan)
