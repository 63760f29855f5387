"""The pure heart: what an instance is and what happens next. No I/O, no clock, no randomness, no await."""
