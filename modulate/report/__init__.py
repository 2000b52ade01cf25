"""Reports on finished runs: tables with exact counts, intervals and paired tests; figures; samples
to look at. One page that needs nothing but itself.

Nothing here knows a kind of signal or a benchmark: marks on frames come from
:meth:`modulate.interfaces.signal.Signal.marks`, published results from
:meth:`modulate.interfaces.components.Dataset.reference`.
"""
