"""
The parts of agent_loop.py.

    session.py     what this session was asked for, and what may end it
    start.py       what is checked before anything is touched
    bench.py       the slots, and every run that is made in them: tasks in, results out
    inflight.py    what is in flight: proposals that wait, experiments without a verdict, proposers at work
    briefing.py    the one maker of what a proposer is told
    proposers.py   the proposer at work, in a thread
    verdicts.py    what follows from the runs of one experiment
    decide.py      the same, carried out and recorded
    limits.py      time, experiments and money that are left
    disk.py        room on the disk, and runs that were lost for lack of it
    live.py        the live lines, the picture and the page
"""
