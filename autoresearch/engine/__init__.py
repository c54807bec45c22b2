"""
What agent_loop.py is made of: the one place where the wings meet.

    session.py     what this session was asked for, and what may end it
    queue.py       what is in flight: proposals that wait, experiments without a verdict, runs, slots
    briefing.py    what a proposer is told beside the experiments
    asking.py      the proposer at work, in a thread
    running.py     which run is next, and what follows when one has ended
    slots.py       one run in a slot, in a thread
    knowledge.py   what all runs so far say together
    verdicts.py    what follows from the runs of one experiment
    deciding.py    the same, carried out and recorded
    fitting.py     whether a train.py may run, and an edit on top of another best
    faults.py      what a fault of the loop itself costs: one experiment
    limits.py      time, experiments, money and disk that are left
    measure.py     evaluator and data, which must not change while a search goes on
    profile.py     where the time of a step goes: a run between two others, or the verb
    show.py        the live lines, the picture and the page
    status.py      the verb status: where the search stands
    report.py      the verb report: the page of what was found
    propose_once.py  the verb propose: one real proposal, nothing trained
    ablate.py      the verb ablate; pruning.py and reviewing.py do parts of it
    promote.py     the verb promote
    trials.py      the runs of ablate and promote
    check.py       the verb check: is this machine fit for a night
    short_run.py   the twenty steps that check takes
    start.py       what is checked before anything is touched
"""
