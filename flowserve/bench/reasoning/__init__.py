"""`flowserve bench reasoning`: programs that vote over recorded chains of thought, as load on simulated engines.

problems.py   what a bank gives: problems and their chains; more chains than were recorded
setups.py     what is compared: who goes first, when samples stop, whether chains end early
loads.py      one setup at one rate, and the greatest rate at which its p90 is within the target
compare.py    all setups over several seeds, with intervals
"""
