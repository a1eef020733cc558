"""Verification: calibrate what the teacher said, judge it, keep the good. Free to run again, never sends a request."""
