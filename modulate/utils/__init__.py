"""Files, locks, limits, messages: helpers that know nothing of modulation."""
