"""Mutation testing: small faults in the core that the quick tests must detect; `make mutants`."""
