"""The scheduler: pure decisions about which node runs where and when. Events in, commands out.

    step          the one entry, and the theory of operation
    events, commands, config        what goes in, what comes out, which bounds hold
    state, shapes, queues, timers   what is remembered
    readiness, tasks, expansion, agents, runs, engines   what changes it
    failing, retry, dispatching     what follows
    lengths, predict                what model calls are expected to write
    priority, placement, stopping, admission   policies: functions that return a key or a proposal
    invariants, story, log, codec   checking, explaining, recording

Nothing here awaits, sleeps, logs, measures, draws random numbers or reads a clock. Start with step.py.
"""
