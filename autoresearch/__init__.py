"""
What the loop is made of: a wing for each of its verbs, on a ground floor that all of them share.

    propose/   who writes the next train.py, and what it is told
    run/       one training as a process: limits, sandbox, log, result; on this machine or on a cluster
    judge/     is the number better, and is it true
    record/    what is kept and shown: rows, journal, git, lines, picture, status, page
    prove/     what was found: ablation, promotion, time to a target
    data/      download, documents, tokenizer training, packing: what prepare_data.py does once
    engine/    what agent_loop.py is made of: the one place where the wings meet

The ground floor is the modules beside this one: the nouns that pass between the wings (nouns.py, row.py), settings,
and small tools. A wing imports the ground floor and itself. pyproject.toml holds that as import contracts.
"""
