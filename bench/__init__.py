"""The bench: Trivium's speed beside its peers', on one machine, taken turn by turn.

``python -m bench`` measures; README.md says how, and what the figures mean.
"""
