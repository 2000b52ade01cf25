"""Files, locks, limits and messages: helpers that know nothing of modulation."""
