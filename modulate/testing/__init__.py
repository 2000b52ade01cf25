"""Contract suites that plugin authors run on their own components.

One class for each kind checks what the interfaces promise, with pytest, on a CPU, in seconds.
"""
