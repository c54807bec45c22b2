"""The verbs of the command line beside the search itself: status, report, check, profile, propose, ablate, promote."""
