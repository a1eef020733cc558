"""Sending paid work: how much at once, for how much money, and what becomes of every attempt."""
