"""How long an answer will be: predictors of the output of model calls, learned as calls end.

    base       what is asked, what is answered, and the protocol
    recent     windows and tables of bounded size
    shares     prior, mean: which share of its limit a call writes
    quantile   what calls like it wrote, from fine to coarse
    bins       a cheap first stage, and a second one for what is long
    ranker     who writes more than whom, learned from pairs
    table      all of them by name

Pure like everything in the core: equal questions and answers in equal order give equal predictions, in any process. `predict`
changes nothing, and memory is bounded however many nodes and tenants there are. `core/lengths.py` asks them.
"""
