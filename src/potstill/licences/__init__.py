"""Licences: what a teacher's and a data set's terms allow, checked before anything is paid for."""

from potstill.licences.policy import Policy, check_licence, gate, named_licences

__all__ = ["Policy", "check_licence", "gate", "named_licences"]
