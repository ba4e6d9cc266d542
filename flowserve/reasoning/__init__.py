"""Reasoning programs measured and calibrated: answers and when two are the same, recorded trajectories, their replay under a
rule of `flowserve.core.stopping`, and certificates."""
