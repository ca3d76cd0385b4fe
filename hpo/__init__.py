"""The study: what to try next, where to run it, what to remember. Never imports torch."""
