"""
What agent_loop.py is made of.

    session.py     what this session was asked for, and what may end it
    start.py       what is checked before anything is touched
    inflight.py    what is in flight: proposals that wait, experiments without a verdict, runs, slots
    briefing.py    what a proposer is told beside the experiments
    proposers.py   the proposer at work, in a thread
    running.py     which run is next, and what follows when one has ended
    slots.py       one run in a slot, in a thread
    trials.py      the runs of ablate and promote
    short_run.py   the twenty steps that check takes
    verdicts.py    what follows from the runs of one experiment
    decide.py      the same, carried out and recorded
    mergeable.py   whether a train.py may run, and an edit on top of another best
    measure.py     evaluator and data, which must not change while a search goes on
    limits.py      time, experiments, money and disk that are left
    faults.py      what a fault of the loop itself costs: one experiment
    live.py        the live lines, the picture and the page
"""
