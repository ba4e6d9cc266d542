"""A simulator with the live scheduler in it: the same `core.step`, around it engines and services that are models.

Read first: drive.py (commands in, events out), engine.py (what an engine is). docs/simulator.md says what is modelled.
"""
