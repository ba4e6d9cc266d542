"""When more computing stops helping: what is observed of a chain or a program (`signals.py`), and rules that decide on it.

    signals.py   what a rule sees: trials, probes, votes, rewards, token confidence
    rules.py     what it answers, the protocol, and the table of rules by name
    samples.py   rules over the votes of finished samples
    waves.py     how many samples could suffice
    remaining.py how many are expected to be wanted
    allocate.py  who gets the next sample of a shared number

Rules see answer classes, never answers: values do not enter the scheduler (ADR 2).
"""
