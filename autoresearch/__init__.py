"""
The parts of the loop. Each folder may import what stands below it in this list, never what stands above.

    verbs/     status, report, check, profile, propose, ablate, promote
    loop/      session, slots, what is in flight, asking proposers, deciding, limits, faults
    propose/   who writes the next train.py, and what it is told
    prove/     what was found: ablation, promotion, time to a target
    record/    what is kept and shown: rows, journal, git, lines, picture, status, page
    run/       one training as a process: limits, sandbox, log, result; on this machine or on a cluster
    judge/     is the number better, and is it true
    data/      download, documents, tokenizer training, packing: what prepare_data.py does once

The modules next to this one are the ground floor: the nouns that pass between the folders (nouns.py, row.py), settings,
and small tools. pyproject.toml holds the order as import contracts.
"""
