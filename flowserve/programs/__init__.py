"""Reasoning programs over nodes of the user: who supplies the nodes gets the search.

    solve = programs.self_consistency(answer, n=16, vote="final")

Each factory gives a node: it is called in workflows, mapped, served and drawn like any other. What it searches with is declared, so
its calls are scheduled one by one with the rest of the run. `program.py` says what such a node is, `branches.py` how branches are
run, `flowserve.core.stopping` when they are enough.
"""

from flowserve.core.stopping.programs import PUBLISHED, Certaindex
from flowserve.programs.best import best_of_n
from flowserve.programs.consistency import self_consistency
from flowserve.programs.mcts import mcts
from flowserve.programs.program import Program
from flowserve.programs.rebase import rebase
from flowserve.programs.results import Best, Consensus, Result, Search, Thoughts
from flowserve.programs.thoughts import tree_of_thoughts

__all__ = [
    "PUBLISHED",
    "Best",
    "Certaindex",
    "Consensus",
    "Program",
    "Result",
    "Search",
    "Thoughts",
    "best_of_n",
    "mcts",
    "rebase",
    "self_consistency",
    "tree_of_thoughts",
]
