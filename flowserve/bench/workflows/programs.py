"""W6, a mix of programs: agents with tools between their calls, talks of several turns, and waves of parallel thoughts (Agentix).

Agents are recorded tool-using requests (InferCept), talks have ShareGPT's 6.66 turns, waves stand for LATS: its 160 calls of
467 tokens in and 73 out, scaled like all lengths: 20 calls in four waves. Times of tools are scaled too. Output limits are
rounded up to one of `LIMITS`, since a node declares its own.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add
from random import Random
from typing import Annotated, Any, TypedDict

import flowserve as fs
from flowserve.bench.workflows import inputs
from flowserve.bench.workflows.shape import Arrival, Say, Workload, fixed, poisson, say_of, scaled, text
from flowserve.graphs.nodes import Node
from flowserve.ids import Seconds

LIMITS = tuple(scaled(tokens) for tokens in (32, 64, 128, 256, 512, 1024))
AGENT, THINKER = fixed("agent", 256), fixed("thinker", 256)
LONGEST_TOOL_S: Seconds = 16.0
"""Before scaling; longer ones are cut, so that a round ends."""
WAVES, WIDTH = 4, 5
MARKS = [fixed(f"thought {n}", 16) for n in range(WIDTH)]
THOUGHT = scaled(73)


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a program."""

    text: str
    """What the transcript gets before it."""
    limit: int
    gap_s: float
    """What its tool takes afterwards; 0: no tool."""


def writer(limit: int) -> Node[[str], str]:
    @fs.llm(name=f"write_{limit}", max_tokens=limit)
    def write(transcript: str) -> str:
        fs.prompt("{{ transcript|trim }}\nNext", system=AGENT)

    return write


WRITERS = {limit: writer(limit) for limit in LIMITS}


@fs.tool(effects=False)
async def tool(seconds: float) -> bool:
    """Something that takes its time elsewhere."""
    await asyncio.sleep(seconds)
    return True


@fs.dynamic(calls=[*WRITERS.values(), tool], max_calls=64)
async def follow(steps: list[Step]) -> str:
    """Call after call, each with all that was said before."""
    transcript = said = ""
    for step in steps:
        transcript = f"{transcript}{step.text}\n"
        said = (await WRITERS[step.limit].acall(transcript)).strip()
        transcript = f"{transcript}{said}\n"
        if step.gap_s:
            await tool.acall(step.gap_s)
    return said


@fs.workflow()
def agent(steps: list[Step]) -> str:
    """A program with tools between its calls."""
    return follow(steps)


@fs.workflow()
def talk(steps: list[Step]) -> str:
    """A program without."""
    return follow(steps)


@fs.llm(max_tokens=THOUGHT)
def think(question: str, thoughts: list[str], mark: str) -> str:
    fs.prompt(
        "{{ question|trim }}\n{% for t in thoughts %}Thought\n{{ t|trim }}\n{% endfor %}{{ mark|trim }}\n",
        system=THINKER,
    )


@fs.workflow()
def waves(question: str) -> list[str]:
    """Thoughts in waves; each wave reads the one before."""
    thoughts: list[str] = []
    for _ in range(WAVES):
        thoughts = [think(question, thoughts, mark) for mark in MARKS]
    return thoughts


def _think(question: str, thoughts: Sequence[str], mark: str) -> str:
    return f"{question}\n" + "".join(f"Thought\n{thought}\n" for thought in thoughts) + f"{mark}\n"


# --- LangGraph ------------------------------------------------------------------------------------------


class _Program(TypedDict):
    steps: list[dict[str, Any]]
    number: int
    transcript: str
    result: str


class _Thoughts(TypedDict):
    question: str
    wave: int
    said: Annotated[list[tuple[int, int, str]], add]
    result: list[str]


def graphs() -> dict[str, Any]:
    program = _program_graph()
    return {"agent": program, "talk": program, "waves": _waves_graph()}


def _program_graph() -> Any:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph import END, START, StateGraph

    async def write(state: _Program, config: RunnableConfig) -> dict[str, Any]:
        number = state.get("number", 0)
        step = state["steps"][number]
        transcript = f"{state.get('transcript', '')}{step['text']}\n"
        said = await say_of(config)(AGENT, f"{transcript}Next", step["limit"])
        return {"number": number + 1, "transcript": f"{transcript}{said}\n", "result": said}

    async def tool(state: _Program) -> dict[str, Any]:
        await asyncio.sleep(state["steps"][state["number"] - 1]["gap_s"])
        return {}

    def after_write(state: _Program) -> str:
        return "tool" if state["steps"][state["number"] - 1]["gap_s"] else after_tool(state)

    def after_tool(state: _Program) -> str:
        return "write" if state["number"] < len(state["steps"]) else END

    graph: Any = StateGraph(_Program)
    graph.add_node("write", write)
    graph.add_node("tool", tool)
    graph.add_edge(START, "write")
    graph.add_conditional_edges("write", after_write, ["tool", "write", END])
    graph.add_conditional_edges("tool", after_tool, ["write", END])
    return graph.compile()


def _waves_graph() -> Any:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph import END, START, StateGraph

    def before(state: _Thoughts, wave: int) -> list[str]:
        return [text for at, _, text in sorted(state.get("said", [])) if at == wave - 1]

    def thinker(wave: int, number: int) -> Any:
        async def think(state: _Thoughts, config: RunnableConfig) -> dict[str, Any]:
            prompt = _think(state["question"], before(state, wave), MARKS[number])
            return {"said": [(wave, number, await say_of(config)(THINKER, prompt, THOUGHT))]}

        return think

    def finish(state: _Thoughts) -> dict[str, Any]:
        return {"result": before(state, WAVES)}

    graph: Any = StateGraph(_Thoughts)
    last: Any = START
    for wave in range(WAVES):
        names = [f"{wave}-{number}" for number in range(WIDTH)]
        for number, name in enumerate(names):
            graph.add_node(name, thinker(wave, number))
            graph.add_edge(last, name)
        last = names
    graph.add_node("finish", finish)
    graph.add_edge(last, "finish")
    graph.add_edge("finish", END)
    return graph.compile()


# --- asyncio --------------------------------------------------------------------------------------------


async def plain_program(say: Say, given: Mapping[str, Any]) -> str:
    transcript = said = ""
    for step in given["steps"]:
        transcript = f"{transcript}{step['text']}\n"
        said = await say(AGENT, f"{transcript}Next", step["limit"])
        transcript = f"{transcript}{said}\n"
        if step["gap_s"]:
            await asyncio.sleep(step["gap_s"])
    return said


async def plain_waves(say: Say, given: Mapping[str, Any]) -> list[str]:
    thoughts: list[str] = []
    for _ in range(WAVES):
        prompts = [_think(given["question"], thoughts, mark) for mark in MARKS]
        thoughts = list(await asyncio.gather(*(say(THINKER, prompt, THOUGHT) for prompt in prompts)))
    return thoughts


def _steps(rnd: Random, segments: Sequence[inputs.Segment]) -> dict[str, Any]:
    return {
        "steps": [
            {
                "text": text(rnd, segment.text_tokens),
                "limit": next((limit for limit in LIMITS if limit >= scaled(segment.output_tokens)), LIMITS[-1]),
                "gap_s": inputs.scaled_seconds(min(segment.tool_s, LONGEST_TOOL_S)),
            }
            for segment in segments
        ]
    }


def arrivals(rnd: Random, load: float, seconds: Seconds) -> list[Arrival]:
    agents = poisson(rnd, 1.2 * load, seconds, "agent", lambda: _steps(rnd, inputs.agent_program(rnd)))
    talks = poisson(rnd, 1.2 * load, seconds, "talk", lambda: _steps(rnd, inputs.talk_program(rnd)))
    trees = poisson(rnd, 1.2 * load, seconds, "waves", lambda: {"question": text(rnd, 256)})
    return sorted(agents + talks + trees, key=lambda arrival: arrival.at_s)


_PLAIN = {"agent": plain_program, "talk": plain_program, "waves": plain_waves}
WORKLOAD = Workload("W6 programs", "agents with tools, talks, waves of thoughts", arrivals, graphs, _PLAIN)
