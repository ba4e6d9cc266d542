"""OpenAI's Agents SDK on a FlowServe server: an agent whose model is a workflow, over responses and over chat completions.

flowserve serve examples/rag.py
python examples/clients/agents_sdk.py http://127.0.0.1:8000/v1
"""

import asyncio
import sys

from agents import Agent, RunConfig, Runner, set_tracing_disabled

from flowserve.openai_agents import provider

QUESTION = "Which town does Rusu govern?"


async def main(url: str) -> dict[str, str]:
    set_tracing_disabled(True)  # else the SDK sends traces to OpenAI
    agent = Agent(name="handbook", model="rag")
    said = {}
    for name, use_responses in (("responses", True), ("chat", False)):
        config = RunConfig(model_provider=provider(url, use_responses=use_responses))
        said[name] = str((await Runner.run(agent, QUESTION, run_config=config)).final_output)
    return said


if __name__ == "__main__":
    for what, text in asyncio.run(main(*sys.argv[1:])).items():
        print(f"{what}: {text}")
