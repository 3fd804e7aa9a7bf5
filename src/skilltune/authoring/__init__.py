"""Authoring: scaffold a skill, convert samples, review drafts."""
