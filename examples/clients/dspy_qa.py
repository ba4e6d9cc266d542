"""DSPy on a FlowServe server: nothing is needed but the OpenAI door. A workflow is a model of a `dspy.LM`.

flowserve serve examples/rag.py
python examples/clients/dspy_qa.py http://127.0.0.1:8000/v1
"""

import sys

import dspy

QUESTION = "Which town does Rusu govern?"


def main(url: str) -> dict[str, str]:
    lm = dspy.LM("openai/rag", api_base=url, api_key="none", cache=False, temperature=0.0)
    [said] = lm(QUESTION)
    return {"workflow": said if isinstance(said, str) else said["text"]}


if __name__ == "__main__":
    for what, text in main(*sys.argv[1:]).items():
        print(f"{what}: {text}")
