"""AlpacaEval: answers, a judge's verdicts on pairs of them, and the win rates they make.

Start reading at `evaluate.py`, which has one function per command.
"""
